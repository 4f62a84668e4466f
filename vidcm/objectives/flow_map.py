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
from vidcm.objectives.common import Question, check_derivative, check_dropout, check_guidance
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
        instant: float = 0.5,
        whole: float = 0.25,
        guidance: tuple[float, float] | list[float] = (1.0, 5.0),
        power: float = 1.0,
        floor: float = 1e-3,
        improved: bool = False,
        derivative: dict | None = None,
        dropout: float = 0.1,
    ):
        if instant < 0 or whole < 0 or instant + whole > 1:
            raise UsageError(f"instant {instant} and whole {whole} are not shares of one whole")
        if log_normal is not None and (len(log_normal) != 2 or log_normal[1] <= 0):
            raise UsageError(f"log_normal {log_normal} is not [mean, std] with std above 0")
        if shift <= 0 or floor <= 0 or power < 0:
            raise UsageError(
                f"shift {shift}, floor {floor}, power {power}: use shift and floor above 0, "
                "power from 0"
            )
        self.teacher, self.log_normal, self.shift = teacher, log_normal, shift
        self.instant, self.whole, self.improved = instant, whole, improved
        self.power, self.floor, self.dropout = power, floor, check_dropout(dropout)
        self.guidance = check_guidance(guidance)
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
        s = torch.where(share < self.instant + self.whole, 0.0, s)
        return t, torch.where(share < self.instant, t, s)

    def __call__(self, model: Denoiser, batch: Batch, progress: float, rng: SampleRng) -> Loss:
        assert batch.latents is not None
        x0, path = batch.latents, model.path
        t, s = (path.t_from_sigma(p / (1 - p)).clamp(max=path.t_max) for p in self.draw_times(rng))
        eps = rng.normal(*x0.shape[1:])
        question = Question.draw(batch, rng, self.dropout, self.guidance)
        x_t = path.add_noise(x0, eps, t)
        if self.teacher is None:
            v = path.velocity(x0, eps, t)
        else:
            v = question.velocity(self.teacher, x_t, t)

        taught = self.teacher is not None
        u = model.velocity(x_t, t, question.to(model, taught), s)
        with torch.no_grad():
            cond = question.to(model, taught)
            along = model.velocity(x_t, t, cond, t) if self.improved else v
            _, moved = self.derivative(
                lambda x, time: model.flow_map(x, time, s, cond),
                (x_t, t),
                (along, torch.ones_like(t)),
            )
            target = u + moved + (v - along)
        errors = (u - target).square().flatten(1).mean(1)
        weights = (errors.detach() + self.floor) ** -self.power
        return Loss((weights * errors).mean(), {"flow_error": errors.detach().sqrt().mean()})
