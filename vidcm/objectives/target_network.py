"""A copy of the student that an objective holds beside it: a target network, or a teacher.

It is not trained and not exported. It moves only right before the student's steps and is part of
the checkpoint, so that a resumed run goes on exactly.
"""

import copy
import math
from typing import cast

import torch
from torch import nn

from vidcm.diffusion.denoiser import Denoiser
from vidcm.errors import UsageError


class TargetNetwork:
    """What its kinds share. Objectives have it as their attribute `held`; the engine calls the
    methods. A copy lies whole on every rank, and each rank moves its own by the same weights."""

    def __init__(self) -> None:
        self._network: Denoiser | None = None

    @property
    def network(self) -> Denoiser:
        """The copy, fp32, without gradients."""
        assert self._network is not None, "nothing is held before `start`"
        return self._network

    def start(self, student: nn.Module) -> None:
        """Copy the student as it is, before an engine wraps or casts it."""
        copied = copy.deepcopy(student).eval().requires_grad_(False)
        self._network = cast(Denoiser, copied)

    def before_step(self, student: nn.Module, progress: float) -> None:
        """Move the copy, or leave it where it is; once before each of the student's steps."""
        raise NotImplementedError

    def state(self) -> dict:
        """Everything an exact resume needs, as tensors and plain data."""
        return {"network": self.network.state_dict()}

    def load(self, state: dict) -> None:
        """Take what `state` gave."""
        self.network.load_state_dict(state["network"])

    @torch.no_grad()
    def _draw_near(self, student: nn.Module, share: float) -> None:
        """Go this share of the way to the student; all the way, to the bit, at 1."""
        pairs = zip(self.network.parameters(), student.parameters(), strict=True)
        own, new = zip(*((p, s.detach().to(p.dtype)) for p, s in pairs), strict=True)
        if share == 1:
            torch._foreach_copy_(own, new)
        else:
            torch._foreach_lerp_(own, new, share)
        for buffer, source in zip(self.network.buffers(), student.buffers(), strict=True):
            buffer.copy_(source)


class EmaTarget(TargetNetwork):
    """An exponential average of the student's weights (Song et al. 2023, arXiv 2303.01469,
    algorithm 2). decay: what is kept of it at each step, in (0, 1)."""

    def __init__(self, decay: float):
        super().__init__()
        self.decay = decay

    def before_step(self, student: nn.Module, progress: float) -> None:
        self._draw_near(student, 1 - self.decay)


def average(decay: float | None) -> EmaTarget | None:
    """The target that an option `target_decay` asks for: none for null. Raises UsageError outside
    (0, 1)."""
    if decay is None:
        return None
    if not 0 < decay < 1:
        raise UsageError(
            f"target_decay is {decay}; it must be between 0 and 1, or null for a target that is "
            "the student itself"
        )
    return EmaTarget(decay)


class FrozenTarget(TargetNetwork):
    """The student as it was when the present one of `parts` equal parts of the run began."""

    def __init__(self, parts: int):
        super().__init__()
        self.parts, self.part = parts, 0

    def part_at(self, progress: float) -> int:
        """The part, from 0, that `progress` lies in."""
        return min(math.floor(progress * self.parts), self.parts - 1)

    def before_step(self, student: nn.Module, progress: float) -> None:
        part = self.part_at(progress)
        if part != self.part:
            self._draw_near(student, 1)
            self.part = part

    def state(self) -> dict:
        return super().state() | {"part": self.part}

    def load(self, state: dict) -> None:
        super().load(state)
        self.part = state["part"]
