"""Consistency tuning with a continuous noise law and a shrinking gap (RECIPES B.3, C).

f(x_t, t) is drawn to f(x_r, r), r < t on the same trajectory. Geng et al. 2024 (ECT, arXiv
2406.14548) give the gap: r = sigma (1 - q^-(stage + 1) n(sigma)), from diffusion (r = 0) towards
the limit as the stages pass. With a teacher, x_r is one guided Euler step of the teacher's from
x_t, and the student learns the guidance scale as an input; without, x_r shares x_t's noise.
"""

import math

import torch
from torch import Tensor

from vidcm.config import TrainConfig
from vidcm.data.batch import Batch
from vidcm.diffusion.denoiser import Denoiser
from vidcm.diffusion.given_frames import GivenFrames, free_mean, hold
from vidcm.diffusion.shapes import like
from vidcm.diffusion.times import sample_sigma
from vidcm.errors import UsageError
from vidcm.objectives.base import Loss
from vidcm.objectives.common import PromptBatch, check_dropout, check_guidance, check_log_normal
from vidcm.rng import SampleRng


class ConsistencyTuning:
    """teacher: a frozen denoiser on the same path, or None. mean, std: of ln sigma. q, stages: the
    gap shrinks by q at each of `stages` equal parts of the run. guidance: range of the scales the
    student is told (with a teacher). huber: c of the pseudo-Huber loss. dropout: share of empty
    prompts, so that negative prompts keep their meaning. tilt, max_weight: the loss weighs
    (1 + sigma)^tilt / (sigma - r), at most max_weight; tilt 0 is ECT's, 1 gives every octave of
    noise the same say, which latents need whose content is settled at sigma far above 1. straight:
    steps that would end below this sigma go to the data at once, to the mean of what is left open:
    for a network too small for the latents' finest detail, which makes grain of it. given:
    shares of samples of which latent frames are given, by kind (`vidcm.diffusion.given_frames`): teacher and student
    are shown them clean, and the loss is of the others.

    Raises UsageError for a range, count or share that makes no sense.
    """

    def __init__(
        self,
        teacher: Denoiser | None,
        p_mean: float = 0.2,
        p_std: float = 1.8,
        q: float = 2.0,
        stages: int = 6,
        guidance_range: tuple[float, float] | list[float] = (1.0, 5.0),
        huber_c: float = 1e-3,
        prompt_dropout: float = 0.1,
        weight_power: float = 0.0,
        max_weight: float = 1e3,
        min_sigma: float = 0.0,
        given_frames: dict[str, float] | None = None,
    ):
        if q <= 1 or stages < 1:
            raise UsageError(
                f"q={q}, stages={stages}: the gap shrinks only with q > 1 and stages >= 1"
            )
        if huber_c < 0 or max_weight <= 0:
            raise UsageError(
                f"huber_c {huber_c}, max_weight {max_weight}: use huber_c from 0 and max_weight above 0"
            )
        if min_sigma < 0:
            raise UsageError(f"min_sigma is {min_sigma}; it must be a noise level, 0 or above")
        self.p_mean, self.p_std = check_log_normal(p_mean, p_std)
        self.teacher, self.q, self.stages = teacher, q, stages
        self.guidance_range, self.huber_c = check_guidance(guidance_range), huber_c
        self.prompt_dropout = check_dropout(prompt_dropout, all_empty=True)
        self.weight_power, self.max_weight, self.min_sigma = weight_power, max_weight, min_sigma
        self.given_frames = GivenFrames(given_frames)

    def check(self, config: TrainConfig) -> None:
        """Raises UsageError where given frames would go unseen, by the student or the teacher."""
        self.given_frames.check(config)

    def __call__(self, model: Denoiser, batch: Batch, progress: float, rng: SampleRng) -> Loss:
        assert batch.latents is not None
        x0, path = batch.latents, model.path
        sigma = sample_sigma(path, rng, self.p_mean, self.p_std)
        lower = self.lower(sigma, progress)
        eps = rng.normal(*x0.shape[1:])
        prompts = PromptBatch.draw(batch, rng, self.prompt_dropout, self.guidance_range)
        given = self.given_frames.draw(rng, x0.shape[2])

        t, r = (hold(path.t_from_sigma(u), given) for u in (sigma, lower))
        x_t = path.add_noise(x0, eps, t)
        if self.teacher is None:
            x_r = path.add_noise(x0, eps, r)
        else:
            x_r = prompts.step(self.teacher, x_t, t, r, "euler")
        taught = self.teacher is not None
        start = model.predict_x0(x_t, t, prompts.encode(model, with_guidance=taught))
        with torch.no_grad():
            target = model.predict_x0(x_r, r, prompts.encode(model, with_guidance=taught))
            # At r = 0 the consistency function is the identity by construction.
            target = torch.where(like(r, x_r) == 0, x_r, target)
        error = free_mean((start - target).square(), given)
        weight = ((1 + sigma) ** self.weight_power / (sigma - lower)).clamp(max=self.max_weight)
        losses = weight * ((error + self.huber_c**2).sqrt() - self.huber_c)
        logs = {"consistency_error": error.detach().sqrt().mean(), "gap": (lower / sigma).mean()}
        return Loss(losses.mean(), logs)

    def lower(self, sigma: Tensor, progress: float) -> Tensor:
        """r of sigma at the stage that `progress` lies in: n = 1 + 8 sigmoid(-sigma / 2), which is
        ECT's k = 8, b = 1 for data of unit variance; the weights are in sigma, not in t."""
        stage = min(math.floor(progress * self.stages), self.stages - 1)
        shrink = self.q ** -(stage + 1) * (1 + 8 * torch.sigmoid(-0.5 * sigma))
        lower = (sigma * (1 - shrink)).clamp(min=0)
        return torch.where(lower < self.min_sigma, 0, lower)
