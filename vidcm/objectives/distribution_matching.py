"""Distribution matching: DMD2 (Yin et al. 2024, arXiv 2405.14867; RECIPES B.6).

The student's own samples, noised again, are moved along the difference of two scores: that of the
guided teacher and that of the student's distribution, which a second network, the fake score,
follows by denoising those samples. At the end both agree. The student learns the guidance scale as
an input; its distribution depends on the scale, so the fake score is told it too.
"""

from collections.abc import Callable, Sequence
from functools import cached_property

import torch
from torch import Tensor

from vidcm.data.batch import Batch
from vidcm.diffusion.denoiser import Denoiser
from vidcm.diffusion.shapes import like
from vidcm.errors import UsageError
from vidcm.objectives.backward_simulation import (
    backward_simulation,
    sample_timesteps,
    step_prefixes,
)
from vidcm.objectives.base import Loss, Role, check_period, role_settings, whose_turn
from vidcm.objectives.common import PromptBatch, check_dropout, check_guidance, check_log_normal
from vidcm.rng import SampleRng


class DistributionMatching:
    """teacher: a frozen denoiser on the student's path. make_fake: a trainable copy of it that
    takes a guidance scale. mean, std: of the ln sigma at which scores are compared. steps: numbers
    of sampling steps to train for. guidance: range of the scales told. dropout: share of empty
    prompts. every: the student has one turn in so many, the fake score the others. rate, betas: of
    the fake score's AdamW, over the student's.

    Raises UsageError for options that make no sense; without a teacher when its roles are asked for.
    """

    def __init__(
        self,
        teacher: Denoiser | None,
        make_fake: Callable[[], Denoiser] | None = None,
        p_mean: float = 1.6,
        p_std: float = 1.8,
        steps: Sequence[int] = (1, 2, 4),
        guidance_range: tuple[float, float] | list[float] = (1.0, 5.0),
        prompt_dropout: float = 0.1,
        student_update_freq: int = 5,
        lr_scale: float = 1.0,
        betas: tuple[float, float] | list[float] | None = None,
    ):
        check_period(student_update_freq, 1)
        self.teacher, self.make_fake = teacher, make_fake
        self.p_mean, self.p_std = check_log_normal(p_mean, p_std)
        self.step_prefixes = step_prefixes(steps)
        self.student_update_freq = student_update_freq
        self.guidance_range = check_guidance(guidance_range)
        self.prompt_dropout = check_dropout(prompt_dropout, all_empty=True)
        self.lr_scale, self.betas = lr_scale, role_settings(lr_scale, betas)

    @cached_property
    def fake(self) -> Denoiser:
        """The fake score's network, which starts as the teacher."""
        if self.teacher is None or self.make_fake is None:
            raise UsageError(
                "distribution_matching needs a teacher: set teacher to a teacher's `final` folder"
            )
        return self.make_fake()

    @property
    def roles(self) -> dict[str, Role]:
        return {"fake": Role(self.fake, self.fake_loss, self.lr_scale, self.betas)}

    def turn(self, step: int, progress: float) -> str:
        return whose_turn(step, self.student_update_freq, ["fake"])

    def __call__(self, model: Denoiser, batch: Batch, progress: float, rng: SampleRng) -> Loss:
        """The student's: half the square of the distance to where the scores move its samples."""
        assert self.teacher is not None
        prompts, x0 = self._samples(model, batch, rng)
        with torch.no_grad():
            x_t, t = self._noised(model, x0, rng)
            real = model.path.to_x0_eps(x_t, prompts.velocity(self.teacher, x_t, t), t)[0]
            fake = self.fake.predict(x_t, t, prompts.encode(self.fake, with_guidance=True)).x0
            # Normalised by the teacher's error, each sample has a say at every noise level.
            size = (x0 - real).abs().flatten(1).mean(1).clamp(min=1e-6)
            move = (fake - real) / like(size, x0)
        half = 0.5 * (x0 - (x0.detach() - move)).square()
        return Loss(half.mean(), {"score_gap": move.square().flatten(1).mean(1).sqrt().mean()})

    def fake_loss(self, model: Denoiser, batch: Batch, progress: float, rng: SampleRng) -> Loss:
        """Denoising of the student's samples, weighted as TrigFlow's velocity: one over sin^2."""
        with torch.no_grad():
            prompts, x0 = self._samples(model, batch, rng)
            x_t, t = self._noised(model, x0, rng)
        found = self.fake.predict(x_t, t, prompts.encode(self.fake, with_guidance=True)).x0
        sigma = model.path.sigma(t)
        sine = like(sigma / torch.hypot(model.path.alpha(t), sigma), x0)
        return Loss(((found - x0) / sine).square().mean())

    def _samples(self, model: Denoiser, batch: Batch, rng: SampleRng) -> tuple[PromptBatch, Tensor]:
        """Prompts with the scales told, and what the student makes of them."""
        assert batch.latents is not None
        prompts = PromptBatch.draw(batch, rng, self.prompt_dropout, self.guidance_range)
        noise = rng.normal(*batch.latents.shape[1:]).to(batch.latents)
        return prompts, backward_simulation(model, self.step_prefixes, prompts, noise, rng)

    def _noised(self, model: Denoiser, x0: Tensor, rng: SampleRng) -> tuple[Tensor, Tensor]:
        t = sample_timesteps(model.path, rng, self.p_mean, self.p_std).to(x0)
        return model.path.add_noise(x0, rng.normal(*x0.shape[1:]).to(x0), t), t
