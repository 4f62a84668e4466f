"""Distribution matching: DMD2 (Yin et al. 2024, arXiv 2405.14867; RECIPES B.6).

The student's own samples, noised again, move along the difference of two scores: that of the guided
teacher and that of the student's distribution, which a second network, the fake score, follows by
denoising those samples. At the end both agree. The student learns the guidance scale as an input;
its distribution depends on the scale, so the fake score gets it too.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from vidcm.data.batch import Batch
from vidcm.diffusion.denoiser import Denoiser
from vidcm.diffusion.shapes import like
from vidcm.diffusion.times import DEFAULT_LOWEST_SIGMA
from vidcm.objectives.backward_simulation import (
    JudgedSamples,
    backward_simulation,
    sample_timesteps,
    step_prefixes,
)
from vidcm.objectives.base import Loss, Role
from vidcm.objectives.common import PromptBatch
from vidcm.rng import SampleRng


@dataclass(eq=False, kw_only=True)
class DistributionMatching(JudgedSamples):
    """Match the student's distribution with the guided teacher's.

    Args:
        teacher: A frozen denoiser on the student's path.
        make_fake: Returns a trainable copy of it that takes a guidance scale.
        p_mean: Mean of the ln sigma at which scores are compared.
        p_std: Deviation of that ln sigma.
        steps: Numbers of sampling steps to train for.
        lowest_sigma: Noise level of the last of those steps; the student is sampled so.
        guidance_range: Scales of teacher, student and fake score.
        prompt_dropout: Share of empty prompts.
        student_update_freq: The student has one step in so many, the fake score the others.
        lr_scale: Of the fake score, on the student's learning rate.
        betas: Of the fake score's AdamW; the student's by default.

    Raises:
        UsageError: An option makes no sense.
    """

    role_names = ("fake",)

    make_fake: Callable[[], Denoiser] | None = None
    p_mean: float = 1.6
    steps: Sequence[int] = (1, 2, 4)
    lowest_sigma: float = DEFAULT_LOWEST_SIGMA
    student_update_freq: int = 5

    def __post_init__(self) -> None:
        super().__post_init__()
        step_prefixes(self.steps, self.lowest_sigma)  # refused before a run

    @property
    def sampling(self) -> dict[str, Any]:
        return super().sampling | {"lowest_sigma": self.lowest_sigma}

    @cached_property
    def fake(self) -> Denoiser:
        """The fake score's network, which starts as the teacher."""
        assert self.make_fake is not None
        return self.make_fake()

    @property
    def roles(self) -> dict[str, Role]:
        return {"fake": Role(self.fake, self.fake_loss, self.lr_scale, self.betas)}

    def __call__(self, model: Denoiser, batch: Batch, progress: float, rng: SampleRng) -> Loss:
        """Compute half the squared distance of samples to where the scores move them."""
        prompts, x0 = self._samples(model, batch, rng)
        with torch.no_grad():
            x_t, t = self._add_noise(model, x0, rng)
            v = self.teacher_velocity(prompts, x_t, t)
            real = model.path.to_x0_eps(x_t, v, t)[0]
            fake = self.fake.predict(x_t, t, self.encode(prompts, self.fake)).x0
            # Normalised by the teacher's error, each sample has a say at every noise level.
            size = (x0 - real).abs().flatten(1).mean(1).clamp(min=1e-6)
            move = (fake - real) / like(size, x0)
        half = 0.5 * (x0 - (x0.detach() - move)).square()
        return Loss(half.mean(), {"score_gap": move.square().flatten(1).mean(1).sqrt().mean()})

    def fake_loss(self, model: Denoiser, batch: Batch, progress: float, rng: SampleRng) -> Loss:
        """Denoise the student's samples, weighted as TrigFlow's velocity: one over sin^2."""
        with torch.no_grad():
            prompts, x0 = self._samples(model, batch, rng)
            x_t, t = self._add_noise(model, x0, rng)
        prediction = self.fake.predict(x_t, t, self.encode(prompts, self.fake))
        sigma = model.path.sigma(t)
        sine = like(sigma / torch.hypot(model.path.alpha(t), sigma), x0)
        return Loss(((prediction.x0 - x0) / sine).square().mean())

    def _samples(self, model: Denoiser, batch: Batch, rng: SampleRng) -> tuple[PromptBatch, Tensor]:
        """Prompts, and the student's samples of them."""
        assert batch.latents is not None
        prompts = self.draw_prompts(batch, rng)
        noise = rng.normal(*batch.latents.shape[1:]).to(batch.latents)
        choices = step_prefixes(self.steps, self.lowest_sigma, model.first_time)
        return prompts, backward_simulation(model, choices, prompts, noise, rng)

    def _add_noise(self, model: Denoiser, x0: Tensor, rng: SampleRng) -> tuple[Tensor, Tensor]:
        """Samples with noise, and its times."""
        t = sample_timesteps(model.path, rng, self.p_mean, self.p_std).to(x0)
        return model.path.add_noise(x0, rng.normal(*x0.shape[1:]).to(x0), t), t
