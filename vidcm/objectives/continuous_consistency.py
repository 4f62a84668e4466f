"""Consistency in continuous time: sCM (Lu & Song 2024, arXiv 2410.11081; RECIPES B.4).

The limit of consistency tuning: no gap, but the derivative of f along the trajectory, which is zero
for the exact map. In TrigFlow's time, tau = atan(sigma / alpha), every path is z = cos x0 + sin eps
and every network is f = cos z - sin F, so one objective serves all denoisers on all paths.
With a teacher dz/dtau is the guided teacher's F, and the student learns the guidance scale as an
input; without, it is that of the sample's own noise, cos eps - sin x0.

Derivatives are taken along ln(sigma / alpha) = ln tan tau instead of tau. Since d tau = sin cos
d ln tan tau, this is the rearranged tangent of the paper's section 4.2, cos sin dF/dtau, and it is
of order one at every noise level.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from vidcm.config import TrainConfig
from vidcm.data.batch import Batch
from vidcm.diffusion.base import Cond
from vidcm.diffusion.denoiser import Denoiser
from vidcm.diffusion.paths import ProbPath
from vidcm.diffusion.shapes import like
from vidcm.diffusion.times import sample_sigma
from vidcm.errors import UsageError
from vidcm.objectives.base import Loss
from vidcm.objectives.common import (
    PromptBatch,
    StudentObjective,
    build_derivative,
    check_derivative,
    check_log_normal,
    check_share,
)
from vidcm.rng import SampleRng


@dataclass(eq=False, kw_only=True)
class ContinuousConsistency(StudentObjective):
    """Continuous-time consistency, sCM, with a teacher or without.

    |g| is the root mean square of a sample's tangent and the loss its mean square error: the pair
    that does not depend on the number of latents (L2 norm and sum is the other; mixing them changes
    the effective learning rate by that number). There is no weight over time, as in rCM (Zheng et
    al. 2025, arXiv 2510.08431). The loss itself stays below one and tells little; `tangent_norm` in
    the log, |g| before normalisation, falls as the student nears the exact map.

    Args:
        teacher: A frozen denoiser on any path, or None.
        p_mean: Mean of ln sigma / alpha.
        p_std: Deviation of ln sigma / alpha.
        guidance_range: Scales of teacher and student.
        prompt_dropout: Share of empty prompts.
        warmup: Share of the run over which the tangent's unstable part grows to its full weight.
        tangent_c: c of the normalised tangent g / (|g| + c), above 0.
        derivative: Spec of how to differentiate, `exact` (default) or `finite_difference`.

    Raises:
        UsageError: An option makes no sense.
    """

    p_mean: float = 0.2
    p_std: float = 1.8
    warmup: float = 0.2
    tangent_c: float = 0.1
    derivative: dict | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.tangent_c > 0:
            raise UsageError(f"tangent_c is {self.tangent_c}; it must be above 0")
        check_log_normal(self.p_mean, self.p_std)
        check_share("warmup", self.warmup)
        self.differentiate = build_derivative(self.derivative)

    def check(self, config: TrainConfig) -> None:
        super().check(config)
        check_derivative(self.differentiate, config)

    def __call__(self, model: Denoiser, batch: Batch, progress: float, rng: SampleRng) -> Loss:
        assert batch.latents is not None
        x0 = batch.latents
        ratio = sample_sigma(model.path, rng, self.p_mean, self.p_std)
        eps = rng.normal(*x0.shape[1:])
        prompts = self.draw_prompts(batch, rng)

        cond = self.encode(prompts, model)
        cos, sin = _cos_sin(ratio, x0)
        z = cos * x0 + sin * eps
        if self.teacher is None:
            dz = self.data_direction(x0, eps, ratio)
        else:
            dz = self.teacher_direction(prompts, z, ratio)

        def network(z: Tensor, log_ratio: Tensor) -> Tensor:
            return trig_velocity(model, z, log_ratio.exp(), cond)

        log_ratio = ratio.log()
        along = self.trajectory(ratio, z, dz)
        f, df = self.differentiate(network, (z, log_ratio), along)
        tangent = self.tangent(ratio, z, dz, f, df, self.rho(progress))
        size = self.norm(tangent)
        target = f + tangent / (size + self.tangent_c)
        losses = self.errors(network(z, log_ratio) - target)
        velocity_error = (f - dz).square().flatten(1).mean(1).sqrt()
        logs = {"tangent_norm": size.mean(), "velocity_error": velocity_error.mean()}
        return Loss(losses.mean(), logs)

    def data_direction(self, x0: Tensor, eps: Tensor, ratio: Tensor) -> Tensor:
        """Return dz / dtau of the sample itself."""
        return _trig_velocity(x0, eps, ratio)

    def teacher_direction(self, prompts: PromptBatch, z: Tensor, ratio: Tensor) -> Tensor:
        """Return dz / dtau of the guided teacher, without gradients."""
        assert self.teacher is not None
        path = self.teacher.path
        x_t, t = _to_path(path, z, ratio)
        v = self.teacher_velocity(prompts, x_t, t)
        return _trig_velocity(*path.to_x0_eps(x_t, v, t), ratio)

    def trajectory(self, ratio: Tensor, z: Tensor, dz: Tensor) -> tuple[Tensor, Tensor]:
        """Return the derivatives of z and ln ratio by ln ratio along the trajectory."""
        cos, sin = _cos_sin(ratio, z)
        return (cos * sin * dz).to(z.dtype), torch.ones_like(ratio)

    def rho(self, progress: float) -> float:
        """Return the weight of the part of the tangent that feeds back on itself."""
        return min(1.0, progress / self.warmup) if self.warmup else 1.0

    def tangent(
        self, ratio: Tensor, z: Tensor, dz: Tensor, f: Tensor, df: Tensor, rho: float
    ) -> Tensor:
        """Return cos df/dtau, rearranged: -cos^2 (F - dz) - rho (cos sin z + dF)."""
        cos, sin = _cos_sin(ratio, z)
        return -cos.square() * (f - dz) - rho * (cos * sin * z + df)

    def norm(self, tangent: Tensor) -> Tensor:
        """Return the root mean square of each sample, shaped to divide the tangent."""
        return like(tangent.square().flatten(1).mean(1).sqrt(), tangent)


def trig_velocity(model: Denoiser, z: Tensor, ratio: Tensor, cond: Cond) -> Tensor:
    """Return F of a denoiser's consistency function, whatever its path.

    Args:
        model: The denoiser.
        z: Noisy latents on TrigFlow's path `(b c t h w)`.
        ratio: sigma / alpha `(b,)`.
        cond: The condition.
    """
    x_t, t = _to_path(model.path, z, ratio)
    prediction = model.predict(x_t, t, cond, torch.zeros_like(t))
    return _trig_velocity(prediction.x0, prediction.eps, ratio)


def _cos_sin(ratio: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """Cosine and sine of the angle whose tangent is `ratio`, shaped to multiply x."""
    size = torch.hypot(ratio, torch.ones_like(ratio))
    return like(1 / size, x), like(ratio / size, x)


def _to_path(path: ProbPath, z: Tensor, ratio: Tensor) -> tuple[Tensor, Tensor]:
    """TrigFlow's z at a noise ratio, as x_t and t of another path."""
    t = path.t_from_sigma(ratio)
    return z * like(torch.hypot(path.alpha(t), path.sigma(t)), z), t


def _trig_velocity(x0: Tensor, eps: Tensor, ratio: Tensor) -> Tensor:
    """F = cos eps - sin x0."""
    cos, sin = _cos_sin(ratio, x0)
    return cos * eps - sin * x0
