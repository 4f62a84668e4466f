"""Paths against calculus and the closed-form world; all paths are one path on other clocks."""

import itertools
import math

import pytest
import torch
from oracle import PATHS, Gaussian

from vidcm.diffusion.paths import ProbPath, RectifiedFlow, TrigFlow, VarianceExploding, match

NAMES = [type(p).__name__ for p in PATHS]
every_path = pytest.mark.parametrize("path", PATHS, ids=NAMES)
every_pair = pytest.mark.parametrize(
    "source, target",
    list(itertools.product(PATHS, PATHS)),
    ids=[f"{a}-{b}" for a, b in itertools.product(NAMES, NAMES)],
)


def times(path: ProbPath, count: int = 7) -> torch.Tensor:
    """Times `(count,)` at noise ratios from 0.01 to 100, float64."""
    return path.t_from_sigma(torch.logspace(-2, 2, count, dtype=torch.float64))


def latents(count: int = 7) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    shape = (2, count, 3, 2, 5, 3)
    return torch.randn(shape, generator=generator, dtype=torch.float64).unbind(0)


@every_path
def test_starts_at_data_and_ends_at_noise(path):
    start, end = (
        torch.zeros(1, dtype=torch.float64),
        torch.full((1,), path.t_max, dtype=torch.float64),
    )
    assert path.alpha(start) == 1 and path.sigma(start) == 0
    assert path.alpha(end) < path.sigma(end) / 100
    assert path.sigma_ratio(times(path)).diff().gt(0).all()


@every_path
def test_derivatives_are_those_of_autograd(path):
    t = times(path).requires_grad_()
    for value, derivative in ((path.alpha, path.d_alpha), (path.sigma, path.d_sigma)):
        total = value(t).sum()  # alpha of the variance-exploding path does not depend on t
        (slope,) = torch.autograd.grad(total, t) if total.requires_grad else (torch.zeros_like(t),)
        torch.testing.assert_close(derivative(t.detach()), slope)


@every_path
def test_velocity_is_the_slope_of_noise(path):
    t, h = times(path), 1e-6
    x0, eps = latents()
    slope = (path.add_noise(x0, eps, t + h) - path.add_noise(x0, eps, t - h)) / (2 * h)
    torch.testing.assert_close(path.velocity(x0, eps, t), slope, rtol=1e-6, atol=1e-6)


@every_path
def test_split_undoes_noise_and_velocity(path):
    t, (x0, eps) = times(path), latents()
    found = path.to_x0_eps(path.add_noise(x0, eps, t), path.velocity(x0, eps, t), t)
    torch.testing.assert_close(found, (x0, eps), rtol=1e-9, atol=1e-9)


@every_path
def test_time_of_undoes_ratio(path):
    ratio = torch.logspace(-4, 2, 31, dtype=torch.float64)
    torch.testing.assert_close(path.sigma_ratio(path.t_from_sigma(ratio)), ratio)
    assert path.t_from_sigma(torch.zeros(1)) == 0


@pytest.mark.parametrize("path, end", [(RectifiedFlow(), 1.0), (TrigFlow(), math.pi / 2)])
def test_infinite_ratio_is_the_end(path, end):
    assert path.t_from_sigma(torch.tensor([math.inf])).item() == pytest.approx(end)


@every_path
def test_per_frame_times_are_times_of_frames(path):
    x0, eps = latents(2)
    t = times(path, 4).view(2, 2)  # b, t
    together = path.add_noise(x0, eps, t)
    for frame in range(2):
        alone = path.add_noise(x0[:, :, [frame]], eps[:, :, [frame]], t[:, frame])
        torch.testing.assert_close(together[:, :, [frame]], alone)


@every_pair
def test_match_preserves_ratio_posterior_mean_and_inverts(source, target):
    t, (x0, eps) = times(source), latents()
    x = source.add_noise(x0, eps, t)
    there, t_there = match(x, t, source, target)
    torch.testing.assert_close(target.sigma_ratio(t_there), source.sigma_ratio(t))
    torch.testing.assert_close(there, target.add_noise(x0, eps, t_there))
    here, home = Gaussian(source), Gaussian(target)
    cond = here.encode([""] * len(x))
    expected = here.predict(x, t, cond).x0
    torch.testing.assert_close(home.predict(there, t_there, cond).x0, expected)
    torch.testing.assert_close(home.predict_x0(there, t_there, cond), here.predict_x0(x, t, cond))
    back, t_back = match(there, t_there, target, source)
    torch.testing.assert_close((back, t_back), (x, t))


@every_pair
def test_match_at_the_ends(source, target):
    x = torch.randn(2, 3, 2, 5, 7)
    same, zero = match(x, torch.zeros(2), source, target)
    assert zero.tolist() == [0, 0] and same.equal(x)
    start = torch.full((2,), source.t_max)
    noise, end = match(source.add_noise(torch.zeros_like(x), x, start), start, source, target)
    # The variance-exploding path ends at a finite ratio, the others only with it at infinity.
    finite = isinstance(source, VarianceExploding) or isinstance(target, VarianceExploding)
    last = target.t_from_sigma(torch.tensor([160.0])) if finite else torch.tensor([target.t_max])
    torch.testing.assert_close(end, last.expand(2))
    torch.testing.assert_close(
        noise, target.add_noise(torch.zeros_like(x), x, end), rtol=1e-2, atol=1e-2
    )
