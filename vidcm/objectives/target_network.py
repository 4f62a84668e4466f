"""A copy of the student beside it: the target network of consistency losses, or a later teacher.

It is neither trained nor exported. It moves only right before the student's steps and is part of
the checkpoint, so a resumed run continues exactly.
"""

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Container
from typing import cast

import torch
from torch import nn

from vidcm.diffusion.denoiser import Denoiser
from vidcm.errors import UsageError


class TargetNetwork(ABC):
    """A copy in full on every rank; each rank moves its own by the same weights."""

    def __init__(self) -> None:
        self._network: Denoiser | None = None

    @property
    def network(self) -> Denoiser:
        """The copy, fp32, without gradients."""
        assert self._network is not None, "there is no copy before `start`"
        return self._network

    def start(self, student: nn.Module) -> None:
        """Copy the student, before an engine wraps or casts it."""
        copied = copy.deepcopy(student).eval().requires_grad_(False)
        self._network = cast(Denoiser, copied)

    @abstractmethod
    def before_step(self, student: nn.Module, progress: float) -> None:
        """Move the copy, or leave it; once before each of the student's steps."""

    def state(self, names: Container[str]) -> dict:
        """Return the state of an exact resume: the tensors called `names`, and plain data."""
        return {"network": {k: v for k, v in self.network.state_dict().items() if k in names}}

    def load(self, state: dict) -> None:
        """Restore what `state` returned; other tensors stay."""
        self.network.load_state_dict(state["network"], strict=False)

    @torch.no_grad()
    def _lerp(self, student: nn.Module, share: float) -> None:
        """Move by `share` of the way to the student; at 1 the copy is exact."""
        pairs = zip(self.network.parameters(), student.parameters(), strict=True)
        own, new = zip(*((p, s.detach().to(p.dtype)) for p, s in pairs), strict=True)
        if share == 1:
            torch._foreach_copy_(own, new)
        else:
            torch._foreach_lerp_(own, new, share)
        for buffer, source in zip(self.network.buffers(), student.buffers(), strict=True):
            buffer.copy_(source)


class EmaTarget(TargetNetwork):
    """An exponential moving average of the student's weights.

    Song et al. 2023, arXiv 2303.01469, algorithm 2.

    Args:
        decay: The share that is kept at each step, in (0, 1).

    Raises:
        UsageError: The decay is out of range.
    """

    def __init__(self, decay: float):
        if not 0 < decay < 1:
            raise UsageError(
                f"target_decay is {decay}; it must be between 0 and 1, or null for a target that "
                "is the student itself"
            )
        super().__init__()
        self.decay = decay

    def before_step(self, student: nn.Module, progress: float) -> None:
        self._lerp(student, 1 - self.decay)


class FrozenTarget(TargetNetwork):
    """The student at the start of the current one of `parts` equal parts of the run."""

    def __init__(self, parts: int):
        super().__init__()
        self.parts, self.part = parts, 0

    def part_at(self, progress: float) -> int:
        """Return the part, from 0, that `progress` lies in."""
        return min(math.floor(progress * self.parts), self.parts - 1)

    def before_step(self, student: nn.Module, progress: float) -> None:
        part = self.part_at(progress)
        if part != self.part:
            self._lerp(student, 1)
            self.part = part

    def state(self, names: Container[str]) -> dict:
        return super().state(names) | {"part": self.part}

    def load(self, state: dict) -> None:
        super().load(state)
        self.part = state["part"]
