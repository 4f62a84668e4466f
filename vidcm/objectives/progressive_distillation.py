"""Progressive distillation (Salimans & Ho 2022, arXiv 2202.00512): half as many steps, and again.

One DDIM step of the student is regressed on two of its teacher. At first that is the guided
teacher, so the student learns the scale as an input (Meng et al. 2023, arXiv 2210.03142); in each
further part of the run it is the student as it was when the part began.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from vidcm.data.batch import Batch
from vidcm.diffusion.denoiser import Denoiser
from vidcm.diffusion.shapes import like
from vidcm.diffusion.times import SHIFT, shifted_timesteps, to_path_time
from vidcm.errors import UsageError
from vidcm.objectives.base import Loss
from vidcm.objectives.common import PromptBatch, StudentObjective
from vidcm.objectives.phased_consistency import phased_sampling
from vidcm.objectives.target_network import FrozenTarget
from vidcm.rng import SampleRng


@dataclass(eq=False, kw_only=True)
class ProgressiveDistillation(StudentObjective):
    """Progressive distillation down to `steps` steps.

    The loss is the squared error of TrigFlow's velocity, the weight "SNR + 1" of the paper's
    section 4.

    Args:
        teacher: A frozen denoiser on the student's path.
        steps: Of the finished student, from noise to data.
        halvings: How often the steps are halved by then, once in each of as many equal parts of
            the run; the teacher takes steps * 2^halvings.
        shift: Factor on sigma / alpha of the grids; each grid is every other time of the last.
        guidance_range: Scales of teacher and student.
        prompt_dropout: Share of empty prompts.

    Raises:
        UsageError: A count or range makes no sense.
    """

    needs_teacher = True
    steps: int = 1
    halvings: int = 5
    shift: float = SHIFT
    target: FrozenTarget = field(init=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.steps < 1 or self.halvings < 1:
            raise UsageError(f"steps {self.steps}, halvings {self.halvings}: use 1 or more of each")
        if self.shift <= 0:
            raise UsageError(f"shift is {self.shift}; it must be above 0 (1 is an even grid)")
        self.target = FrozenTarget(self.halvings)

    @property
    def sampling(self) -> dict[str, Any]:
        return phased_sampling(self.steps, self.shift)

    def steps_at(self, progress: float) -> int:
        """Return the student's steps from noise to data at the end of this part of the run."""
        return self.steps * 2 ** (self.halvings - 1 - self.target.part_at(progress))

    def __call__(self, model: Denoiser, batch: Batch, progress: float, rng: SampleRng) -> Loss:
        assert batch.latents is not None
        x0, path, steps = batch.latents, model.path, self.steps_at(progress)
        index = 1 + (rng.uniform() * steps).long().clamp(max=steps - 1)
        grid = to_path_time(path, shifted_timesteps(2 * steps, by=self.shift)).flip(0).to(x0)
        t, middle, s = (grid[2 * index - k] for k in range(3))
        eps = rng.normal(*x0.shape[1:])
        prompts = self.draw_prompts(batch, rng)

        x_t = path.add_noise(x0, eps, t)
        with torch.no_grad():
            target = self.two_steps(progress, prompts, x_t, t, middle, s)
        x_s = model.flow_map(x_t, t, s, self.encode(prompts, model))
        # x_s moves by this factor times the error of TrigFlow's velocity.
        turn = path.alpha(s) * path.sigma(t) - path.sigma(s) * path.alpha(t)
        turn = turn / torch.hypot(path.alpha(t), path.sigma(t))
        # Where the path ends early its highest times coincide, and nothing moves.
        turn = torch.where(t > s, turn, 1.0)
        error = ((x_s - target) / like(turn, x_s)).square().flatten(1).mean(1)
        logs = {"distillation_error": error.detach().sqrt().mean(), "steps": torch.tensor(steps)}
        return Loss(error.mean(), logs)

    def two_steps(
        self,
        progress: float,
        prompts: PromptBatch,
        x_t: Tensor,
        t: Tensor,
        middle: Tensor,
        s: Tensor,
    ) -> Tensor:
        """Return x_s by two steps of the current teacher."""
        x_middle = self.ddim(progress, prompts, x_t, t, middle)
        return self.ddim(progress, prompts, x_middle, middle, s)

    def ddim(
        self, progress: float, prompts: PromptBatch, x_t: Tensor, t: Tensor, s: Tensor
    ) -> Tensor:
        """Return x_s by one DDIM step: of the guided teacher in the first part, then the copy."""
        if self.target.part_at(progress) > 0:
            network = self.target.network
            return network.flow_map(x_t, t, s, self.encode(prompts, network))
        assert self.teacher is not None
        path = self.teacher.path
        x0, eps = path.to_x0_eps(x_t, self.teacher_velocity(prompts, x_t, t), t)
        return path.add_noise(x0, eps, s)
