"""Samplers: functions of (denoiser, noise, times, cond). Guidance is a denoiser, not an option.

Each reports to `progress(step, steps)`, which may raise to cancel.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Any, Protocol

import torch
from torch import Tensor

from vidcm.diffusion.base import Cond
from vidcm.diffusion.paths import ProbPath
from vidcm.diffusion.times import STEPS
from vidcm.rng import SampleRng

Progress = Callable[[int, int], None]


class Flow(Protocol):
    """What ODE samplers need of a denoiser."""

    path: ProbPath

    def velocity(self, x_t: Tensor, t: Tensor, cond: Cond) -> Tensor: ...


class Consistent(Protocol):
    """What the consistency sampler needs of one."""

    path: ProbPath

    def predict_x0(self, x_t: Tensor, t: Tensor, cond: Cond) -> Tensor: ...


class Jumping(Protocol):
    """What the jump sampler needs of one."""

    path: ProbPath

    def flow_map(self, x_t: Tensor, t: Tensor, s: Tensor, cond: Cond) -> Tensor: ...


class Student(Consistent, Jumping, Protocol):
    """What either sampler of students needs of one."""


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


@torch.no_grad()
def dpm(
    denoiser: Flow,
    x: Tensor,
    times: Sequence[float] | Tensor,
    cond: Cond,
    progress: Progress = _quiet,
) -> Tensor:
    """DPM-Solver++(2M) (Lu et al. 2022, arXiv 2211.01095, algorithm 2): second order with one
    evaluation per interval, as it extrapolates from the clean latents of the interval before. The
    first interval, and those that touch pure noise or data, are first order."""
    path, before = denoiser.path, None
    for t, s in _intervals(times, progress):
        now, to = (torch.tensor([u], dtype=torch.float64) for u in (t, s))
        at = x.new_full((len(x),), t)
        x0, _ = path.to_x0_eps(x, denoiser.velocity(x, at, cond), at)
        depth = float(path.sigma_ratio(now).log() - path.sigma_ratio(to).log())  # of this interval
        ahead = x0
        if before is not None and math.isfinite(before[1]) and math.isfinite(depth):
            ahead = x0 + (x0 - before[0]) * (depth / before[1] / 2)
        before = x0, depth
        shrink = float(path.sigma(to) / path.sigma(now))
        x = shrink * x + float(path.alpha(to) - path.alpha(now) * shrink) * ahead
    return x


SOLVERS = {"euler": euler, "heun": heun, "dpm": dpm}  # of teachers, by their names in settings


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
        x_t = denoiser.path.add_noise(torch.zeros_like(x) if i == 0 else x, noise, t)
        x = denoiser.predict_x0(x_t, t, cond)
        progress(i + 1, len(times))
        noise = rng.normal(*noise.shape[1:])
    return x


@torch.no_grad()
def flow_map(
    denoiser: Jumping,
    noise: Tensor,
    times: Sequence[float],
    cond: Cond,
    rng: SampleRng,
    progress: Progress = _quiet,
) -> Tensor:
    """Deterministic sampling with a flow map or a phased student: from each of `times`
    (descending) to the next and from the last to data, as many evaluations as times.

    Takes what `consistency` takes, unit noise among it, but draws nothing from `rng`.
    """
    first = noise.new_full((len(noise),), times[0])
    x = denoiser.path.add_noise(torch.zeros_like(noise), noise, first)
    for t, s in _intervals([*times, 0.0], progress):
        x = denoiser.flow_map(x, x.new_full((len(x),), t), x.new_full((len(x),), s), cond)
    return x


SAMPLERS = {
    "consistency": consistency,
    "flow_map": flow_map,
}  # of students, by their names in settings


def student_settings(objective: object) -> dict[str, Any]:
    """How students of an objective are sampled, as `pipeline.json` has it: `sampler`, a name among
    SAMPLERS; `times`, rectified-flow times by number of steps; `phases`, where no other number of
    steps makes sense. An objective says in its attribute `sampling` what differs from the usual."""
    return {"sampler": "consistency", "times": STEPS} | getattr(objective, "sampling", {})
