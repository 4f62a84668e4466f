"""Samplers against the exact flow of the Gaussian world: their order, their law, their repeatability."""

import math

import pytest
import torch
from oracle import PATHS, Gaussian, start

from vidcm.diffusion.base import DenoiserBase
from vidcm.diffusion.guidance import CFGDenoiser
from vidcm.diffusion.paths import RectifiedFlow
from vidcm.diffusion.samplers import consistency, dpm, euler, flow_map, heun
from vidcm.diffusion.times import shifted_timesteps, student_timesteps
from vidcm.rng import SampleRng, mix

NAMES = [type(p).__name__ for p in PATHS]
every_path = pytest.mark.parametrize("path", PATHS, ids=NAMES)


class Calls(DenoiserBase):
    """Counts evaluations of a denoiser."""

    def __init__(self, world: Gaussian):
        self.world, self.path, self.count = world, world.path, 0

    def predict(self, x_t, t, cond, s=None):
        self.count += 1
        return self.world.predict(x_t, t, cond, s)


class Steps:
    """A callback that keeps what it is called with."""

    def __init__(self):
        self.seen = []

    def __call__(self, step, time, x):
        self.seen.append((step, time))
        return x


class PosteriorMean(Gaussian):
    """What a diffusion model's one-step guess is: right on average, and nothing but averages."""

    def predict(self, x_t, t, cond, s=None):
        return super().predict(x_t, t, cond)


def error(sampler, world: Gaussian, steps: int, start: float = 20.0, stop: float = 0.1) -> float:
    """Distance to the exact flow between two noise ratios, in equal steps of the path's own time."""
    x = torch.linspace(-2, 2, 5, dtype=torch.float64).view(1, 5, 1, 1, 1)
    ends = world.path.t_from_sigma(torch.tensor([start, stop], dtype=torch.float64))
    times = torch.linspace(float(ends[0]), float(ends[1]), steps + 1, dtype=torch.float64)
    cond = world.encode([""])
    exact = world.flow(x, ends[:1], ends[1:], cond)
    return float((sampler(world, x, times, cond) - exact).abs().max())


@every_path
@pytest.mark.parametrize("sampler, order, coarse", [(euler, 1, 60), (heun, 2, 60), (dpm, 2, 480)])
def test_order_of_convergence(path, sampler, order, coarse):
    errors = [error(sampler, Gaussian(path), 2**k * coarse) for k in range(3)]
    rates = [math.log2(a / b) for a, b in zip(errors, errors[1:], strict=False)]
    assert rates[-1] == pytest.approx(order, abs=0.12) and errors[-1] < 0.05


@every_path
def test_dpm_extrapolates_as_the_paper_has_it_over_intervals_that_differ(path):
    """Lu et al. 2022, algorithm 2, in its own words; a ratio of intervals upside down would keep
    the order and magnify the error."""
    world, x = Gaussian(path), torch.linspace(-2, 2, 5, dtype=torch.float64).view(1, 5, 1, 1, 1)
    times, cond = (
        path.t_from_sigma(torch.tensor([9.0, 4.0, 0.5], dtype=torch.float64)),
        world.encode([""]),
    )
    alpha, sigma = path.alpha(times), path.sigma(times)
    h = (alpha / sigma).log().diff()
    data = [world.predict(x, times[:1], cond).x0]
    first = sigma[1] / sigma[0] * x - alpha[1] * torch.expm1(-h[0]) * data[0]
    data.append(world.predict(first, times[1:2], cond).x0)
    r = h[0] / h[1]
    ahead = (1 + 1 / (2 * r)) * data[1] - 1 / (2 * r) * data[0]
    second = sigma[2] / sigma[1] * first - alpha[2] * torch.expm1(-h[1]) * ahead
    torch.testing.assert_close(dpm(world, x, times, cond), second)


def test_order_holds_with_guidance():
    world = Gaussian(RectifiedFlow(), means={"": 0.2, "up": 1.0})
    x = torch.randn(1, 3, 1, 2, 2, dtype=torch.float64)
    up, none = world.encode(["up"]), world.encode([""])
    exact = world.flow(
        x, torch.ones(1), torch.zeros(1), world.encode(["up"], torch.full((1,), 4.0))
    )
    errors = [
        float(
            (euler(CFGDenoiser(world, 4.0, none), x, shifted_timesteps(n), up) - exact).abs().max()
        )
        for n in (50, 100)
    ]
    assert errors[0] / errors[1] == pytest.approx(2, rel=0.1)


@pytest.mark.parametrize("sampler, evaluations", [(euler, 7), (heun, 13), (dpm, 7)])
def test_evaluations_and_progress(sampler, evaluations):
    world, steps, times = Calls(Gaussian(RectifiedFlow())), Steps(), shifted_timesteps(7)
    x = torch.randn(2, 1, 1, 1, 1)
    sampler(world, x, times, world.world.encode(["", ""]), on_step=steps)
    assert world.count == evaluations  # Heun's last interval has no slope at its end
    assert steps.seen == list(enumerate(times[:-1].tolist()))


def test_a_callback_may_cancel():
    class Stop(Exception):
        pass

    def stop(step: int, time: float, x: torch.Tensor) -> torch.Tensor:
        if step == 1:
            raise Stop
        return x

    world, x = Calls(Gaussian(RectifiedFlow())), torch.randn(1, 1, 1, 1, 1)
    with pytest.raises(Stop):
        euler(world, x, shifted_timesteps(9), world.world.encode([""]), on_step=stop)
    assert world.count == 2


@pytest.mark.parametrize("sampler", [euler, heun, dpm, consistency, flow_map])
def test_a_callback_may_change_the_latents(sampler):
    """Zeros put in after the last step are what comes out; put in before, they are gone on from."""
    world, x = Gaussian(RectifiedFlow()), torch.randn(2, 1, 1, 3, 1)
    times, cond = [0.9, 0.6, 0.3], world.encode(["", ""])

    def sample(at: int) -> torch.Tensor:
        def zero(step: int, time: float, x: torch.Tensor) -> torch.Tensor:
            return torch.zeros_like(x) if step == at else x

        return sampler(world, x, times, cond, SampleRng(0, [0, 1]), zero)

    last = 1 if sampler in (euler, heun, dpm) else 2
    assert sample(last).eq(0).all()
    assert not sample(0).allclose(sample(-1)) and not sample(0).eq(0).any()


# --- consistency sampling -------------------------------------------------------------------------


def sample(world: Gaussian, times: list[float], count: int = 400) -> torch.Tensor:
    rng = SampleRng(3, range(count))
    noise = rng.normal(2, 5, 2, 2).double()
    x = start(world.path, noise, times)
    return consistency(world, x, times, world.encode([""] * count), rng)


def on(path, times: list[float]) -> list[float]:
    """Rectified-flow times on another path."""
    t = torch.tensor(times, dtype=torch.float64)
    return path.t_from_sigma(t / (1 - t)).clamp(max=path.t_max).tolist()


@every_path
@pytest.mark.parametrize("steps", [1, 2, 4, 7])
def test_the_exact_map_gives_the_data_in_any_number_of_steps(path, steps):
    world = Gaussian(path, std=0.5)
    x = sample(world, on(path, student_timesteps(steps)))
    assert x.mean() == pytest.approx(0.7, abs=0.015)
    assert x.std() == pytest.approx(0.5, rel=0.02)


def test_a_posterior_mean_is_no_consistency_map():
    """One step from noise gives the mean of everything; only re-noising brings back some spread."""
    world = PosteriorMean(RectifiedFlow(), std=0.5)
    one, four = (sample(world, student_timesteps(n)) for n in (1, 4))
    assert one.mean() == pytest.approx(0.7, abs=0.01) and one.std() < 0.01
    assert one.std() < four.std() < 0.4


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_as_many_evaluations_as_times(steps):
    world, seen, times = Calls(Gaussian(RectifiedFlow())), Steps(), student_timesteps(steps)
    cond = world.world.encode([""])
    rng = SampleRng(0, [0])
    consistency(world, rng.normal(1, 1, 1, 1), times, cond, rng, seen)
    assert world.count == steps and seen.seen == list(enumerate(times))


def test_the_same_noise_travels_to_the_same_place():
    """One exact step is the ODE's own map, so student and teacher agree sample by sample, up to the
    share of data, 1 - T_START, that the student's first time has and the teacher's has not."""
    world = Gaussian(RectifiedFlow())
    rng = SampleRng(3, range(5))
    noise, cond = rng.normal(2, 1, 2, 2).double(), world.encode([""] * 5)
    times = student_timesteps(1)
    jumped = consistency(world, start(world.path, noise, times), times, cond, rng)
    walked = heun(world, noise, shifted_timesteps(60), cond)
    torch.testing.assert_close(jumped, walked, rtol=0, atol=5e-3)


# --- jumps ----------------------------------------------------------------------------------------


@every_path
@pytest.mark.parametrize("steps", [1, 3])
def test_exact_jumps_follow_the_trajectory_in_any_number_of_steps(path, steps):
    world, seen = Calls(Gaussian(path)), Steps()
    rng, untouched = (SampleRng(3, range(5)) for _ in range(2))
    noise, _ = rng.normal(2, 1, 2, 2).double(), untouched.normal(2, 1, 2, 2)
    times, cond = on(path, student_timesteps(steps)), world.world.encode([""] * 5)
    first = start(path, noise, times)
    x = flow_map(world, first, times, cond, rng, seen)
    t = torch.full((5,), times[0], dtype=torch.float64)
    torch.testing.assert_close(x, world.world.predict_x0(first, t, cond))
    assert world.count == steps and seen.seen == list(enumerate(times))
    assert rng.normal(3).equal(untouched.normal(3))  # deterministic: nothing was drawn


# --- randomness -----------------------------------------------------------------------------------


def draws(positions) -> tuple[torch.Tensor, torch.Tensor]:
    rng = SampleRng(11, positions)
    return rng.normal(3, 2), rng.uniform(5)


def test_a_sample_s_draws_depend_on_its_place_alone():
    normal, uniform = draws([4, 9, 2])
    for row, position in enumerate([4, 9, 2]):
        alone = draws([position])
        assert alone[0][0].equal(normal[row]) and alone[1][0].equal(uniform[row])
    flipped = draws([2, 9, 4])
    assert flipped[0].flip(0).equal(normal) and flipped[1].flip(0).equal(uniform)


def test_seeds_and_places_do_not_meet():
    seeds = {mix(seed, place) for seed in range(100) for place in range(100)}
    assert len(seeds) == 10_000 and all(0 <= s < 2**63 for s in seeds)
    assert mix(1, 2) != mix(2, 1) and mix(-1, 0) != mix(1, 0)


def test_neighbouring_places_are_independent():
    x = SampleRng(0, range(2000)).normal(2)
    assert (
        torch.corrcoef(torch.stack([x[:-1, 0], x[1:, 0], x[:-1, 1]])).fill_diagonal_(0).abs().max()
        < 0.07
    )
    assert x.mean().abs() < 0.06 and x.std() == pytest.approx(1, abs=0.04)


def test_a_clip_is_the_same_in_any_batch():
    world, times = Gaussian(RectifiedFlow()), student_timesteps(4)

    def clips(positions) -> torch.Tensor:
        rng = SampleRng(5, positions)
        noise = rng.normal(2, 3, 1, 1)
        x = start(world.path, noise, times)
        return consistency(world, x, times, world.encode([""] * len(positions)), rng)

    together = clips([0, 1, 2, 3])
    assert clips([2]).equal(together[2:3]) and clips([3, 1]).equal(together[[3, 1]])
