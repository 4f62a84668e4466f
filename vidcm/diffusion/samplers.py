"""Samplers: functions of (denoiser, x, times, cond, rng, on_step). Guidance is a denoiser.

All share one signature, `Sampler`. With alpha, sigma of the path, t -> s an interval of the times
and x0, eps, v the denoiser's prediction at (x_t, t):

    euler        x_s = x_t + (s - t) v
    heun         x_s = x_t + (s - t) (v(x_t, t) + v(x_t + (s - t) v, s)) / 2
    dpm          x_s = sigma_s / sigma_t x_t + (alpha_s - alpha_t sigma_s / sigma_t) D
    consistency  x_s = alpha_s f(x_t, t) + sigma_s eps', eps' fresh noise
    flow_map     x_s = alpha_s x0(x_t, t, s) + sigma_s eps(x_t, t, s)
"""

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Protocol

import torch
from torch import Tensor

from vidcm.diffusion.base import Cond, DenoiserBase
from vidcm.rng import Noise

# Called after each step as (step from 0, its time, latents); returns the latents to go on with, and
# may raise to cancel.
OnStep = Callable[[int, float, Tensor], Tensor]


def keep(step: int, time: float, x: Tensor) -> Tensor:
    """The callback that changes nothing."""
    return x


class Sampler(Protocol):
    """Clean latents from noisy ones.

    Args:
        denoiser: Any denoiser, guided or projected ones among them.
        x: Noisy latents `(b, c, t, h, w)` at the first of `times`.
        times: Descending times on the denoiser's path. ODE solvers integrate from the first to the
            last; students' samplers evaluate once at each and end at the data.
        cond: One condition per sample.
        rng: Fresh noise; only `consistency` draws.
        on_step: Called after every step.
    """

    def __call__(
        self,
        denoiser: DenoiserBase,
        x: Tensor,
        times: Sequence[float] | Tensor,
        cond: Cond,
        rng: Noise,
        on_step: OnStep = keep,
    ) -> Tensor: ...


@torch.no_grad()
def euler(
    denoiser: DenoiserBase,
    x: Tensor,
    times: Sequence[float] | Tensor,
    cond: Cond,
    rng: Noise | None = None,
    on_step: OnStep = keep,
) -> Tensor:
    """First order, one evaluation per interval: x_s = x_t + (s - t) v."""
    for step, t, s in _intervals(times):
        x = on_step(step, t, x + (s - t) * denoiser.velocity(x, _at(t, x), cond))
    return x


@torch.no_grad()
def heun(
    denoiser: DenoiserBase,
    x: Tensor,
    times: Sequence[float] | Tensor,
    cond: Cond,
    rng: Noise | None = None,
    on_step: OnStep = keep,
) -> Tensor:
    """Heun's method (Karras et al. 2022, arXiv 2206.00364, algorithm 1), of second order.

    x_s = x_t + (s - t) (v_t + v_s) / 2: two evaluations per interval, one if it ends at data.
    """
    for step, t, s in _intervals(times):
        slope = denoiser.velocity(x, _at(t, x), cond)
        ahead = x + (s - t) * slope
        if s > 0:
            slope = (slope + denoiser.velocity(ahead, _at(s, x), cond)) / 2
            ahead = x + (s - t) * slope
        x = on_step(step, t, ahead)
    return x


@torch.no_grad()
def dpm(
    denoiser: DenoiserBase,
    x: Tensor,
    times: Sequence[float] | Tensor,
    cond: Cond,
    rng: Noise | None = None,
    on_step: OnStep = keep,
) -> Tensor:
    """DPM-Solver++(2M) (Lu et al. 2022, arXiv 2211.01095, algorithm 2), of second order.

    x_s = sigma_s / sigma_t x_t + (alpha_s - alpha_t sigma_s / sigma_t) D, where
    D = x0 + (x0 - x0') h / (2 h'), x0' and h' are those of the interval before, and h = ln of the
    ratio of sigma / alpha. One evaluation per interval. The first interval, and those at pure noise
    or data, are first order: D = x0.
    """
    path, before = denoiser.path, None
    for step, t, s in _intervals(times):
        now, to = (torch.tensor([u], dtype=torch.float64) for u in (t, s))
        x0 = denoiser.predict(x, _at(t, x), cond).x0
        depth = float(path.sigma_ratio(now).log() - path.sigma_ratio(to).log())
        ahead = x0
        if before is not None and math.isfinite(before[1]) and math.isfinite(depth):
            ahead = x0 + (x0 - before[0]) * (depth / before[1] / 2)
        before = x0, depth
        shrink = float(path.sigma(to) / path.sigma(now))
        drift = float(path.alpha(to) - path.alpha(now) * shrink)
        x = on_step(step, t, shrink * x + drift * ahead)
    return x


@torch.no_grad()
def consistency(
    denoiser: DenoiserBase,
    x: Tensor,
    times: Sequence[float] | Tensor,
    cond: Cond,
    rng: Noise,
    on_step: OnStep = keep,
) -> Tensor:
    """Multistep consistency sampling (Song et al. 2023, arXiv 2303.01469, algorithm 1).

    Predict the data, add fresh noise up to the next time; as many evaluations as times.
    """
    for step, t in enumerate(float(t) for t in times):
        if step:
            x = denoiser.path.add_noise(x, rng.normal(*x.shape[1:]), _at(t, x))
        x = on_step(step, t, denoiser.predict_x0(x, _at(t, x), cond))
    return x


@torch.no_grad()
def flow_map(
    denoiser: DenoiserBase,
    x: Tensor,
    times: Sequence[float] | Tensor,
    cond: Cond,
    rng: Noise | None = None,
    on_step: OnStep = keep,
) -> Tensor:
    """Deterministic sampling with a flow map or a phased student.

    Jump from each time to the next and from the last to the data; as many evaluations as times.
    """
    for step, t, s in _intervals([*map(float, times), 0.0]):
        x = on_step(step, t, denoiser.flow_map(x, _at(t, x), _at(s, x), cond))
    return x


SOLVERS: dict[str, Sampler] = {"euler": euler, "heun": heun, "dpm": dpm}  # of teachers
SAMPLERS: dict[str, Sampler] = {"consistency": consistency, "flow_map": flow_map}  # of students


def _at(time: float, x: Tensor) -> Tensor:
    return x.new_full((len(x),), time)


def _intervals(times: Sequence[float] | Tensor) -> Iterator[tuple[int, float, float]]:
    """(step, t, s) of neighbouring times."""
    for step, (t, s) in enumerate(pairwise(map(float, times))):
        yield step, t, s
