"""What objectives that judge the student's own samples share: noise levels, and the samples."""

from collections.abc import Sequence

import torch
from torch import Tensor

from vidcm.diffusion.denoiser import Denoiser
from vidcm.diffusion.paths import ProbPath
from vidcm.diffusion.times import sample_sigma, student_timesteps, to_path_time
from vidcm.errors import UsageError
from vidcm.objectives.common import PromptBatch
from vidcm.rng import SampleRng


def sample_timesteps(path: ProbPath, rng: SampleRng, p_mean: float, p_std: float) -> Tensor:
    """Times `(b,)` on `path` whose ln(sigma / alpha) is N(mean, std), kept as `sample_sigma`."""
    return path.t_from_sigma(sample_sigma(path, rng, p_mean, p_std)).clamp(max=path.t_max)


def step_prefixes(steps: Sequence[int]) -> list[tuple[float, ...]]:
    """Every beginning of the consistency sampler's lists of times for these numbers of steps.

    Raises UsageError for no number, or one below 1."""
    if not steps or min(steps) < 1:
        raise UsageError(
            f"steps {list(steps)} are not numbers of sampling steps, such as [1, 2, 4]"
        )
    lists = [tuple(student_timesteps(n)) for n in steps]
    return sorted({times[:k] for times in lists for k in range(1, len(times) + 1)})


def backward_simulation(
    student: Denoiser,
    choices: Sequence[tuple[float, ...]],
    prompts: PromptBatch,
    noise: Tensor,
    rng: SampleRng,
) -> Tensor:
    """Clean latents as the sampler makes them, gradient through the last evaluation only: backward
    simulation (Yin et al. 2024, DMD2, arXiv 2405.14867, section 4.5).

    choices: lists of rectified-flow times, each sample draws one. noise: `(b c t h w)`, the first;
    what is added later comes from `rng`."""
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
                cond = prompts.of(on).encode(student, with_guidance=True)
                x0 = student.predict_x0(x_t[on], grid[on, i - 1], cond)
            x_t = x_t.index_copy(0, on, student.path.add_noise(x0, fresh[on], grid[on, i]))
    return student.predict_x0(
        x_t, grid.gather(1, last[:, None])[:, 0], prompts.encode(student, with_guidance=True)
    )
