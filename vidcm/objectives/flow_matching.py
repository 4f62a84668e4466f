"""Rectified flow: the teacher's objective (Liu et al. 2022, arXiv 2209.03003; RECIPES B.1)."""

from dataclasses import dataclass

import torch
from torch import Tensor

from vidcm.data.batch import Batch
from vidcm.diffusion.denoiser import Denoiser
from vidcm.diffusion.given_frames import GivenFrames, free_mean, hold
from vidcm.diffusion.times import log_normal
from vidcm.errors import UsageError
from vidcm.objectives.base import Loss, Objective
from vidcm.objectives.common import check_log_normal, draw_prompts
from vidcm.rng import SampleRng

BINS = 8


@dataclass(eq=False, kw_only=True)
class FlowMatching(Objective):
    """Regress the velocity dx_t/dt at ln(sigma / alpha) ~ N(p_mean, p_std).

    The log has the loss in eight bins of rectified-flow time; it tracks the quality of samples.

    Args:
        p_mean: Mean of ln sigma.
        p_std: Deviation of ln sigma.
        prompt_dropout: Share of empty prompts, in [0, 1); guidance needs them.
        given_frames: Share of samples by kind of frames that the network sees clean
            (`vidcm.diffusion.given_frames`); the loss covers the other frames.

    Raises:
        UsageError: An option makes no sense.
    """

    trains = Denoiser

    p_mean: float = 0.0
    p_std: float = 1.0
    prompt_dropout: float = 0.1
    given_frames: dict[str, float] | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.prompt_dropout < 1:
            raise UsageError(f"prompt_dropout is {self.prompt_dropout}; it must be in [0, 1)")
        check_log_normal(self.p_mean, self.p_std)
        self.given_mask = GivenFrames(self.given_frames)

    def __call__(self, model: Denoiser, batch: Batch, progress: float, rng: SampleRng) -> Loss:
        assert batch.latents is not None
        x0 = batch.latents
        sigma = log_normal(rng, self.p_mean, self.p_std)
        t = model.path.t_from_sigma(sigma).clamp(max=model.path.t_max)
        eps = rng.normal(*x0.shape[1:])
        prompts = draw_prompts(batch, rng, self.prompt_dropout)
        given = self.given_mask.draw(rng, x0.shape[2])
        t = hold(t, given)
        cond = model.encode(prompts).with_control(batch.control)
        v = model.velocity(model.path.add_noise(x0, eps, t), t, cond)
        errors = self.errors(v - model.path.velocity(x0, eps, t), given)
        return Loss(errors.mean(), _by_time(errors.detach(), sigma / (1 + sigma)))

    def errors(self, difference: Tensor, given: Tensor | None) -> Tensor:
        """Return the mean square of each sample `(b,)`, over the frames that are not given."""
        return free_mean(difference.square(), given)


def _by_time(errors: Tensor, t: Tensor) -> dict[str, Tensor]:
    """Mean errors in bins of rectified-flow time; NaN for a bin without samples."""
    bins = (t * BINS).long().clamp(max=BINS - 1)
    sums = errors.new_zeros(BINS).index_add(0, bins, errors)
    means = sums / torch.bincount(bins, minlength=BINS)
    return {f"loss_t/{i / BINS:.3f}": mean for i, mean in enumerate(means.unbind())}
