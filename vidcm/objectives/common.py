"""What objectives of students share: prompts with guidance scales, and the guided teacher.

Guidance scales are the ordinary ones, v_u + w (v_c - v_u); the scale of the paper and scripts of
latent consistency models is w - 1 (RECIPES B.2).
"""

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from vidcm.config import TrainConfig
from vidcm.data.batch import Batch
from vidcm.diffusion.base import Cond
from vidcm.diffusion.control import Control
from vidcm.diffusion.denoiser import Denoiser
from vidcm.diffusion.derivative import Derivative, Exact
from vidcm.diffusion.given_frames import free_mean
from vidcm.diffusion.guidance import CFGDenoiser
from vidcm.diffusion.paths import ProbPath
from vidcm.diffusion.shapes import like
from vidcm.errors import UsageError
from vidcm.objectives.base import Objective
from vidcm.registry import build
from vidcm.rng import SampleRng

SOLVERS = ("euler", "heun")
Range = tuple[float, float]
Pair = Range | list[float]  # as an option in YAML


def draw_prompts(batch: Batch, rng: SampleRng, prompt_dropout: float) -> list[str]:
    """Return the captions, a share of them replaced by the empty prompt."""
    dropped = (rng.uniform() < prompt_dropout).tolist()
    return ["" if d else p for d, p in zip(dropped, batch.captions, strict=True)]


@dataclass(frozen=True)
class PromptBatch:
    """The prompts of a batch and their guidance scales, encoded once by each network.

    Args:
        prompts: One for each sample.
        scale: Guidance scales `(b,)`.
        control: What the networks are given beside them.
    """

    prompts: list[str]
    scale: Tensor
    control: Control | None = None
    _encoded: dict[tuple[Any, bool], tuple[Cond, bool]] = field(default_factory=dict, repr=False)

    def encode(self, network: Denoiser, *, with_guidance: bool) -> Cond:
        """Return the condition of a network; with the scales where a teacher supervises it."""
        key = network, with_guidance
        grad = torch.is_grad_enabled()
        if key not in self._encoded or (grad and not self._encoded[key][1]):
            cond = network.encode(self.prompts, self.scale if with_guidance else None)
            if self.control is not None:
                cond = cond.with_control(self.control)
            self._encoded[key] = cond, grad
        return self._encoded[key][0]

    def select(self, rows: Tensor) -> "PromptBatch":
        """Return the prompts at some places of the batch, `(n,)`, as encoded already."""
        encoded = {k: (cond.rows(rows), grad) for k, (cond, grad) in self._encoded.items()}
        control = None if self.control is None else self.control.rows(rows)
        prompts = [self.prompts[i] for i in rows.tolist()]
        return PromptBatch(prompts, self.scale[rows], control, encoded)


@dataclass(eq=False)
class StudentObjective(Objective):
    """An objective of few-step students, with a teacher or without; its fields are the options.

    Args:
        teacher: A frozen denoiser, or None.
        guidance_range: Guidance scales are drawn uniformly from it; teacher and student get them.
        prompt_dropout: Share of empty prompts, in [0, 1], so that negative prompts keep a meaning.

    Raises:
        UsageError: A range or share makes no sense.
    """

    trains = Denoiser
    uses_teacher = True
    needs_teacher: ClassVar[bool] = False
    teacher: Denoiser | None
    _: KW_ONLY
    guidance_range: Pair = (1.0, 5.0)
    prompt_dropout: float = 0.1

    def __post_init__(self) -> None:
        self.guidance_range = check_range("guidance_range", self.guidance_range)
        check_share("prompt_dropout", self.prompt_dropout)
        self._null: Cond | None = None

    @property
    def sampling(self) -> dict[str, Any]:
        return {"sampler": "consistency"}

    def check(self, config: TrainConfig) -> None:
        super().check(config)
        if self.needs_teacher and config.teacher is None:
            raise UsageError(
                f"objective {config.objective['name']} needs a teacher: set teacher to a teacher's "
                "`final` folder"
            )

    def draw_prompts(self, batch: Batch, rng: SampleRng) -> PromptBatch:
        """Draw dropped prompts and guidance scales."""
        prompts, (low, high) = draw_prompts(batch, rng, self.prompt_dropout), self.guidance_range
        return PromptBatch(prompts, low + (high - low) * rng.uniform(), batch.control)

    def encode(self, prompts: PromptBatch, student: Denoiser) -> Cond:
        """Return the student's condition, with guidance scales if a teacher supervises it."""
        supervised = self.needs_teacher or self.teacher is not None
        return prompts.encode(student, with_guidance=supervised)

    @torch.no_grad()
    def teacher_velocity(self, prompts: PromptBatch, x_t: Tensor, t: Tensor) -> Tensor:
        """Return the guided teacher's velocity at `(x_t, t)`, without gradients."""
        assert self.teacher is not None
        guided = CFGDenoiser(self.teacher, prompts.scale, self._negative(len(prompts.prompts)))
        return guided.velocity(x_t, t, prompts.encode(self.teacher, with_guidance=False))

    @torch.no_grad()
    def teacher_guidance(self, prompts: PromptBatch, x_t: Tensor, t: Tensor) -> Tensor:
        """Return what guidance adds to the teacher's velocity, (w - 1) (v_c - v_u)."""
        assert self.teacher is not None
        cond = prompts.encode(self.teacher, with_guidance=False)
        both = cond.stack(self._negative(len(prompts.prompts)))
        v = self.teacher.velocity(torch.cat([x_t, x_t]), torch.cat([t, t]), both)
        conditional, unconditional = v.chunk(2)
        return like(prompts.scale - 1, x_t) * (conditional - unconditional)

    def _negative(self, rows: int) -> Cond:
        """The teacher's condition of the empty prompt, the same in every step as it is frozen."""
        assert self.teacher is not None
        if self._null is None:
            self._null = self.teacher.encode([""])
        null = self._null
        return Cond(null.tokens.expand(rows, -1, -1), null.mask.expand(rows, -1))

    def errors(self, difference: Tensor, given: Tensor | None = None) -> Tensor:
        """Return the mean square of each sample `(b,)`, over the frames that are not given."""
        return free_mean(difference.square(), given)

    def data_step(self, path: ProbPath, x0: Tensor, eps: Tensor, r: Tensor) -> Tensor:
        """Return x_r of the sample itself, with the noise of x_t."""
        return path.add_noise(x0, eps, r)

    def teacher_step(
        self, prompts: PromptBatch, x_t: Tensor, t: Tensor, r: Tensor, solver: str = "euler"
    ) -> Tensor:
        """Return x_r by one step of the guided teacher in the path's time.

        Args:
            prompts: Of the samples.
            x_t: Noisy latents `(b c t h w)` at `t`.
            t: Times on the path, `(b,)` or per frame `(b, t)`.
            r: Times of the result, shaped like `t`.
            solver: "euler" or "heun", which is Euler's at r = 0, where the slope has no value
                (Karras et al. 2022, arXiv 2206.00364, algorithm 1).
        """
        gap = like(r - t, x_t)
        slope = self.teacher_velocity(prompts, x_t, t)
        x_r = x_t + gap * slope
        if solver == "euler":
            return x_r
        second = x_t + gap * (slope + self.teacher_velocity(prompts, x_r, r)) / 2
        return torch.where(like(r, x_t) == 0, x_r, second)


def build_derivative(spec: dict | None) -> Derivative:
    """Return the derivative of a spec, `exact` by default."""
    return build("derivative", {"name": "exact"} if spec is None else spec)


def check_derivative(derivative: Derivative, config: TrainConfig) -> None:
    """Raises UsageError where a derivative is too coarse in a run."""
    if not isinstance(derivative, Exact) and config.precision != "fp32":
        raise UsageError(
            f"objective.derivative finite_difference is noise in bf16, and precision is "
            f"{config.precision}; use precision=fp32, or objective.derivative={{name: exact}}"
        )


MOST_LN_SIGMA = 20  # e^20 is beyond every noise that float32 can add to data


def check_range(name: str, values: Sequence[float]) -> Range:
    """Return the ends of a range. Raises UsageError unless 0 < low <= high."""
    if len(values) != 2 or not 0 < values[0] <= values[1]:
        raise UsageError(f"{name} {values} is not a range [low, high] above 0")
    return values[0], values[1]


def check_log_normal(p_mean: float, p_std: float) -> Range:
    """Return mean and deviation of ln sigma. Raises UsageError for those of no use."""
    if abs(p_mean) > MOST_LN_SIGMA or p_std > MOST_LN_SIGMA:
        raise UsageError(
            f"p_mean is {p_mean:g} and p_std {p_std:g}; both are of ln sigma, so use at most "
            f"{MOST_LN_SIGMA}"
        )
    if p_std < 0:
        raise UsageError(f"p_std is {p_std}; a deviation of ln sigma must be 0 or above")
    return p_mean, p_std


def check_share(name: str, value: float) -> float:
    """Return a share. Raises UsageError outside [0, 1]."""
    if not 0 <= value <= 1:
        raise UsageError(f"{name} is {value}; it must be in [0, 1]")
    return value
