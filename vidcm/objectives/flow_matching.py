"""Rectified flow: the teacher's objective (Liu et al. 2022, arXiv 2209.03003; RECIPES B.1)."""

import torch

from vidcm.data.batch import Batch
from vidcm.denoiser import Denoiser, Guided
from vidcm.errors import UsageError
from vidcm.objectives.base import Loss
from vidcm.rng import SampleRng
from vidcm.times import log_normal

BINS = 8


class FlowMatching:
    """Regress v = eps - x0 at ln(sigma / alpha) ~ N(mean, std). dropout: share of prompts replaced
    by the empty one, which guidance needs. The log holds the loss in eight bins of
    rectified-flow time, the one
    loss whose value tracks quality."""

    def __init__(self, mean: float = 0.0, std: float = 1.0, dropout: float = 0.1):
        if not 0 <= dropout < 1:
            raise UsageError(f"dropout {dropout} is not in [0, 1)")
        self.mean, self.std, self.dropout = mean, std, dropout

    def __call__(self, model: Denoiser, batch: Batch, progress: float, rng: SampleRng) -> Loss:
        assert batch.latents is not None
        x0 = batch.latents
        ratio = log_normal(rng, self.mean, self.std)
        t = model.path.time_of(ratio).clamp(max=model.path.t_max)
        eps = rng.normal(*x0.shape[1:])
        dropped = (rng.uniform() < self.dropout).tolist()
        prompts = ["" if d else p for d, p in zip(dropped, batch.captions, strict=True)]
        v = model.velocity(model.path.noise(x0, eps, t), t, model.encode(prompts))
        errors = (v - model.path.velocity(x0, eps, t)).square().flatten(1).mean(1)
        logs = {}
        bins = (ratio / (1 + ratio) * BINS).long().clamp(max=BINS - 1)
        for i in range(BINS):
            if (bins == i).any():
                logs[f"loss_t/{i / BINS:.3f}"] = errors.detach()[bins == i].mean()
        return Loss(errors.mean(), logs)


def guided_velocity(
    teacher: Denoiser, x_t: torch.Tensor, t: torch.Tensor, prompts: list[str], scale: torch.Tensor
) -> torch.Tensor:
    """The teacher's guided velocity, without gradients, one guidance scale per sample."""
    with torch.no_grad():
        guided = Guided(teacher, scale, teacher.encode([""] * len(prompts)))
        return guided.velocity(x_t, t, teacher.encode(prompts))
