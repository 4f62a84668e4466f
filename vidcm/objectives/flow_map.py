"""Flow maps: from any time to any earlier one in one step, by the average velocity between them.

MeanFlow (Geng et al. 2025, arXiv 2505.13447) in a form that holds on every path: where x_t moves
along its trajectory, the jump x_t -> x_s must not move. The average velocity u is therefore drawn to
u + (d/dt) jump, which on a straight path is eq. 6 there, v - (t - s) du/dt. v is a guided teacher's,
or the sample's own without one. The law of times is that of AnyFlow (RECIPES B.5): the pairs that
one step needs, from noise to data, must be drawn often.
"""

import torch
from torch import Tensor

from vidcm.config import TrainConfig
from vidcm.data.batch import Batch
from vidcm.diffusion.denoiser import Denoiser
from vidcm.diffusion.derivative import Derivative
from vidcm.diffusion.times import SHIFT, T_START, shift
from vidcm.errors import UsageError
from vidcm.objectives.base import Loss
from vidcm.objectives.common import PromptBatch, check_derivative, check_dropout, check_guidance
from vidcm.registry import build
from vidcm.rng import SampleRng


class FlowMap:
    """teacher: a frozen denoiser on the same path, or None. log_normal: [mean, std] of the ln sigma
    that both times are drawn from; null draws them uniformly. shift: factor on sigma of both.
    instant: share of pairs with s = t, which learn the velocity; whole: share with s = 0.
    guidance: range of the scales that teacher and student are told. power, floor: the error e of a
    sample weighs 1 / (e + floor)^power. improved: differentiate along the student's own velocity,
    so that the noise of a sample's stays out of the derivative (Geng et al. 2025, arXiv 2512.02012).
    derivative: how, by its registered name. dropout: share of empty prompts.

    Students need a backbone with two_times. Raises UsageError for a share or range without sense.
    """

    sampling = {"sampler": "flow_map"}

    def __init__(
        self,
        teacher: Denoiser | None,
        log_normal: tuple[float, float] | list[float] | None = None,
        shift: float = SHIFT,
        p_equal: float = 0.5,
        p_to_data: float = 0.25,
        guidance_range: tuple[float, float] | list[float] = (1.0, 5.0),
        adaptive_p: float = 1.0,
        adaptive_c: float = 1e-3,
        improved: bool = False,
        derivative: dict | None = None,
        prompt_dropout: float = 0.1,
    ):
        if p_equal < 0 or p_to_data < 0 or p_equal + p_to_data > 1:
            raise UsageError(
                f"p_equal {p_equal} and p_to_data {p_to_data} are not probabilities; their sum must be at most 1"
            )
        if log_normal is not None and (len(log_normal) != 2 or log_normal[1] <= 0):
            raise UsageError(f"log_normal {log_normal} is not [mean, std] with std above 0")
        if shift <= 0 or adaptive_c <= 0 or adaptive_p < 0:
            raise UsageError(
                f"shift {shift}, adaptive_c {adaptive_c}, adaptive_p {adaptive_p}: use shift and "
                "adaptive_c above 0, adaptive_p from 0"
            )
        self.teacher, self.log_normal, self.shift = teacher, log_normal, shift
        self.p_equal, self.p_to_data, self.improved = p_equal, p_to_data, improved
        self.adaptive_p, self.adaptive_c, self.prompt_dropout = (
            adaptive_p,
            adaptive_c,
            check_dropout(prompt_dropout),
        )
        self.guidance_range = check_guidance(guidance_range)
        self.derivative: Derivative = build(
            "derivative", {"name": "exact"} if derivative is None else derivative
        )

    def check(self, config: TrainConfig) -> None:
        """Raises UsageError for a student of one time, and where the derivative would fail."""
        told = config.model.get("backbone", {}).get("two_times", False)
        if told is not True:
            raise UsageError(
                f"objective flow_map needs a student of two times, but model.backbone.two_times is "
                f"{told}; set it to true (the weights of a one-time init stay good)"
            )
        check_derivative(self.derivative, config)

    def draw_times(self, rng: SampleRng) -> tuple[Tensor, Tensor]:
        """(t, s) in rectified-flow time, `(b,)` each, s <= t."""
        if self.log_normal is None:
            pair = rng.uniform(2)
        else:
            mean, std = self.log_normal
            pair = torch.sigmoid(mean + std * rng.normal(2))
        pair = shift(pair, self.shift).clamp(max=T_START)
        t, s = pair.amax(1), pair.amin(1)
        share = rng.uniform()
        s = torch.where(share < self.p_equal + self.p_to_data, 0.0, s)
        return t, torch.where(share < self.p_equal, t, s)

    def __call__(self, model: Denoiser, batch: Batch, progress: float, rng: SampleRng) -> Loss:
        assert batch.latents is not None
        x0, path = batch.latents, model.path
        t, s = (path.t_from_sigma(p / (1 - p)).clamp(max=path.t_max) for p in self.draw_times(rng))
        eps = rng.normal(*x0.shape[1:])
        prompts = PromptBatch.draw(batch, rng, self.prompt_dropout, self.guidance_range)
        x_t = path.add_noise(x0, eps, t)
        if self.teacher is None:
            v = path.velocity(x0, eps, t)
        else:
            v = prompts.velocity(self.teacher, x_t, t)

        taught = self.teacher is not None
        u = model.velocity(x_t, t, prompts.encode(model, with_guidance=taught), s)
        with torch.no_grad():
            cond = prompts.encode(model, with_guidance=taught)
            along = model.velocity(x_t, t, cond, t) if self.improved else v
            _, moved = self.derivative(
                lambda x, time: model.flow_map(x, time, s, cond),
                (x_t, t),
                (along, torch.ones_like(t)),
            )
            target = u + moved + (v - along)
        errors = (u - target).square().flatten(1).mean(1)
        weights = (errors.detach() + self.adaptive_c) ** -self.adaptive_p
        return Loss((weights * errors).mean(), {"flow_error": errors.detach().sqrt().mean()})
