"""Laws and grids of time, on the one clock that paths share."""

import math

import pytest
import torch
from oracle import PATHS

from vidcm.diffusion import times
from vidcm.diffusion.paths import VarianceExploding
from vidcm.errors import UsageError
from vidcm.rng import SampleRng

every_path = pytest.mark.parametrize("path", PATHS, ids=[type(p).__name__ for p in PATHS])


def log_ratio(t: torch.Tensor) -> torch.Tensor:
    return torch.logit(t.double())


@pytest.mark.parametrize("by", [0.2, 1.0, 3.0, 17.0])
def test_a_shift_multiplies_the_ratio_and_keeps_the_ends(by):
    t = torch.linspace(0.01, 0.99, 23, dtype=torch.float64)
    torch.testing.assert_close(log_ratio(times.shift(t, by)), log_ratio(t) + math.log(by))
    assert times.shift(torch.tensor([0.0, 1.0]), by).tolist() == pytest.approx([0, 1])


def test_shifts_compose():
    t = torch.linspace(0, 1, 11, dtype=torch.float64)
    torch.testing.assert_close(times.shift(times.shift(t, 3), 2), times.shift(t, 6))


def test_log_normal_has_its_moments():
    ratio = times.log_normal(SampleRng(0, range(10_000)), 0.7, 1.6)
    assert ratio.shape == (10_000,) and ratio.min() > 0
    law = ratio.log()
    assert law.mean() == pytest.approx(0.7, abs=0.06) and law.std() == pytest.approx(1.6, rel=0.04)


@every_path
def test_noise_levels_are_kept_where_paths_and_students_go(path):
    levels = times.sample_sigma(path, SampleRng(0, range(500)), 0.0, 6.0)
    high = 160.0 if isinstance(path, VarianceExploding) else 200.0
    assert levels.min() == pytest.approx(2e-3) and levels.max() == pytest.approx(high)
    inside = (levels > 2.1e-3) & (levels < 150)
    law = times.log_normal(SampleRng(0, range(500)), 0.0, 6.0)
    assert levels[inside].equal(law[inside]) and 0.5 < inside.float().mean() < 0.7


@every_path
def test_times_on_a_path_have_the_ratio_of_those_in_rectified_flow(path):
    t = torch.tensor([0.0, 0.1, 0.5, 0.9, 0.99], dtype=torch.float64)
    torch.testing.assert_close(path.sigma_ratio(times.to_path_time(path, t)), t / (1 - t))
    assert times.to_path_time(path, [1.0]).tolist() == pytest.approx([path.t_max])


@pytest.mark.parametrize("steps", [1, 3, 50])
def test_uniform_grid_goes_from_noise_to_data(steps):
    grid = times.shifted_timesteps(steps, by=5.0)
    assert grid.dtype == torch.float64 and grid.shape == (steps + 1,)
    assert grid[0] == 1 and grid[-1] == 0 and grid.diff().lt(0).all()
    plain = torch.linspace(1, 0, steps + 1, dtype=torch.float64)
    torch.testing.assert_close(times.shifted_timesteps(steps), plain)


def test_no_steps_are_refused():
    with pytest.raises(UsageError, match="0 steps.*at least 1"):
        times.shifted_timesteps(0)
    with pytest.raises(UsageError, match="at least 1"):
        times.student_timesteps(0)


@pytest.mark.parametrize("steps", range(1, 13))
def test_few_steps_descend_from_nearly_noise(steps):
    grid = times.student_timesteps(steps)
    assert len(grid) == steps and grid[0] == times.T_START
    assert all(a > b > 0 for a, b in zip(grid, grid[1:], strict=False))
    levels = torch.tensor(grid, dtype=torch.float64)
    gaps = (levels / (1 - levels)).log().diff()
    torch.testing.assert_close(gaps, gaps.mean().expand(steps - 1), equal_nan=True)


@pytest.mark.parametrize("lowest", [0.5, 6.0, 15.0])
def test_the_last_level_is_the_checkpoint_s_for_any_number_of_steps(lowest):
    for steps in (2, 3, 8):
        last = times.student_timesteps(steps, lowest)[-1]
        assert last / (1 - last) == pytest.approx(lowest)
    assert times.student_timesteps(1, lowest) == [times.T_START]
    assert times.student_timesteps(3, lowest, first=1.0) == [
        1.0,
        *times.student_timesteps(3, lowest)[1:],
    ]
    first, middle, last = times.student_timesteps(3, 1.99)
    assert middle / (1 - middle) == pytest.approx(19.9) and first == times.T_START


@pytest.mark.parametrize("lowest", [0.0, -1.0, 199.0, 500.0])
def test_lowest_levels_outside_the_students_are_refused(lowest):
    with pytest.raises(UsageError, match="lowest_sigma is .* above 0 and below 199"):
        times.student_timesteps(4, lowest)
