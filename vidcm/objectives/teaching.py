"""What objectives that distil share: the question put to teacher and student, and a guided step.

Guidance scales are the ordinary ones, v_u + w (v_c - v_u); the scale that the paper and scripts of
latent consistency models speak of is w - 1 (RECIPES B.2).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vidcm.config import TrainConfig
from vidcm.data.batch import Batch
from vidcm.denoiser import Cond, Denoiser
from vidcm.derivative import Derivative, Exact
from vidcm.errors import UsageError
from vidcm.objectives.flow_matching import guided_velocity
from vidcm.rng import SampleRng
from vidcm.shapes import like

SOLVERS = ("euler", "heun")


@dataclass(frozen=True)
class Question:
    """prompts: those of the batch, some replaced by the empty one. scale: guidance `(b,)`."""

    prompts: list[str]
    scale: Tensor

    @staticmethod
    def draw(batch: Batch, rng: SampleRng, dropout: float, guidance: Sequence[float]) -> "Question":
        """dropout: share of empty prompts. guidance: the range that scales are uniform in."""
        dropped = (rng.uniform() < dropout).tolist()
        low, high = guidance
        prompts = ["" if d else p for d, p in zip(dropped, batch.captions, strict=True)]
        return Question(prompts, low + (high - low) * rng.uniform())

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
    """Raises UsageError where a derivative would fail or be too coarse in a run."""
    exact = isinstance(derivative, Exact)
    if exact and config.zero == 3:
        raise UsageError(
            "objective.derivative exact cannot see through modules that zero=3 shards; "
            "use zero=2, or objective.derivative={name: finite_difference}"
        )
    if not exact and config.precision == "bf16":
        raise UsageError(
            "objective.derivative finite_difference is noise in bf16; "
            "use precision=fp32, or objective.derivative={name: exact}"
        )


def check_question(dropout: float, guidance: Sequence[float]) -> tuple[float, float]:
    """The range as a pair. Raises UsageError for one that is none, or a share outside [0, 1)."""
    if len(guidance) != 2 or not 0 < guidance[0] <= guidance[1]:
        raise UsageError(f"guidance {guidance} is not a range [low, high] above 0")
    if not 0 <= dropout < 1:
        raise UsageError(f"dropout {dropout} is not in [0, 1)")
    return guidance[0], guidance[1]
