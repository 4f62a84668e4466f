"""Clips longer or larger than a network was trained on, by overlapping windows that share one
trajectory (MultiDiffusion, Bar-Tal et al. 2023, arXiv 2302.08113).

At every step the noisy clip is cut into windows of the trained shape, all are denoised, and what
overlaps is averaged with smooth weights. Samplers, guidance and projections see one denoiser.

Along time a codec's latent frames are of two kinds: the first stands for one picture, each later
one for several, and that is how the network knows them. In a long clip only latent frame 0 is of
the first kind, so every window has it at its head and a stretch of later frames behind; what comes
out there counts in the first window alone. It also holds windows together that do not overlap: all
look at one picture (compare the attention sinks of Xiao et al. 2023, arXiv 2309.17453). For the
same reason noise recurs along the clip (`Recurring`): what the prompt leaves open is settled by
noise, and would change from window to window.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise, product

import torch
from torch import Tensor

from vidcm.diffusion.base import Cond, DenoiserBase, Prediction, batched
from vidcm.errors import UsageError
from vidcm.rng import SampleRng


@dataclass(frozen=True)
class Window:
    """frames: the latent frames it reads, in order. rows, columns: where it lies in space.
    weights: `(t h w)` of what it gives to each position; over all windows they sum to one.
    place: the middle of its frames along the clip, the head left out."""

    frames: list[int]
    rows: slice
    columns: slice
    weights: Tensor
    place: float

    def of(self, x: Tensor) -> Tensor:
        """Its part of `x (b c t h w)`."""
        return x[:, :, self.frames, self.rows, self.columns]

    def give(self, total: Tensor, part: Tensor) -> None:
        """Add its weighted part to `total (b c t h w)`."""
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
        """What covers a clip of so many latents. Raises UsageError for clips of a network that was
        trained on single pictures."""
        times = list(_along_time(frames, self.window[0], self.overlap[0]))
        down, across = (
            _cover(n, w, o)
            for n, w, o in zip((height, width), self.window[1:], self.overlap[1:], strict=True)
        )
        return [
            Window(
                seen,
                slice(top, top + len(v)),
                slice(left, left + len(h)),
                weight.view(-1, 1, 1) * v.view(-1, 1) * h,
                place,
            )
            for (seen, weight, place), (top, v), (left, h) in product(times, down, across)
        ]

    def room(self, frames: int) -> int:
        """The latent frames, `frames` or a few more, that windows fill without shifting the last
        one back: it would blend two different moments of what windows show."""
        length, step = self.window[0], self.window[0] - 1 - self.overlap[0]
        beyond = max(frames - length, 0)
        return length + math.ceil(beyond / step) * step if beyond and step else frames

    def recurring(self, rng: SampleRng) -> "Recurring":
        """Draws of whole clips that come round from window to window."""
        return Recurring(rng, self.window[0], max(self.window[0] - 1 - self.overlap[0], 1))

    def predict(self, x_t: Tensor, t: Tensor, cond: Cond, s: Tensor | None = None) -> Prediction:
        windows = self.windows(*x_t.shape[2:])
        if len(windows) == 1:
            return self.denoiser.predict(x_t, t, cond.at(windows[0].place), s)
        x0, eps = (torch.zeros_like(x_t) for _ in range(2))
        count = max(self.rows // len(x_t), 1)
        for some in (windows[i : i + count] for i in range(0, len(windows), count)):
            found = self.denoiser.predict(
                torch.cat([w.of(x_t) for w in some]),
                torch.cat([_seen(t, w) for w in some]),
                batched([cond.at(w.place) for w in some]),
                None if s is None else torch.cat([_seen(s, w) for w in some]),
            )
            for total, parts in ((x0, found.x0), (eps, found.eps)):
                for window, part in zip(some, parts.chunk(len(some)), strict=True):
                    window.give(total, part)
        return Prediction(x0, eps, self.path.velocity(x0, eps, t))


@dataclass(frozen=True)
class Schedule(Cond):
    """Prompts that change along a clip. later: (place, condition) in order; a window has the one
    condition that holds at its middle, and where windows overlap, conditions cross-fade."""

    later: tuple[tuple[float, Cond], ...] = field(default=())

    @classmethod
    def of(cls, first: Cond, later: Sequence[tuple[float, Cond]]) -> "Schedule":
        return cls(first.tokens, first.mask, first.guidance_scale, tuple(later))

    def stack(self, other: Cond) -> "Schedule":
        """Each with `other`, as one batch."""
        return Schedule.of(super().stack(other), [(p, c.stack(other)) for p, c in self.later])

    def at(self, place: float) -> Cond:
        first = Cond(self.tokens, self.mask, self.guidance_scale)
        return next((c for start, c in reversed(self.later) if start <= place), first)


class Recurring(SampleRng):
    """Noise that recurs along a clip, for windows to agree on what no prompt says (noise in turn
    for windows: FreeNoise, Qiu et al. 2023, arXiv 2310.15169). The first `length` latent frames are
    drawn, those of a clip of that length by the same generators; from frame 1 on they come round
    every `period` frames."""

    def __init__(self, rng: SampleRng, length: int, period: int):
        self.device, self.generators = rng.device, rng.generators
        self.length, self.period = length, period

    def normal(self, *shape: int) -> Tensor:
        """Noise of whole clips `(b, c t h w)`."""
        channels, frames, *size = shape
        drawn = super().normal(channels, min(frames, self.length), *size)
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


def _seen(t: Tensor, window: Window) -> Tensor:
    """Times `(b,)`, or those `(b, t)` of a window's frames."""
    return t if t.ndim == 1 else t[:, window.frames]


def check_then(
    then: Sequence[tuple[int, str]], places: Sequence[float], windows: Sequence[float]
) -> None:
    """Refuse prompts that no window of a clip would show, or in no order. places: of the prompts,
    windows: the middles of the windows, both along the latents. Raises UsageError."""
    if not then:
        return
    starts = [frame for frame, _ in then]
    if starts != sorted(set(starts)) or starts[0] < 1:
        raise UsageError(
            f"prompts take over at the frames {', '.join(map(str, starts))}; give frames from 1 "
            "up, each later than the one before"
        )
    ends = [0.0, *places, math.inf]
    for i, (start, end) in enumerate(pairwise(ends)):
        if not any(start <= place < end for place in windows):
            shown = f"the prompt from frame {starts[i - 1]} on" if i else "the first prompt"
            raise UsageError(
                f"{shown} would show nowhere: a clip has one prompt per window, and this one has "
                f"{len(set(windows))}; ask for more frames, or let prompts take over further apart"
            )
