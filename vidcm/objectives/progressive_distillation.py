"""Progressive distillation (Salimans & Ho 2022, arXiv 2202.00512): half as many steps, and again.

The student's one step of DDIM is drawn to where two of its teacher's lead. At first that is the
guided teacher, so that the student learns the scale as an input (Meng et al. 2023, arXiv
2210.03142); in each further part of the run it is the student as it was when the part began.
"""

import torch
from torch import Tensor

from vidcm.config import TrainConfig
from vidcm.data.batch import Batch
from vidcm.diffusion.denoiser import Denoiser
from vidcm.diffusion.shapes import like
from vidcm.diffusion.times import SHIFT, shifted_timesteps, to_path_time
from vidcm.errors import UsageError
from vidcm.objectives.base import Loss
from vidcm.objectives.common import PromptBatch, check_dropout, check_guidance
from vidcm.objectives.target_network import FrozenTarget
from vidcm.rng import SampleRng


class ProgressiveDistillation:
    """teacher: a frozen denoiser on the same path. steps: what the finished student takes from noise
    to data. halvings: how often steps were halved by then, once in each of as many equal parts of
    the run; the teacher takes steps * 2^halvings. shift: of the grids of times, each every other
    time of the last. guidance: range of the scales that teacher and student are told. dropout:
    share of empty prompts.

    The loss is the squared error of TrigFlow's velocity, the weight "SNR + 1" of the paper's
    section 4. Raises UsageError for a count or range that makes no sense.
    """

    sampling = {"sampler": "flow_map"}

    def __init__(
        self,
        teacher: Denoiser | None,
        steps: int = 1,
        halvings: int = 5,
        shift: float = SHIFT,
        guidance_range: tuple[float, float] | list[float] = (1.0, 5.0),
        prompt_dropout: float = 0.1,
    ):
        if steps < 1 or halvings < 1:
            raise UsageError(f"steps {steps}, halvings {halvings}: use 1 or more of each")
        if shift <= 0:
            raise UsageError(f"shift is {shift}; it must be above 0 (1 is an even grid)")
        self.teacher, self.steps, self.halvings, self.shift = teacher, steps, halvings, shift
        self.guidance_range, self.prompt_dropout = (
            check_guidance(guidance_range),
            check_dropout(prompt_dropout),
        )
        self.held = FrozenTarget(halvings)
        edges = shifted_timesteps(steps, by=shift)[:-1].tolist()
        self.sampling = self.sampling | {"phases": steps, "timesteps": edges}

    def check(self, config: TrainConfig) -> None:
        """Raises UsageError without a teacher: there are no steps to halve."""
        if config.teacher is None:
            raise UsageError(
                "objective progressive_distillation needs a teacher: set teacher to a teacher's "
                "`final` folder"
            )

    def steps_at(self, progress: float) -> int:
        """What the student takes from noise to data at the end of this part of the run."""
        return self.steps * 2 ** (self.halvings - 1 - self.held.part_at(progress))

    def __call__(self, model: Denoiser, batch: Batch, progress: float, rng: SampleRng) -> Loss:
        assert batch.latents is not None
        x0, path, steps = batch.latents, model.path, self.steps_at(progress)
        index = 1 + (rng.uniform() * steps).long().clamp(max=steps - 1)
        grid = to_path_time(path, shifted_timesteps(2 * steps, by=self.shift)).flip(0).to(x0)
        t, middle, s = (grid[2 * index - k] for k in range(3))
        eps = rng.normal(*x0.shape[1:])
        prompts = PromptBatch.draw(batch, rng, self.prompt_dropout, self.guidance_range)

        x_t = path.add_noise(x0, eps, t)
        first = self.held.part_at(progress) == 0
        with torch.no_grad():
            x_middle = self._teach(first, prompts, x_t, t, middle)
            target = self._teach(first, prompts, x_middle, middle, s)
        x_s = model.flow_map(x_t, t, s, prompts.encode(model, with_guidance=True))
        turn = path.alpha(s) * path.sigma(t) - path.sigma(s) * path.alpha(t)
        turn = turn / torch.hypot(path.alpha(t), path.sigma(t))
        # Where the path's clock ends early its highest times are one, and nothing moves.
        turn = torch.where(t > s, turn, 1.0)
        error = ((x_s - target) / like(turn, x_s)).square().flatten(1).mean(1)
        logs = {"distillation_error": error.detach().sqrt().mean(), "steps": torch.tensor(steps)}
        return Loss(error.mean(), logs)

    def _teach(
        self, first: bool, prompts: PromptBatch, x_t: Tensor, t: Tensor, s: Tensor
    ) -> Tensor:
        """x_s by one step of DDIM: the guided teacher's in the first part, then the student's own."""
        if not first:
            network = self.held.network
            return network.flow_map(x_t, t, s, prompts.encode(network, with_guidance=True))
        assert self.teacher is not None
        path = self.teacher.path
        x0, eps = path.to_x0_eps(x_t, prompts.velocity(self.teacher, x_t, t), t)
        return path.add_noise(x0, eps, s)
