"""Consistency tuning with a continuous noise distribution and a shrinking gap (RECIPES B.3, C).

f(x_t, t) is regressed on f(x_r, r), r < t on the same trajectory. Geng et al. 2024 (ECT, arXiv
2406.14548) give the gap: r = sigma (1 - q^-(stage + 1) n(sigma)), from diffusion (r = 0) towards
the limit as the stages pass. With a teacher, x_r is one guided Euler step of the teacher from x_t,
and the student learns the guidance scale as an input; without, x_r shares the noise of x_t. Between
them, x_r shares the noise and has the teacher's guidance added.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from vidcm.config import TrainConfig
from vidcm.data.batch import Batch
from vidcm.diffusion.denoiser import Denoiser
from vidcm.diffusion.given_frames import GivenFrames, hold
from vidcm.diffusion.shapes import like
from vidcm.diffusion.times import sample_sigma, start_sigma, to_path_time
from vidcm.errors import UsageError
from vidcm.objectives.base import Loss
from vidcm.objectives.common import StudentObjective, check_log_normal, check_share
from vidcm.rng import SampleRng


@dataclass(eq=False, kw_only=True)
class ConsistencyTuning(StudentObjective):
    """Easy consistency tuning, with a teacher or without.

    Args:
        teacher: A frozen denoiser on the student's path, or None.
        p_mean: Mean of ln sigma.
        p_std: Deviation of ln sigma.
        p_start: Share of samples at the first time of sampling, which is pure noise for students of
            public models; the distribution of sigma never draws that.
        q: Factor by which the gap shrinks from stage to stage, above 1.
        stages: Equal parts of the run.
        guidance_range: Scales of teacher and student.
        huber_c: c of the pseudo-Huber loss, 0 or above; 0 is the unsquared norm.
        prompt_dropout: Share of empty prompts.
        weight_power: The loss weighs (1 + sigma)^weight_power / (sigma - r). 0 is ECT's; 1 weighs
            every octave of noise alike, for latents whose content is settled at sigma far above 1.
        max_weight: Upper bound of that weight.
        min_sigma: Where the target level r would be below it, use r = 0, which is to regress to the
            clean latents (their posterior mean). Small networks otherwise turn fine detail into
            noise.
        given_frames: Share of samples by kind of frames that teacher and student see clean
            (`vidcm.diffusion.given_frames`); the loss covers the other frames.
        teacher_guidance_only: Step along the sample itself and take only the guidance,
            (w - 1) (v_c - v_u), from the teacher: fine-tuning on clips that the teacher does not
            know, with guidance kept.

    Raises:
        UsageError: An option makes no sense.
    """

    p_mean: float = 0.2
    p_std: float = 1.8
    p_start: float = 0.0
    q: float = 2.0
    stages: int = 6
    huber_c: float = 1e-3
    weight_power: float = 0.0
    max_weight: float = 1e3
    min_sigma: float = 0.0
    given_frames: dict[str, float] | None = None
    teacher_guidance_only: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.q <= 1 or self.stages < 1:
            raise UsageError(
                f"q={self.q}, stages={self.stages}: the gap shrinks only with q > 1 and stages >= 1"
            )
        if self.huber_c < 0 or self.max_weight <= 0:
            raise UsageError(
                f"huber_c {self.huber_c}, max_weight {self.max_weight}: use huber_c from 0 and "
                "max_weight above 0"
            )
        if self.min_sigma < 0:
            raise UsageError(f"min_sigma is {self.min_sigma}; it must be a noise level, 0 or above")
        check_log_normal(self.p_mean, self.p_std)
        check_share("p_start", self.p_start)
        self.given_mask = GivenFrames(self.given_frames)

    def check(self, config: TrainConfig) -> None:
        super().check(config)
        if self.teacher_guidance_only and config.teacher is None:
            raise UsageError(
                "objective.teacher_guidance_only needs a teacher: set teacher to the `final` "
                "folder of the model that the student was distilled from"
            )

    def __call__(self, model: Denoiser, batch: Batch, progress: float, rng: SampleRng) -> Loss:
        assert batch.latents is not None
        x0, path = batch.latents, model.path
        sigma = sample_sigma(path, rng, self.p_mean, self.p_std)
        first = rng.uniform() < self.p_start if self.p_start else torch.zeros_like(sigma).bool()
        sigma = torch.where(first, start_sigma(path, model.first_time), sigma)
        lower = self.lower_sigma(sigma, progress)
        eps = rng.normal(*x0.shape[1:])
        prompts = self.draw_prompts(batch, rng)
        given = self.given_mask.draw(rng, x0.shape[2])

        start = to_path_time(path, [model.first_time]).to(sigma)
        t = torch.where(first, start, path.t_from_sigma(sigma))
        t, r = hold(t, given), hold(path.t_from_sigma(lower), given)
        x_t = path.add_noise(x0, eps, t)
        if self.teacher is None:
            x_r = self.data_step(path, x0, eps, r)
        elif self.teacher_guidance_only:
            guidance = self.teacher_guidance(prompts, x_t, t)
            x_r = self.data_step(path, x0, eps, r) + like(r - t, x_t) * guidance
        else:
            x_r = self.teacher_step(prompts, x_t, t, r)
        cond = self.encode(prompts, model)
        f_t = model.predict_x0(x_t, t, cond)
        with torch.no_grad():
            f_r = model.predict_x0(x_r, r, cond)
            # At r = 0 the consistency function is the identity by construction.
            f_r = torch.where(like(r, x_r) == 0, x_r, f_r)
        error = self.errors(f_t - f_r, given)
        losses = self.weight(sigma, lower) * ((error + self.huber_c**2).sqrt() - self.huber_c)
        ratio = (lower / sigma).mean()
        logs = {"consistency_error": error.detach().sqrt().mean(), "lower_sigma_ratio": ratio}
        return Loss(losses.mean(), logs)

    def lower_sigma(self, sigma: Tensor, progress: float) -> Tensor:
        """Return the target level r at the stage of `progress`.

        n = 1 + 8 sigmoid(-sigma / 2): ECT's k = 8, b = 1 for data of unit variance.
        """
        stage = min(math.floor(progress * self.stages), self.stages - 1)
        shrink = self.q ** -(stage + 1) * (1 + 8 * torch.sigmoid(-0.5 * sigma))
        lower = (sigma * (1 - shrink)).clamp(min=0)
        return torch.where(lower < self.min_sigma, 0, lower)

    def weight(self, sigma: Tensor, lower: Tensor) -> Tensor:
        """Return the weights `(b,)`; the gap is one of sigma, not of the path's time."""
        weight = (1 + sigma) ** self.weight_power / (sigma - lower)
        return weight.clamp(max=self.max_weight)
