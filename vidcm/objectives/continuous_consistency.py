"""Consistency in continuous time: sCM (Lu & Song 2024, arXiv 2410.11081; RECIPES B.4).

The limit of consistency tuning: no gap, but the derivative of f along the trajectory, which is zero
for the exact map. On TrigFlow's clock, tau = atan(sigma / alpha), every path is z = cos x0 + sin eps
and every network is f = cos z - sin F, so one objective serves all denoisers on all paths.
With a teacher dz/dtau is the teacher's guided F, and the student learns the guidance scale as an
input; without, it is that of the noise that made z, cos eps - sin x0.

Derivatives are taken along ln(sigma / alpha) = ln tan tau instead of tau. Since d tau = sin cos
d ln tan tau, this is the rearranged tangent of the paper's section 4.2, cos sin dF/dtau, and it is
of order one at every noise level.
"""

import torch
from torch import Tensor

from vidcm.config import TrainConfig
from vidcm.data.batch import Batch
from vidcm.diffusion.base import Cond
from vidcm.diffusion.denoiser import Denoiser
from vidcm.diffusion.derivative import Derivative
from vidcm.diffusion.paths import ProbPath
from vidcm.diffusion.shapes import like
from vidcm.diffusion.times import sample_sigma
from vidcm.errors import UsageError
from vidcm.objectives.base import Loss
from vidcm.objectives.common import PromptBatch, check_derivative, check_guidance, check_log_normal
from vidcm.registry import build
from vidcm.rng import SampleRng


class ContinuousConsistency:
    """teacher: a frozen denoiser on any path, or None. mean, std: of ln sigma / alpha. guidance:
    range of the scales the student is told (with a teacher). dropout: share of empty prompts, so
    that negative prompts keep their meaning. warmup: share of the run over which the part of the
    tangent that feeds back on itself grows to its full weight rho = 1. normalise: c of g / (|g| + c).
    derivative: spec of how to differentiate, `exact` or `finite_difference`.

    |g| is the root mean square of a sample's tangent and the loss its mean square error: the pair
    that does not depend on the number of latents (L2 norm and sum is the other; mixing them changes
    the effective learning rate by that number). No weight over time, given or learnt, as in rCM
    (Zheng et al. 2025, arXiv 2510.08431). The loss itself stays below one and says little; the
    log's `tangent`, |g| before it is normalised, falls as the student nears the exact map.

    Raises UsageError for a range or share that makes no sense.
    """

    def __init__(
        self,
        teacher: Denoiser | None,
        p_mean: float = 0.2,
        p_std: float = 1.8,
        guidance_range: tuple[float, float] | list[float] = (1.0, 5.0),
        prompt_dropout: float = 0.1,
        warmup: float = 0.2,
        tangent_c: float = 0.1,
        derivative: dict | None = None,
    ):
        for name, share in (("prompt_dropout", prompt_dropout), ("warmup", warmup)):
            if not 0 <= share <= 1:
                raise UsageError(f"{name} is {share}; it must be in [0, 1]")
        if not tangent_c > 0:
            raise UsageError(f"tangent_c is {tangent_c}; it must be above 0")
        self.teacher, (self.p_mean, self.p_std) = teacher, check_log_normal(p_mean, p_std)
        self.guidance_range, self.prompt_dropout = check_guidance(guidance_range), prompt_dropout
        self.warmup, self.tangent_c = warmup, tangent_c
        self.derivative: Derivative = build(
            "derivative", {"name": "exact"} if derivative is None else derivative
        )

    def check(self, config: TrainConfig) -> None:
        """Raises UsageError where the derivative would fail or be too coarse in such a run."""
        check_derivative(self.derivative, config)

    def __call__(self, model: Denoiser, batch: Batch, progress: float, rng: SampleRng) -> Loss:
        assert batch.latents is not None
        x0 = batch.latents
        ratio = sample_sigma(model.path, rng, self.p_mean, self.p_std)
        eps = rng.normal(*x0.shape[1:])
        prompts = PromptBatch.draw(batch, rng, self.prompt_dropout, self.guidance_range)

        cond = prompts.encode(model, with_guidance=self.teacher is not None)
        cos, sin = _cos_sin(ratio, x0)
        z = cos * x0 + sin * eps
        if self.teacher is None:
            dz = cos * eps - sin * x0
        else:
            dz = _guided_direction(self.teacher, z, ratio, prompts)

        def direction(z: Tensor, log_ratio: Tensor) -> Tensor:
            return _direction(model, z, log_ratio.exp(), cond)

        place = (z, ratio.log())
        along = ((cos * sin * dz).to(z.dtype), torch.ones_like(ratio))
        still, pushed = self.derivative(direction, place, along)
        rho = min(1.0, progress / self.warmup) if self.warmup else 1.0
        tangent = -cos.square() * (still - dz) - rho * (cos * sin * z + pushed)
        size = like(tangent.square().flatten(1).mean(1).sqrt(), tangent)
        target = still + tangent / (size + self.tangent_c)
        losses = (direction(*place) - target).square().flatten(1).mean(1)
        off = (still - dz).square().flatten(1).mean(1).sqrt()
        return Loss(losses.mean(), {"tangent": size.mean(), "from_velocity": off.mean()})


def _cos_sin(ratio: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """Cosine and sine of the angle whose tangent is `ratio`, shaped to multiply x."""
    size = torch.hypot(ratio, torch.ones_like(ratio))
    return like(1 / size, x), like(ratio / size, x)


def _on(path: ProbPath, z: Tensor, ratio: Tensor) -> tuple[Tensor, Tensor]:
    """TrigFlow's z at a noise ratio, as x_t and t of another path."""
    t = path.t_from_sigma(ratio)
    return z * like(torch.hypot(path.alpha(t), path.sigma(t)), z), t


def _turned(clean: Tensor, eps: Tensor, ratio: Tensor) -> Tensor:
    """F = cos eps - sin x0 of a prediction."""
    cos, sin = _cos_sin(ratio, clean)
    return cos * eps - sin * clean


def _direction(model: Denoiser, z: Tensor, ratio: Tensor, cond: Cond) -> Tensor:
    """F of a denoiser's consistency function, whatever its path."""
    x_t, t = _on(model.path, z, ratio)
    found = model.predict(x_t, t, cond, torch.zeros_like(t))
    return _turned(found.x0, found.eps, ratio)


def _guided_direction(teacher: Denoiser, z: Tensor, ratio: Tensor, prompts: PromptBatch) -> Tensor:
    """dz / dtau by the guided teacher, without gradients."""
    x_t, t = _on(teacher.path, z, ratio)
    v = prompts.velocity(teacher, x_t, t)
    return _turned(*teacher.path.to_x0_eps(x_t, v, t), ratio)
