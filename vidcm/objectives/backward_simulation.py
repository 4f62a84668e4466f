"""What objectives that judge the student's own samples share: noise levels, and the samples."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vidcm.diffusion.denoiser import Denoiser
from vidcm.diffusion.paths import ProbPath
from vidcm.diffusion.times import (
    DEFAULT_LOWEST_SIGMA,
    T_START,
    sample_sigma,
    student_timesteps,
    to_path_time,
)
from vidcm.errors import UsageError
from vidcm.objectives.base import check_period, role_settings
from vidcm.objectives.common import Pair, PromptBatch, StudentObjective, check_log_normal
from vidcm.rng import SampleRng


@dataclass(eq=False, kw_only=True)
class JudgedSamples(StudentObjective):
    """An objective in which a second network judges the student's own samples, and is trained too.

    Args:
        p_mean: Mean of a ln sigma.
        p_std: Deviation of that ln sigma.
        student_update_freq: The student has one step in so many, the second network the others.
        lr_scale: Of the second network, on the student's learning rate.
        betas: Of the second network's AdamW; the student's by default.

    Raises:
        UsageError: An option makes no sense.
    """

    needs_teacher = True

    p_mean: float
    p_std: float = 1.8
    student_update_freq: int
    lr_scale: float = 1.0
    betas: Pair | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_period(self.student_update_freq, 1)
        check_log_normal(self.p_mean, self.p_std)
        self.betas = role_settings(self.lr_scale, self.betas)


def sample_timesteps(path: ProbPath, rng: SampleRng, p_mean: float, p_std: float) -> Tensor:
    """Draw times `(b,)` on `path` whose ln(sigma / alpha) is N(p_mean, p_std), clamped."""
    return path.t_from_sigma(sample_sigma(path, rng, p_mean, p_std)).clamp(max=path.t_max)


def step_prefixes(
    steps: Sequence[int], lowest_sigma: float = DEFAULT_LOWEST_SIGMA, first: float = T_START
) -> list[tuple[float, ...]]:
    """Return every beginning of the consistency sampler's times for these numbers of steps.

    Args:
        steps: Numbers of sampling steps.
        lowest_sigma: Noise level of the last step.
        first: Rectified-flow time of the first one.

    Raises:
        UsageError: There is no number, one below 1, or a level out of range.
    """
    if not steps or min(steps) < 1:
        raise UsageError(
            f"steps {list(steps)} are not numbers of sampling steps, such as [1, 2, 4]"
        )
    lists = [tuple(student_timesteps(n, lowest_sigma, first=first)) for n in steps]
    return sorted({times[:k] for times in lists for k in range(1, len(times) + 1)})


def backward_simulation(
    student: Denoiser,
    choices: Sequence[tuple[float, ...]],
    prompts: PromptBatch,
    noise: Tensor,
    rng: SampleRng,
) -> Tensor:
    """Sample clean latents as the consistency sampler does, differentiable in the last evaluation.

    Backward simulation (Yin et al. 2024, DMD2, arXiv 2405.14867, section 4.5).

    Args:
        student: The student; it gets the guidance scales of the prompts.
        choices: Lists of rectified-flow times, of which each sample draws one.
        prompts: One for each sample.
        noise: The initial noise `(b c t h w)`.
        rng: Of the choices, and of the noise that is added later.

    Returns:
        Clean latents `(b c t h w)`.
    """
    cond = prompts.encode(student, with_guidance=True)  # with the gradient of the last evaluation
    drawn = (rng.uniform() * len(choices)).long().tolist()
    chosen = [choices[i] for i in drawn]
    longest = max(map(len, choices))
    last = torch.tensor([len(times) - 1 for times in chosen], device=noise.device)
    padded = [[*times, *times[-1:] * (longest - len(times))] for times in chosen]
    grid = to_path_time(student.path, torch.tensor(padded, dtype=torch.float64)).to(noise)
    x_t = student.path.add_noise(torch.zeros_like(noise), noise, grid[:, 0])
    for i in range(1, longest):
        fresh = rng.normal(*noise.shape[1:]).to(noise)  # also where it is not needed: draws align
        on = (last >= i).nonzero().squeeze(1)
        if len(on):
            with torch.no_grad():
                own = prompts.select(on).encode(student, with_guidance=True)
                x0 = student.predict_x0(x_t[on], grid[on, i - 1], own)
            x_t = x_t.index_copy(0, on, student.path.add_noise(x0, fresh[on], grid[on, i]))
    return student.predict_x0(x_t, grid.gather(1, last[:, None])[:, 0], cond)
