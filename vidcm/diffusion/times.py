"""Noise distributions of training and times of sampling, in rectified-flow time unless said.

All paths share one clock, ln(sigma / alpha). A resolution shift s multiplies that ratio by s:
t' = s t / (1 + (s - 1) t).
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from vidcm.diffusion.paths import ProbPath
from vidcm.errors import UsageError
from vidcm.rng import SampleRng
from vidcm.settings import StudentSettings

SHIFT = 32.0  # of teachers' times: the content of a clip is settled at sigma / alpha far above 1
RATIOS = (2e-3, 200.0)  # sigma / alpha at which students are trained
# Few-step sampling starts at sigma / alpha = 199, just inside RATIOS: at t = 1 it is infinite.
T_START = 0.995
DEFAULT_LOWEST_SIGMA = 15.0  # sigma / alpha of a student's last step


def shift(t: Tensor, by: float) -> Tensor:
    """Multiply sigma / alpha by `by` (Esser et al. 2024, arXiv 2403.03206, section 5.3.2)."""
    return by * t / (1 + (by - 1) * t)


def log_normal(rng: SampleRng, mean: float, std: float) -> Tensor:
    """Ratios sigma / alpha `(b,)` whose logarithm is N(mean, std): logit-normal times."""
    return torch.exp(mean + std * rng.normal())


def sample_sigma(path: ProbPath, rng: SampleRng, mean: float, std: float) -> Tensor:
    """Ratios of `log_normal`, `(b,)`, clamped to `RATIOS` and to the end of the path."""
    low, high = RATIOS
    end = float(path.sigma_ratio(torch.tensor(path.t_max, dtype=torch.float64)))
    return log_normal(rng, mean, std).clamp(low, min(high, end))


def start_sigma(path: ProbPath, first: float) -> float:
    """sigma / alpha of the first rectified-flow time of sampling, within `RATIOS` and the path."""
    end = float(path.sigma_ratio(torch.tensor(path.t_max, dtype=torch.float64)))
    return min(first / (1 - first) if first < 1 else RATIOS[1], RATIOS[1], end)


def to_path_time(path: ProbPath, times: Tensor | Sequence[float]) -> Tensor:
    """Rectified-flow times on the clock of `path`, at most its `t_max`, float64."""
    t = torch.as_tensor(times, dtype=torch.float64)
    return path.t_from_sigma(t / (1 - t)).clamp(max=path.t_max)


def shifted_timesteps(steps: int, *, by: float = 1.0) -> Tensor:
    """`steps + 1` shifted times from 1 down to 0, float64. Raises UsageError below one step."""
    if steps < 1:
        raise UsageError(f"{steps} steps cannot sample; use at least 1")
    return shift(torch.linspace(1, 0, steps + 1, dtype=torch.float64), by)


def student_timesteps(
    steps: int, lowest_sigma: float | None = None, by: float | None = None, first: float = T_START
) -> list[float]:
    """Times of a student's steps: levels sigma / alpha in geometric progression.

    Args:
        steps: Number of evaluations.
        lowest_sigma: sigma / alpha of the last one (default: `DEFAULT_LOWEST_SIGMA`). The
            progression begins at that of `T_START`, for any number of steps.
        by: Take the times of `shifted_timesteps` instead, which few-step schedulers of public
            models have: equal steps from 1, shifted.
        first: Where the first step is taken, at or above T_START.

    Returns:
        `steps` descending rectified-flow times; one step is at `first` alone.

    Raises:
        UsageError: Below one step, or a lowest level that is not between 0 and the first.
    """
    if steps < 1:
        raise UsageError(f"{steps} steps cannot sample; use at least 1")
    if by is not None:
        return shifted_timesteps(steps, by=by)[:-1].tolist()
    lowest_sigma = DEFAULT_LOWEST_SIGMA if lowest_sigma is None else lowest_sigma
    highest = T_START / (1 - T_START)
    if not 0 < lowest_sigma < highest:
        raise UsageError(
            f"lowest_sigma is {lowest_sigma:g}; use a level above 0 and below {highest:.0f}"
        )
    ratios = [(lowest_sigma / highest) ** (i / (steps - 1)) for i in range(1, steps)]
    return [first, *(highest * r / (1 + highest * r) for r in ratios)]


def few_step_times(student: StudentSettings, steps: int, first: float) -> list[float]:
    """Rectified-flow times of a student's steps, descending.

    Args:
        student: Its settings.
        steps: Number of evaluations.
        first: `first_time` of the denoiser.
    """
    own = student.lowest_sigma, student.shift
    return student.timesteps or student_timesteps(steps, *own, first)
