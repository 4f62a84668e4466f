"""Samplers: functions of (denoiser, noise, times, cond). Guidance is a denoiser, not an option.

Each is a generator-free loop that reports to `progress(step, steps)`, which may raise to cancel.
"""

from collections.abc import Callable, Sequence
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
    noise: Tensor,
    times: Sequence[float] | Tensor,
    cond: Cond,
    progress: Progress = _quiet,
) -> Tensor:
    """First order: one evaluation per interval of `times` (descending, the last is where to stop)."""
    x, times = noise, [float(t) for t in times]
    for i, (t, s) in enumerate(zip(times[:-1], times[1:], strict=True)):
        x = x + (s - t) * denoiser.velocity(x, x.new_full((len(x),), t), cond)
        progress(i + 1, len(times) - 1)
    return x


@torch.no_grad()
def heun(
    denoiser: Flow,
    noise: Tensor,
    times: Sequence[float] | Tensor,
    cond: Cond,
    progress: Progress = _quiet,
) -> Tensor:
    """Second order (Karras et al. 2022, algorithm 1): two evaluations per interval, but one in the
    last, whose end at zero noise has no slope of its own."""
    x, times = noise, [float(t) for t in times]
    for i, (t, s) in enumerate(zip(times[:-1], times[1:], strict=True)):
        slope = denoiser.velocity(x, x.new_full((len(x),), t), cond)
        ahead = x + (s - t) * slope
        if s > 0:
            slope = (slope + denoiser.velocity(ahead, x.new_full((len(x),), s), cond)) / 2
            ahead = x + (s - t) * slope
        x = ahead
        progress(i + 1, len(times) - 1)
    return x


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
