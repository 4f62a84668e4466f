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
class PromptBatch:
    """prompts: those of the batch, some replaced by the empty one. scale: guidance `(b,)`."""

    prompts: list[str]
    scale: Tensor

    @staticmethod
    def draw(
        batch: Batch, rng: SampleRng, dropout: float, guidance: Sequence[float]
    ) -> "PromptBatch":
        """dropout: share of empty prompts. guidance: the range that scales are uniform in."""
        prompts, (low, high) = draw_prompts(batch, rng, dropout), guidance
        return PromptBatch(prompts, low + (high - low) * rng.uniform())

    def of(self, rows: Tensor) -> "PromptBatch":
        """That of some samples, by their places in the batch."""
        return PromptBatch([self.prompts[i] for i in rows.tolist()], self.scale[rows])

    def encode(self, student: Denoiser, *, with_guidance: bool) -> Cond:
        """The condition of a student; with the guidance scale only where a teacher supervises it."""
        return student.encode(self.prompts, self.scale if with_guidance else None)

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


def check_guidance(guidance_range: Sequence[float]) -> tuple[float, float]:
    """The range of scales as a pair. Raises UsageError for one that is none, or not above 0."""
    if len(guidance_range) != 2 or not 0 < guidance_range[0] <= guidance_range[1]:
        raise UsageError(f"guidance_range {guidance_range} is not a range [low, high] above 0")
    return guidance_range[0], guidance_range[1]


def check_log_normal(p_mean: float, p_std: float) -> tuple[float, float]:
    """Mean and deviation of ln sigma. Raises UsageError for a deviation below 0."""
    if p_std < 0:
        raise UsageError(f"p_std is {p_std}; a deviation of ln sigma must be 0 or above")
    return p_mean, p_std


def check_dropout(prompt_dropout: float, *, all_empty: bool = False) -> float:
    """The share of empty prompts. Raises UsageError outside [0, 1); all_empty: 1 will do too."""
    if not 0 <= prompt_dropout <= 1 or (prompt_dropout == 1 and not all_empty):
        raise UsageError(
            f"prompt_dropout {prompt_dropout} is not in [0, 1{']' if all_empty else ')'}"
        )
    return prompt_dropout


def guidance_of(objective: dict) -> list[float]:
    """The range of scales that students of an objective are told; of an objective made of others,
    that of its consistency term."""
    spec = objective.get("consistency", objective)
    if "guidance_range" in spec or "name" not in spec:
        return list(spec.get("guidance_range", (1.0, 5.0)))
    options = inspect.signature(lookup("objective", spec["name"])).parameters
    return list(options["guidance_range"].default) if "guidance_range" in options else [1.0, 5.0]
