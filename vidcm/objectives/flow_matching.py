"""Rectified flow: the teacher's objective (Liu et al. 2022, arXiv 2209.03003; RECIPES B.1)."""

from vidcm.config import TrainConfig
from vidcm.data.batch import Batch
from vidcm.diffusion.denoiser import Denoiser
from vidcm.diffusion.given_frames import GivenFrames, free_mean, hold
from vidcm.diffusion.times import log_normal
from vidcm.objectives.base import Loss
from vidcm.objectives.common import check_dropout, check_log_normal, draw_prompts
from vidcm.rng import SampleRng

BINS = 8


class FlowMatching:
    """Regress v = eps - x0 at ln(sigma / alpha) ~ N(mean, std). dropout: share of prompts replaced
    by the empty one, which guidance needs. given: shares of samples of which latent frames are
    given, by kind (`vidcm.diffusion.given_frames`): they are shown clean, and the loss is of the others. The log
    holds the loss in eight bins of rectified-flow time, the one loss whose value tracks quality.
    Raises UsageError for shares that make no sense.
    """

    def __init__(
        self,
        p_mean: float = 0.0,
        p_std: float = 1.0,
        prompt_dropout: float = 0.1,
        given_frames: dict[str, float] | None = None,
    ):
        self.p_mean, self.p_std = check_log_normal(p_mean, p_std)
        self.prompt_dropout = check_dropout(prompt_dropout)
        self.given_frames = GivenFrames(given_frames)

    def check(self, config: TrainConfig) -> None:
        """Raises UsageError where given frames would go unseen."""
        self.given_frames.check(config)

    def __call__(self, model: Denoiser, batch: Batch, progress: float, rng: SampleRng) -> Loss:
        assert batch.latents is not None
        x0 = batch.latents
        ratio = log_normal(rng, self.p_mean, self.p_std)
        t = model.path.t_from_sigma(ratio).clamp(max=model.path.t_max)
        eps = rng.normal(*x0.shape[1:])
        prompts = draw_prompts(batch, rng, self.prompt_dropout)
        given = self.given_frames.draw(rng, x0.shape[2])
        t = hold(t, given)
        v = model.velocity(model.path.add_noise(x0, eps, t), t, model.encode(prompts))
        errors = free_mean((v - model.path.velocity(x0, eps, t)).square(), given)
        logs = {}
        bins = (ratio / (1 + ratio) * BINS).long().clamp(max=BINS - 1)
        for i in range(BINS):
            if (bins == i).any():
                logs[f"loss_t/{i / BINS:.3f}"] = errors.detach()[bins == i].mean()
        return Loss(errors.mean(), logs)
