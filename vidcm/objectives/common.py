"""What objectives share: the question put to teacher and student, and a guided step.

Guidance scales are the ordinary ones, v_u + w (v_c - v_u); the scale that the paper and scripts of
latent consistency models speak of is w - 1 (RECIPES B.2).
"""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vidcm.config import TrainConfig
from vidcm.data.batch import Batch
from vidcm.diffusion.base import Cond
from vidcm.diffusion.denoiser import Denoiser
from vidcm.diffusion.derivative import Derivative, Exact
from vidcm.diffusion.guidance import CFGDenoiser
from vidcm.diffusion.shapes import like
from vidcm.errors import UsageError
from vidcm.registry import lookup
from vidcm.rng import SampleRng

SOLVERS = ("euler", "heun")


def draw_prompts(batch: Batch, rng: SampleRng, dropout: float) -> list[str]:
    """The captions, a share `dropout` of them replaced by the empty one."""
    dropped = (rng.uniform() < dropout).tolist()
    return ["" if d else p for d, p in zip(dropped, batch.captions, strict=True)]


def guided_velocity(
    teacher: Denoiser, x_t: Tensor, t: Tensor, prompts: list[str], scale: Tensor
) -> Tensor:
    """The teacher's guided velocity, without gradients, one guidance scale per sample."""
    with torch.no_grad():
        guided = CFGDenoiser(teacher, scale, teacher.encode([""] * len(prompts)))
        return guided.velocity(x_t, t, teacher.encode(prompts))


@dataclass(frozen=True)
class Question:
    """prompts: those of the batch, some replaced by the empty one. scale: guidance `(b,)`."""

    prompts: list[str]
    scale: Tensor

    @staticmethod
    def draw(batch: Batch, rng: SampleRng, dropout: float, guidance: Sequence[float]) -> "Question":
        """dropout: share of empty prompts. guidance: the range that scales are uniform in."""
        prompts, (low, high) = draw_prompts(batch, rng, dropout), guidance
        return Question(prompts, low + (high - low) * rng.uniform())

    def of(self, rows: Tensor) -> "Question":
        """That of some samples, by their places in the batch."""
        return Question([self.prompts[i] for i in rows.tolist()], self.scale[rows])

    def to(self, student: Denoiser, taught: bool) -> Cond:
        """As a student hears it: the scale only when a teacher answers with it."""
        return student.encode(self.prompts, self.scale if taught else None)

    def velocity(self, teacher: Denoiser, x_t: Tensor, t: Tensor) -> Tensor:
        """The guided teacher's answer, without gradients."""
        return guided_velocity(teacher, x_t, t, self.prompts, self.scale)

    def step(self, teacher: Denoiser, x_t: Tensor, t: Tensor, r: Tensor, solver: str) -> Tensor:
        """x_r by one step of the guided teacher's in the path's own time: "euler", or "heun", which
        is Euler's at r = 0, where there is no slope to add (Karras et al. 2022, algorithm 1)."""
        gap = like(r - t, x_t)
        slope = self.velocity(teacher, x_t, t)
        ahead = x_t + gap * slope
        if solver == "euler":
            return ahead
        second = x_t + gap * (slope + self.velocity(teacher, ahead, r)) / 2
        return torch.where(like(r, x_t) == 0, ahead, second)


def check_derivative(derivative: Derivative, config: TrainConfig) -> None:
    """Raises UsageError where a derivative would be too coarse in a run."""
    if not isinstance(derivative, Exact) and config.precision == "bf16":
        raise UsageError(
            "objective.derivative finite_difference is noise in bf16; "
            "use precision=fp32, or objective.derivative={name: exact}"
        )


def check_guidance(guidance: Sequence[float]) -> tuple[float, float]:
    """The range of scales as a pair. Raises UsageError for one that is none, or not above 0."""
    if len(guidance) != 2 or not 0 < guidance[0] <= guidance[1]:
        raise UsageError(f"guidance {guidance} is not a range [low, high] above 0")
    return guidance[0], guidance[1]


def check_log_normal(mean: float, std: float) -> tuple[float, float]:
    """Mean and deviation of ln sigma. Raises UsageError for a deviation below 0."""
    if std < 0:
        raise UsageError(f"std is {std}; a deviation of ln sigma must be 0 or above")
    return mean, std


def check_dropout(dropout: float, *, all_empty: bool = False) -> float:
    """The share of empty prompts. Raises UsageError outside [0, 1); all_empty: 1 will do too."""
    if not 0 <= dropout <= 1 or (dropout == 1 and not all_empty):
        raise UsageError(f"dropout {dropout} is not in [0, 1{']' if all_empty else ')'}")
    return dropout


def guidance_of(objective: dict) -> list[float]:
    """The range of scales that students of an objective are told; of an objective made of others,
    that of its consistency term."""
    spec = objective.get("consistency", objective)
    if "guidance" in spec or "name" not in spec:
        return list(spec.get("guidance", (1.0, 5.0)))
    options = inspect.signature(lookup("objective", spec["name"])).parameters
    return list(options["guidance"].default) if "guidance" in options else [1.0, 5.0]
