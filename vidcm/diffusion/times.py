"""Laws of training times and grids of sampling times, in rectified-flow time unless said.

One clock serves all paths: ln(sigma / alpha). A resolution shift s multiplies that ratio by s
(RECIPES: t' = s t / (1 + (s - 1) t)).
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from vidcm.diffusion.paths import ProbPath
from vidcm.errors import UsageError
from vidcm.rng import SampleRng

SHIFT = 32.0  # of sampling grids: what a clip shows is settled at sigma / alpha far above 1
RATIOS = (2e-3, 200.0)  # the noise levels, sigma / alpha, that students are trained at
T_START = 0.995  # where few-step sampling starts: next to the last of them
STEPS = {1: (T_START,), 2: (T_START, 0.75), 4: (T_START, 0.9375, 0.833, 0.625)}


def shift(t: Tensor, by: float) -> Tensor:
    """Multiply sigma / alpha by `by` (Esser et al. 2024, arXiv 2403.03206, section 5.3.2)."""
    return by * t / (1 + (by - 1) * t)


def log_normal(rng: SampleRng, mean: float, std: float) -> Tensor:
    """Ratios sigma / alpha whose logarithm is N(mean, std), `(b,)`; the law known as logit-normal
    when said of rectified-flow time."""
    return torch.exp(mean + std * rng.normal())


def sample_sigma(path: ProbPath, rng: SampleRng, mean: float, std: float) -> Tensor:
    """Ratios as of `log_normal`, `(b,)`, kept within `RATIOS` and the end of the path's clock."""
    low, high = RATIOS
    end = float(path.sigma_ratio(torch.tensor(path.t_max, dtype=torch.float64)))
    return log_normal(rng, mean, std).clamp(low, min(high, end))


def to_path_time(path: ProbPath, times: Tensor | Sequence[float]) -> Tensor:
    """Rectified-flow times on the clock of `path`, at most its `t_max`, float64."""
    t = torch.as_tensor(times, dtype=torch.float64)
    return path.t_from_sigma(t / (1 - t)).clamp(max=path.t_max)


def shifted_timesteps(steps: int, *, by: float = 1.0) -> Tensor:
    """`steps + 1` shifted times from 1 down to 0, float64. Raises UsageError below one step."""
    if steps < 1:
        raise UsageError(f"{steps} steps cannot sample; use at least 1")
    return shift(torch.linspace(1, 0, steps + 1, dtype=torch.float64), by)


def student_timesteps(steps: int, table: dict[int, Sequence[float]] | None = None) -> list[float]:
    """Times of the consistency sampler: a tuned list where there is one, else a shifted grid."""
    known = table or STEPS
    if steps in known:
        return list(known[steps])
    first = shift(torch.tensor(T_START, dtype=torch.float64), 1 / SHIFT)
    return [T_START, *shift(first * shifted_timesteps(steps)[1:-1], SHIFT).tolist()]
