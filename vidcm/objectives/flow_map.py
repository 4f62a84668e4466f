"""Flow maps: from any time to any earlier one in one step, by the average velocity between them.

MeanFlow (Geng et al. 2025, arXiv 2505.13447) in a form that holds on every path: where x_t moves
along its trajectory, the flow map x_t -> x_s must not move. The average velocity u is therefore
regressed on u + (d/dt) flow_map, which is eq. 6 there where paths are straight lines, v - (t - s)
du/dt. v is the guided teacher's, or the sample's own without a teacher. Times are drawn as by
AnyFlow (RECIPES B.5): the pairs of one-step sampling, from noise to data, must be drawn often.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vidcm.config import TrainConfig
from vidcm.data.batch import Batch
from vidcm.diffusion.base import Cond
from vidcm.diffusion.denoiser import Denoiser
from vidcm.diffusion.paths import ProbPath
from vidcm.diffusion.times import SHIFT, T_START, shift
from vidcm.errors import UsageError
from vidcm.objectives.base import Loss
from vidcm.objectives.common import (
    Pair,
    StudentObjective,
    build_derivative,
    check_derivative,
    check_share,
)
from vidcm.registry import lookup
from vidcm.rng import SampleRng


@dataclass(eq=False, kw_only=True)
class FlowMap(StudentObjective):
    """Learn the average velocity between any two times. Students need `backbone.two_times`.

    Args:
        teacher: A frozen denoiser on the student's path, or None.
        log_normal: [mean, std] of the ln sigma of both times; None draws them uniformly.
        shift: Factor on sigma / alpha of both.
        p_equal: Probability of s = t, which teaches the velocity.
        p_to_data: Probability of s = 0.
        p_start: Share of samples with t at the first time of sampling, which is pure noise for
            students of public models; other draws never reach that.
        guidance_range: Scales of teacher and student.
        adaptive_p: The error e of a sample weighs 1 / (e + adaptive_c)^adaptive_p.
        adaptive_c: See adaptive_p; above 0.
        improved: Differentiate along the student's own velocity, so that the noise of a sample's
            velocity stays out of the derivative (Geng et al. 2025, arXiv 2512.02012).
        derivative: Spec of how to differentiate, `exact` (default) or `finite_difference`.
        prompt_dropout: Share of empty prompts.

    Raises:
        UsageError: An option makes no sense.
    """

    log_normal: Pair | None = None
    shift: float = SHIFT
    p_equal: float = 0.5
    p_to_data: float = 0.25
    p_start: float = 0.0
    adaptive_p: float = 1.0
    adaptive_c: float = 1e-3
    improved: bool = False
    derivative: dict | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.p_equal < 0 or self.p_to_data < 0 or self.p_equal + self.p_to_data > 1:
            raise UsageError(
                f"p_equal {self.p_equal} and p_to_data {self.p_to_data} are not probabilities; "
                "their sum must be at most 1"
            )
        law = self.log_normal
        if law is not None and (len(law) != 2 or law[1] <= 0):
            raise UsageError(f"log_normal {law} is not [mean, std] with std above 0")
        if self.shift <= 0 or self.adaptive_c <= 0 or self.adaptive_p < 0:
            raise UsageError(
                f"shift {self.shift}, adaptive_c {self.adaptive_c}, adaptive_p {self.adaptive_p}: "
                "use shift and adaptive_c above 0, adaptive_p from 0"
            )
        check_share("p_start", self.p_start)
        self.differentiate = build_derivative(self.derivative)

    @property
    def sampling(self) -> dict[str, Any]:
        return {"sampler": "flow_map"}

    def check(self, config: TrainConfig) -> None:
        super().check(config)
        student: type[Denoiser] = lookup("model", config.model["name"])
        if not student.spec_has_two_times(config.model):
            raise UsageError(
                "objective flow_map needs a student of two times: set model.backbone.two_times to "
                "true (the weights of a one-time init stay good), or take a public model with two, "
                "such as AnyFlow"
            )
        check_derivative(self.differentiate, config)

    def draw_times(self, rng: SampleRng, first: float = T_START) -> tuple[Tensor, Tensor]:
        """Return (t, s) in rectified-flow time, `(b,)` each, s <= t; first: that of sampling."""
        if self.log_normal is None:
            pair = rng.uniform(2)
        else:
            mean, std = self.log_normal
            pair = torch.sigmoid(mean + std * rng.normal(2))
        pair = shift(pair, self.shift).clamp(max=T_START)
        t, s = pair.amax(1), pair.amin(1)
        if self.p_start:
            t = torch.where(rng.uniform() < self.p_start, first, t)
        u = rng.uniform()
        s = torch.where(u < self.p_equal + self.p_to_data, 0.0, s)
        return t, torch.where(u < self.p_equal, t, s)

    def __call__(self, model: Denoiser, batch: Batch, progress: float, rng: SampleRng) -> Loss:
        assert batch.latents is not None
        x0, path = batch.latents, model.path
        times = self.draw_times(rng, model.first_time)
        t, s = (path.t_from_sigma(p / (1 - p)).clamp(max=path.t_max) for p in times)
        eps = rng.normal(*x0.shape[1:])
        prompts = self.draw_prompts(batch, rng)
        x_t = path.add_noise(x0, eps, t)
        if self.teacher is None:
            v = self.data_velocity(path, x0, eps, t)
        else:
            v = self.teacher_velocity(prompts, x_t, t)

        cond = self.encode(prompts, model)
        u = model.velocity(x_t, t, cond, s)
        with torch.no_grad():
            along = model.velocity(x_t, t, cond, t) if self.improved else v
            target = self.regression_target(u, v, along, self.moved(model, x_t, t, s, cond, along))
        errors = self.errors(u - target)
        logs = {"flow_error": errors.detach().sqrt().mean()}
        return Loss(self.reduce(errors), logs)

    def data_velocity(self, path: ProbPath, x0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """Return the velocity of the sample itself."""
        return path.velocity(x0, eps, t)

    def moved(
        self, model: Denoiser, x_t: Tensor, t: Tensor, s: Tensor, cond: Cond, along: Tensor
    ) -> Tensor:
        """Return (d/dt) flow_map(x_t, t, s) where x_t moves with the velocity `along`."""

        def to_s(x: Tensor, time: Tensor) -> Tensor:
            return model.flow_map(x, time, s, cond)

        return self.differentiate(to_s, (x_t, t), (along, torch.ones_like(t)))[1]

    def regression_target(self, u: Tensor, v: Tensor, along: Tensor, moved: Tensor) -> Tensor:
        """Return the target of u; what the derivative moved along is no part of its error."""
        return u + moved + (v - along)

    def reduce(self, errors: Tensor) -> Tensor:
        """Return the loss of errors `(b,)`; their weights are numbers to the gradient."""
        return (self.weight(errors.detach()) * errors).mean()

    def weight(self, errors: Tensor) -> Tensor:
        """Return the weights of errors `(b,)`."""
        return (errors + self.adaptive_c) ** -self.adaptive_p
