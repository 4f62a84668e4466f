"""Linear observations y = A x of a clip, with a right inverse A+ (A A+ = 1).

`project` gives the clip that agrees with the observations and is otherwise its argument,

    P x = x + A+ (y - A x) = A+ y + (1 - A+ A) x,

which is the whole of zero-shot editing (Song et al. 2023, arXiv 2303.01469, section 5.4 and
algorithm 4): a sampler's guess of the clean clip is projected, noised again, and guessed again.
`exact` does the same in whole grey levels, so that written pixels agree to the bit.
Clips are `b 3 t h w` in [-1, 1], pixels uint8 `b t h w 3`; observations serve every clip of a
batch.
"""

from abc import ABC, abstractmethod

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from vidcm.editing.joins import drawn_to_given, drawn_to_start
from vidcm.media.pixels import to_video

WEIGHTS = (299, 587, 114)  # thousandths of red, green and blue in luminance (BT.601)
REACH = 4  # pixels over which a generated side is drawn to the kept one
# How alike what is decoded errs in neighbouring frames, mostly at edges that move. Of 0, 0.3, 0.6
# and 0.9, the largest that costs no PSNR in any task in time.
FADE = 0.3

Carried = tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]


class Operator(ABC):
    """Observations `y (1 c t h w)` and the maps A and A+."""

    y: Tensor

    @abstractmethod
    def observe(self, video: Tensor) -> Tensor:
        """A x."""

    @abstractmethod
    def restore(self, y: Tensor) -> Tensor:
        """A+ y, a clip."""

    @abstractmethod
    def exact(self, frames: Tensor) -> Tensor:
        """The frames that agree in whole grey levels; unchanged where they do already."""

    def start(self) -> Tensor:
        """A+ y: the observations, and elsewhere what A+ makes of them."""
        return self.restore(self.y)

    def project(self, video: Tensor) -> Tensor:
        """The video, corrected where it contradicts the observations."""
        return video + self.restore(self.y - self.observe(video))

    def blend(self, video: Tensor) -> Tensor:
        """The video with its generated side drawn to the kept one along their seam."""
        return video


class Pixels(Operator):
    """The values of some pixels.

    A+ corrects a pixel also by its values known at other times, as the mean of a Gaussian process
    does: C A' (A C A')^-1, C the covariance of errors along time.

    Args:
        frames: uint8 `(t h w 3)`.
        known: bool `(t h w)`, True where they are known.
        carry: Correlation of errors of neighbouring frames, in [0, 1); of frames d apart it is
            carry^d. At 0 only known pixels are corrected.
    """

    def __init__(self, frames: Tensor, known: Tensor, carry: float = 0.0):
        self.frames, self.known = frames, known
        self.mask = known[None, None].float()
        self.y = to_video(frames[None]) * self.mask
        self.carried = _carried(known, carry) if carry else None

    def observe(self, video: Tensor) -> Tensor:
        return video * self.mask

    def restore(self, y: Tensor) -> Tensor:
        return y if self.carried is None else _carry(y, self.carried)

    def exact(self, frames: Tensor) -> Tensor:
        return torch.where(self.known[..., None], self.frames, frames)

    def blend(self, video: Tensor) -> Tensor:
        """Add the error on the kept side to the generated side.

        In space the error is spread over REACH pixels and fades with distance, in time it fades by
        FADE. Then generated frames are blended towards input ones.
        """
        off = (self.y - video) * self.mask
        share = _blur(self.mask)
        spread = _blur(off) / share.clamp(min=1e-6)
        late = _carry(off, _carried(self.known, FADE))
        right = video + torch.where(self.known, off, late.lerp(spread, (2 * share).clamp(max=1)))
        joined = drawn_to_given(right, self.known.all(2).all(1).tolist())
        return torch.where(self.known, video, joined)


class Luminance(Operator):
    """The luminance of some pixels (BT.601 weights, on gamma-coded values).

    A+ adds equal amounts of red, green and blue, which leaves colour differences alone.

    Args:
        frames: uint8 `(t h w 3)`, of which only the luminance is used.
        known: bool `(t h w)`, True where it is known.
    """

    def __init__(self, frames: Tensor, known: Tensor):
        self.grey, self.known = luminance(frames), known
        self.mask = known[None, None].float()
        self.y = (self.grey[None, None].float() / 127.5 - 1) * self.mask

    def observe(self, video: Tensor) -> Tensor:
        weights = video.new_tensor(WEIGHTS).view(1, 3, 1, 1, 1) / 1000
        return (video * weights).sum(1, keepdim=True) * self.mask

    def restore(self, y: Tensor) -> Tensor:
        return y.expand(-1, 3, -1, -1, -1)

    def exact(self, frames: Tensor) -> Tensor:
        """Colours out of range pale towards grey at equal luminance.

        Green, which counts for more than half, takes the rounding.
        """
        grey = self.grey.double()[..., None]
        shifted = frames + grey - _thousandths(frames.double())[..., None] / 1000
        red, _, blue = _in_range(shifted, grey, (-1,)).round().unbind(-1)
        green = (1000 * grey[..., 0] - WEIGHTS[0] * red - WEIGHTS[2] * blue) / WEIGHTS[1]
        fixed = torch.stack([red, green.round(), blue], -1).to(torch.uint8)
        right = (luminance(frames) == self.grey) | ~self.known
        return torch.where(right[..., None], frames, fixed)


class BlockMean(Operator):
    """The mean of every block of size x size pixels.

    Args:
        frames: uint8 `(t h/size w/size 3)`.
        known: bool `(t h/size w/size)`, True where it is known.
        size: Side of a block in pixels.
    """

    def __init__(self, frames: Tensor, known: Tensor, size: int):
        self.frames, self.known, self.size = frames, known, size
        self.mask = known[None, None].float()
        self.y = to_video(frames[None]) * self.mask

    def observe(self, video: Tensor) -> Tensor:
        return F.avg_pool3d(video, (1, self.size, self.size)) * self.mask

    def restore(self, y: Tensor) -> Tensor:
        return y.repeat_interleave(self.size, 3).repeat_interleave(self.size, 4)

    def exact(self, frames: Tensor) -> Tensor:
        """The sum of a block becomes size^2 times its mean.

        Remainders of rounding go to the pixels with the largest fractions.
        """
        pattern = "b t (h i) (w j) c -> b t h w c (i j)"
        blocks = rearrange(frames, pattern, i=self.size, j=self.size).double()
        mean = self.frames.double()[..., None]
        target = mean * self.size**2
        wanted = _in_range(blocks + mean - blocks.mean(-1, keepdim=True), mean, (-1, -2))
        low = (wanted + 1e-9).floor()
        rank = (low - wanted).argsort(dim=-1, stable=True).argsort(dim=-1)
        fixed = low + (rank < (target - low.sum(-1, keepdim=True)))
        right = (blocks.sum(-1, keepdim=True) == target).all(-2, keepdim=True)
        right = right | ~self.known[..., None, None]
        pattern = "b t h w c (i j) -> b t (h i) (w j) c"
        whole = rearrange(torch.where(right, blocks, fixed), pattern, i=self.size, j=self.size)
        return whole.to(torch.uint8)


class Periodic(Operator):
    """The last frame equals the first.

    Args:
        share: `(h w)` in [0, 1], the part of a difference that the first frame takes: 0 where the
            first is known, 1 where the last is.
        frames: Number of frames.
    """

    def __init__(self, share: Tensor, frames: int):
        self.share, self.count = share, frames
        self.y = torch.zeros(1, 3, 1, *share.shape, device=share.device)

    def observe(self, video: Tensor) -> Tensor:
        return video[:, :, -1:] - video[:, :, :1]

    def restore(self, y: Tensor) -> Tensor:
        rest = y.new_zeros(y.shape[0], 3, self.count - 2, *y.shape[3:])
        return torch.cat([-self.share * y, rest, (1 - self.share) * y], 2)

    def exact(self, frames: Tensor) -> Tensor:
        ends = torch.where((self.share < 1)[..., None], frames[:, 0], frames[:, -1])
        return torch.cat([ends[:, None], frames[:, 1:-1], ends[:, None]], 1)

    def blend(self, video: Tensor) -> Tensor:
        """Closed, and its end drawn to its beginning as far as it must."""
        ends = torch.where(self.share < 1, video[:, :, :1], video[:, :, -1:])
        return torch.cat([drawn_to_start(torch.cat([ends, video[:, :, 1:-1]], 2)), ends], 2)


def luminance(frames: Tensor) -> Tensor:
    """Luminance of uint8 `(... 3)` in whole grey levels, rounded half up: uint8 `(...)`."""
    return ((_thousandths(frames.long()) + 500) // 1000).to(torch.uint8)


def _thousandths(colours: Tensor) -> Tensor:
    """Luminance times 1000 of `(... 3)`."""
    return (colours * colours.new_tensor(WEIGHTS)).sum(-1)


def _in_range(wanted: Tensor, mean: Tensor, over: tuple[int, ...]) -> Tensor:
    """Scale `wanted - mean` by the largest factor along `over` that stays within 0..255."""
    off = wanted - mean
    room = torch.where(off > 0, 255 - mean, mean) / off.abs()
    room = torch.where(off.abs() < 1e-9, torch.inf, room)  # rounding, at the edge of the range too
    return mean + off * room.amin(over, keepdim=True).clamp(max=1)


def _carried(known: Tensor, carry: float) -> Carried:
    """The nearest known times of each pixel, before (or at) and after, `(t h w)`, with weights.

    No other times count, since errors that correlate by carry^d are a Markov chain.
    """
    count = len(known)
    time = torch.arange(count, device=known.device).view(-1, 1, 1)
    before = torch.where(known, time, -1).cummax(0).values
    after = torch.where(known, time, count).flip(0).cummin(0).values.flip(0)
    after = torch.cat([after[1:], torch.full_like(after[:1], count)])
    one = torch.where(before < 0, 0.0, carry ** (time - before).double())
    two = torch.where(after == count, 0.0, carry ** (after - time).double())
    rest = 1 - (one * two).square()
    return (
        (before.clamp(min=0), (one * (1 - two.square()) / rest).float()),
        (after.clamp(max=count - 1), (two * (1 - one.square()) / rest).float()),
    )


def _carry(y: Tensor, carried: Carried) -> Tensor:
    one, two = (w * y.gather(2, at.expand_as(y)) for at, w in carried)
    return one + two


def _blur(video: Tensor) -> Tensor:
    """The mean over windows of 2 REACH + 1 pixels a side, of what lies inside the picture."""
    width = 2 * REACH + 1
    return F.avg_pool3d(video, (1, width, width), 1, (0, REACH, REACH), count_include_pad=False)
