"""Clips longer or larger than a network was trained on, by overlapping windows.

At every step the noisy clip is cut into windows of the trained shape, all are denoised, and their
predictions are averaged with smooth weights (MultiDiffusion, Bar-Tal et al. 2023, arXiv
2302.08113). Samplers, guidance and projections see one denoiser.

Along time a codec's latent frames are of two kinds: the first stands for one picture, each later
one for several, and networks know them so. In a long clip only latent frame 0 is of the first kind,
so every window has it at its head and a stretch of later frames behind; its prediction there counts
in the first window alone. It also keeps windows consistent that do not overlap: all see one picture
(compare the attention sinks of Xiao et al. 2023, arXiv 2309.17453). For the same reason noise
repeats along the clip (`RepeatedNoise`): details that the prompt leaves open are settled by noise,
and would change from window to window.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise, product

import torch
from torch import Tensor

from vidcm.diffusion.base import Cond, DenoiserBase, Prediction, batched
from vidcm.diffusion.control import Region
from vidcm.errors import UsageError
from vidcm.rng import Noise


@dataclass(frozen=True)
class Window(Region):
    """One window of a clip.

    Attributes:
        weights: `(t, h, w)` of its prediction; over all windows they sum to one.
    """

    weights: Tensor

    def add_to(self, total: Tensor, part: Tensor) -> None:
        """Add its weighted part to `total (b, c, t, h, w)`."""
        at = torch.tensor(self.frames, device=total.device)
        weights = self.weights.to(part)
        total[..., self.rows, self.columns].index_add_(2, at, part * weights)


class Windowed(DenoiserBase):
    """A denoiser of windows as a denoiser of clips of any size.

    Wrap it in guidance, not the other way round: conditions stay one per clip.

    Args:
        denoiser: A denoiser of clips no larger than a window.
        window: Latent frames, rows and columns the network was trained on. Clips within them pass
            through untouched.
        overlap: Latents shared by neighbouring windows on each axis, frame 0 not counted (default:
            a quarter of the window in time, half of it in space).
        rows: Clips per evaluation, which bounds memory.

    Raises:
        UsageError: For an overlap that leaves no step from window to window.
    """

    def __init__(
        self,
        denoiser: DenoiserBase,
        window: Sequence[int],
        overlap: Sequence[int] | None = None,
        rows: int = 16,
    ):
        frames, height, width = window
        overlap = overlap or ((frames - 1) // 4, height // 2, width // 2)
        own = (max(frames - 1, 1), height, width)
        if not all(0 <= o < n for o, n in zip(overlap, own, strict=True)):
            raise UsageError(
                f"windows of {tuple(window)} latents cannot overlap by {tuple(overlap)}; use 0 to "
                f"{tuple(n - 1 for n in own)}"
            )
        self.denoiser, self.path = denoiser, denoiser.path
        self.window, self.overlap, self.rows = tuple(window), tuple(overlap), rows

    def windows(self, frames: int, height: int, width: int) -> list[Window]:
        """The windows of a clip.

        Args:
            frames: Latent frames.
            height: In latents.
            width: In latents.

        Raises:
            UsageError: Several frames are asked of a model of single pictures.
        """
        times = list(_along_time(frames, self.window[0], self.overlap[0]))
        down, across = (
            _cover(n, w, o)
            for n, w, o in zip((height, width), self.window[1:], self.overlap[1:], strict=True)
        )
        return [
            Window(
                read,
                slice(top, top + len(v)),
                slice(left, left + len(h)),
                place,
                weight.view(-1, 1, 1) * v.view(-1, 1) * h,
            )
            for (read, weight, place), (top, v), (left, h) in product(times, down, across)
        ]

    def padded_frames(self, frames: int) -> int:
        """Smallest number of latent frames, at least `frames`, that windows tile exactly.

        Otherwise the last window would start early and average two phases of the motion.
        """
        length, step = self.window[0], self.window[0] - 1 - self.overlap[0]
        beyond = max(frames - length, 0)
        return length + math.ceil(beyond / step) * step if beyond and step else frames

    def repeated_noise(self, rng: Noise) -> "RepeatedNoise":
        """Noise of long clips that repeats from window to window."""
        return RepeatedNoise(rng, self.window[0], max(self.window[0] - 1 - self.overlap[0], 1))

    def predict(self, x_t: Tensor, t: Tensor, cond: Cond, s: Tensor | None = None) -> Prediction:
        windows = self.windows(*x_t.shape[2:])
        if len(windows) == 1:
            return self.denoiser.predict(x_t, t, cond.inside(windows[0]), s)
        x0, eps = (torch.zeros_like(x_t) for _ in range(2))
        count = max(self.rows // len(x_t), 1)
        for some in (windows[i : i + count] for i in range(0, len(windows), count)):
            found = self.denoiser.predict(
                torch.cat([w.of(x_t) for w in some]),
                torch.cat([_times_of(w, t) for w in some]),
                batched([cond.inside(w) for w in some]),
                None if s is None else torch.cat([_times_of(w, s) for w in some]),
            )
            for total, parts in ((x0, found.x0), (eps, found.eps)):
                for window, part in zip(some, parts.chunk(len(some)), strict=True):
                    window.add_to(total, part)
        return Prediction(x0, eps, self.path.velocity(x0, eps, t))


@dataclass(frozen=True)
class PromptSchedule(Cond):
    """Prompts that change along a clip.

    A window has the one condition at its middle; where windows overlap, conditions cross-fade.

    Attributes:
        later: (place in latent frames, condition) of the prompts after the first, in order.
    """

    later: tuple[tuple[float, Cond], ...] = field(default=())

    @classmethod
    def of(cls, first: Cond, later: Sequence[tuple[float, Cond]]) -> "PromptSchedule":
        """A schedule from its first condition and the later ones."""
        control = first.control
        return cls(first.tokens, first.mask, first.guidance_scale, control, tuple(later))

    def stack(self, other: Cond) -> "PromptSchedule":
        """Each condition with `other`, as one batch."""
        return PromptSchedule.of(super().stack(other), [(p, c.stack(other)) for p, c in self.later])

    def inside(self, region: Region) -> Cond:
        first = Cond(self.tokens, self.mask, self.guidance_scale)
        found = next((c for start, c in reversed(self.later) if start <= region.place), first)
        return self.with_text(found).inside(region)

    def rows(self, part: slice | Tensor) -> "PromptSchedule":
        return PromptSchedule.of(super().rows(part), [(p, c.rows(part)) for p, c in self.later])


class RepeatedNoise:
    """Noise that repeats along a clip, so that windows agree on details no prompt names.

    FreeNoise, Qiu et al. 2023, arXiv 2310.15169.

    Args:
        rng: Draws of the clips.
        length: Latent frames that are drawn: those of a clip of that length.
        period: From frame 1 on they repeat after so many frames.
    """

    def __init__(self, rng: Noise, length: int, period: int):
        self.rng, self.length, self.period = rng, length, period

    def __len__(self) -> int:
        return len(self.rng)

    def normal(self, *shape: int) -> Tensor:
        """Noise of clips `(b, c, t, h, w)`, from a shape `(c, t, h, w)`."""
        channels, frames, *size = shape
        drawn = self.rng.normal(channels, min(frames, self.length), *size)
        if frames <= self.length:
            return drawn
        return drawn[:, :, [0, *(1 + i % self.period for i in range(frames - 1))]]


def _along_time(
    frames: int, length: int, overlap: int
) -> Iterator[tuple[list[int], Tensor, float]]:
    """(latent frames read, their weights, the middle) of windows along time."""
    if frames <= length:
        yield list(range(frames)), torch.ones(frames, dtype=torch.float64), frames / 2
        return
    if length == 1:
        raise UsageError(f"{frames} latent frames asked of a model of single pictures; ask for 1")
    for start, weights in _cover(frames - 1, length - 1, overlap):
        head = weights.new_tensor([1.0 if start == 0 else 0.0])
        own = range(start + 1, start + length)
        yield [0, *own], torch.cat([head, weights]), start + 1 + len(own) / 2


def _cover(total: int, length: int, overlap: int) -> list[tuple[int, Tensor]]:
    """Starts and weights of windows that cover an axis; the weights, float64, sum to one."""
    if total <= length:
        return [(0, torch.ones(total, dtype=torch.float64))]
    starts = [*range(0, total - length, length - overlap), total - length]
    ramp = ((torch.arange(length, dtype=torch.float64) + 0.5) * (torch.pi / length)).sin().square()
    height = torch.zeros(total, dtype=torch.float64)
    for start in starts:
        height[start : start + length] += ramp
    return [(start, ramp / height[start : start + length]) for start in starts]


def _times_of(window: Window, t: Tensor) -> Tensor:
    """Times `(b,)`, or those `(b, t)` of a window's frames."""
    return t if t.ndim == 1 else t[:, window.frames]


def check_schedule(
    schedule: Sequence[tuple[int, str]], places: Sequence[float], windows: Sequence[float]
) -> None:
    """Refuse prompts that no window of a clip has, or that are in no order.

    Args:
        schedule: (frame, prompt) of the prompts after the first.
        places: Where they start, in latent frames.
        windows: Middles of the windows, in latent frames.

    Raises:
        UsageError: A prompt would have no effect, or the frames do not ascend.
    """
    if not schedule:
        return
    starts = [frame for frame, _ in schedule]
    if starts != sorted(set(starts)) or starts[0] < 1:
        raise UsageError(
            f"prompts take over at the frames {', '.join(map(str, starts))}; give frames from 1 "
            "up, each later than the one before"
        )
    ends = [0.0, *places, math.inf]
    for i, (start, end) in enumerate(pairwise(ends)):
        if not any(start <= place < end for place in windows):
            which = f"the prompt from frame {starts[i - 1]} on" if i else "the first prompt"
            raise UsageError(
                f"{which} would show nowhere: a clip has one prompt per window, and this one has "
                f"{len(set(windows))}; ask for more frames, or let prompts take over further apart"
            )
