"""Samplers against diffusers' schedulers, where both claim to compute the same."""

import pytest
import torch

from vidcm.diffusion import samplers
from vidcm.diffusion.base import Cond, DenoiserBase, Prediction
from vidcm.diffusion.paths import ProbPath, RectifiedFlow, VarianceExploding
from vidcm.diffusion.shapes import like

SHAPE = (2, 3, 5, 2, 7)
COND = Cond(torch.zeros(2, 1, 1), torch.ones(2, 1, dtype=torch.bool))


class Posterior(DenoiserBase):
    """Posterior mean of Gaussian data N(0.3, 0.5^2), bent, so that solvers differ."""

    def __init__(self, path: ProbPath):
        self.path = path

    def x0(self, x, sigma, alpha):
        gain = 0.25 * alpha / (0.25 * alpha**2 + sigma**2)
        return torch.tanh(0.3 + gain * (x - 0.3 * alpha))

    def predict(self, x_t, t, cond, s=None):
        alpha, sigma = (like(f(t), x_t) for f in (self.path.alpha, self.path.sigma))
        x0 = self.x0(x_t, sigma, alpha)
        eps = (x_t - alpha * x0) / sigma
        return Prediction(x0, eps, self.path.velocity(x0, eps, t))


class Draws:
    """The same noise for both."""

    def __init__(self):
        self.generator = torch.Generator().manual_seed(11)

    def normal(self, *shape):
        return torch.randn(2, *shape, generator=self.generator, dtype=torch.float64)


def flow_velocity(model, x, sigma):
    x0 = model.x0(x, sigma, 1 - sigma)
    return (x - x0) / sigma


def run(scheduler, model, x, steps, **options):
    """The loop of diffusers' pipelines; returns its latents and the levels it used."""
    scheduler.set_timesteps(steps)
    levels = scheduler.sigmas.double()
    for i, time in enumerate(scheduler.timesteps):
        index = i if scheduler.step_index is None else scheduler.step_index
        x = scheduler.step(
            flow_velocity(model, x, levels[index]), time, x, return_dict=False, **options
        )[0]
    return x, levels.tolist()


@pytest.fixture
def start():
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


@pytest.mark.parametrize("steps", [1, 2, 5])
@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_euler(start, steps, shift):
    from diffusers import FlowMatchEulerDiscreteScheduler

    model = Posterior(RectifiedFlow())
    theirs, levels = run(FlowMatchEulerDiscreteScheduler(shift=shift), model, start, steps)
    ours = samplers.euler(model, start, levels, COND)
    assert torch.allclose(ours, theirs, atol=1e-6)


@pytest.mark.parametrize("steps", [2, 5])
def test_heun(start, steps):
    from diffusers import FlowMatchHeunDiscreteScheduler

    model = Posterior(RectifiedFlow())
    theirs, levels = run(FlowMatchHeunDiscreteScheduler(shift=3.0), model, start, steps)
    times = [levels[0], *levels[1::2]]  # every level but the first and the last is there twice
    ours = samplers.heun(model, start, list(dict.fromkeys(times)), COND)
    assert torch.allclose(ours, theirs, atol=1e-6)


@pytest.mark.parametrize("steps", [2, 5, 9])
def test_dpm(start, steps):
    from diffusers import DPMSolverMultistepScheduler

    model = Posterior(RectifiedFlow())
    scheduler = DPMSolverMultistepScheduler(
        prediction_type="flow_prediction",
        use_flow_sigmas=True,
        flow_shift=3.0,
        solver_order=2,
        algorithm_type="dpmsolver++",
        lower_order_final=False,
    )
    theirs, levels = run(scheduler, model, start, steps)
    ours = samplers.dpm(model, start, levels, COND)
    assert torch.allclose(ours, theirs, atol=1e-5)


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_flow_map(start, steps):
    from diffusers import FlowMapEulerDiscreteScheduler

    model = Posterior(RectifiedFlow())
    scheduler = FlowMapEulerDiscreteScheduler(shift=5.0)
    scheduler.set_timesteps(steps)
    x, times = start, [float(t) / 1000 for t in scheduler.timesteps]
    for time, to in zip(times, [*times[1:], 0.0], strict=True):
        x = scheduler.step(
            flow_velocity(model, x, torch.tensor(time)),
            torch.tensor(time * 1000),
            x,
            r_timestep=torch.tensor(to * 1000),
            return_dict=False,
        )[0]
    ours = samplers.flow_map(model, start, times, COND)
    assert torch.allclose(ours, x, atol=1e-6)


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_consistency(start, steps):
    """Multistep consistency sampling on EDM's levels, with the noise drawn by both alike."""
    from diffusers import CMStochasticIterativeScheduler
    from diffusers.schedulers import scheduling_consistency_models as module

    model, draws = Posterior(VarianceExploding()), Draws()
    scheduler = CMStochasticIterativeScheduler(sigma_min=0.001, sigma_max=80.0)
    scheduler.set_timesteps(steps)
    levels = scheduler.sigmas.double()[:-1]
    x = start * levels[0]

    original = module.randn_tensor
    module.randn_tensor = lambda shape, **_: draws.normal(*shape[1:])
    try:
        for i, time in enumerate(scheduler.timesteps):
            sigma = levels[i]
            skip, out = scheduler.get_scalings_for_boundary_condition(sigma)
            x0 = model.x0(x, sigma, torch.ones(()))
            x = scheduler.step((x0 - skip * x) / out, time, x, return_dict=False)[0]
    finally:
        module.randn_tensor = original
    ours = samplers.consistency(model, start * levels[0], levels, COND, Draws())
    assert torch.allclose(ours, x.clamp(-1, 1), atol=1e-4)


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_consistency_on_rectified_flow(start, steps):
    from diffusers import FlowMatchLCMScheduler

    model, draws = Posterior(RectifiedFlow()), Draws()
    scheduler = FlowMatchLCMScheduler(shift=3.0)
    from diffusers.schedulers import scheduling_flow_match_lcm as module

    original = module.randn_tensor
    module.randn_tensor = lambda shape, **_: draws.normal(*shape[1:])
    try:
        theirs, levels = run(scheduler, model, start, steps)
    finally:
        module.randn_tensor = original
    ours = samplers.consistency(model, start, levels[:-1], COND, Draws())
    assert torch.allclose(ours, theirs, atol=1e-6)
