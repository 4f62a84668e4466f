"""Samplers: functions of (denoiser, noise, times, cond). Guidance is a denoiser, not an option.

Each reports to `progress(step, steps)`, which may raise to cancel.
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Protocol

import torch
from torch import Tensor

from vidcm.denoiser import Cond
from vidcm.paths import Path
from vidcm.rng import SampleRng

Progress = Callable[[int, int], None]


class Flow(Protocol):
    """What ODE samplers need of a denoiser."""

    path: Path

    def velocity(self, x_t: Tensor, t: Tensor, cond: Cond) -> Tensor: ...


class Consistent(Protocol):
    """What the consistency sampler needs of one."""

    path: Path

    def clean(self, x_t: Tensor, t: Tensor, cond: Cond) -> Tensor: ...


def _quiet(step: int, steps: int) -> None:
    pass


@torch.no_grad()
def euler(
    denoiser: Flow,
    x: Tensor,
    times: Sequence[float] | Tensor,
    cond: Cond,
    progress: Progress = _quiet,
) -> Tensor:
    """First order, one evaluation per interval: from `x` at the first of `times` (descending) to
    the last."""
    for t, s in _intervals(times, progress):
        x = x + (s - t) * denoiser.velocity(x, x.new_full((len(x),), t), cond)
    return x


@torch.no_grad()
def heun(
    denoiser: Flow,
    x: Tensor,
    times: Sequence[float] | Tensor,
    cond: Cond,
    progress: Progress = _quiet,
) -> Tensor:
    """Second order (Karras et al. 2022, algorithm 1): as `euler` with two evaluations per interval,
    but one in the last, whose end at zero noise has no slope of its own."""
    for t, s in _intervals(times, progress):
        slope = denoiser.velocity(x, x.new_full((len(x),), t), cond)
        ahead = x + (s - t) * slope
        if s > 0:
            slope = (slope + denoiser.velocity(ahead, x.new_full((len(x),), s), cond)) / 2
            ahead = x + (s - t) * slope
        x = ahead
    return x


def _intervals(
    times: Sequence[float] | Tensor, progress: Progress
) -> Iterator[tuple[float, float]]:
    """Neighbouring times; reports each interval when its work is done."""
    grid = [float(t) for t in times]
    for i, interval in enumerate(pairwise(grid), start=1):
        yield interval
        progress(i, len(grid) - 1)


@torch.no_grad()
def consistency(
    denoiser: Consistent,
    noise: Tensor,
    times: Sequence[float],
    cond: Cond,
    rng: SampleRng,
    progress: Progress = _quiet,
) -> Tensor:
    """Multistep consistency sampling (Song et al. 2023, arXiv 2303.01469, algorithm 1): jump to
    data, noise again to the next time, as many evaluations as `times` (descending).

    Takes unit noise, which the first time scales; fresh noise comes from `rng`.
    """
    x = noise
    for i, time in enumerate(times):
        t = noise.new_full((len(noise),), time)
        x_t = denoiser.path.noise(torch.zeros_like(x) if i == 0 else x, noise, t)
        x = denoiser.clean(x_t, t, cond)
        progress(i + 1, len(times))
        noise = rng.normal(*noise.shape[1:])
    return x
