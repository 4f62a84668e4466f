"""What an objective is: a callable that turns a batch into a loss, and knows nothing of training."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor, nn

from vidcm.data.batch import Batch
from vidcm.errors import UsageError
from vidcm.objectives.target_network import TargetNetwork
from vidcm.rng import SampleRng

STUDENT = "student"  # the role of the model that a run is about


@dataclass
class Loss:
    """total: the scalar to descend. logs: detached scalars for the training log."""

    total: Tensor
    logs: dict[str, Tensor] = field(default_factory=dict)


class Objective(Protocol):
    """One file per method. progress runs from 0 to 1 over the training run; `rng` gives every
    sample its own draws, so a loss does not depend on how a batch is split over ranks."""

    def __call__(self, model: nn.Module, batch: Batch, progress: float, rng: SampleRng) -> Loss: ...


@dataclass
class Role:
    """A further network that an objective trains, and that ends with the run.

    objective: the loss of its turns; like every objective it is handed the student, which it must
    not pull on. rate: its learning rate over the student's. betas: of its AdamW, if other."""

    module: nn.Module
    objective: Callable[[Any, Batch, float, SampleRng], Loss]
    lr_scale: float = 1.0
    betas: tuple[float, float] | None = None


class Joint(Objective, Protocol):
    """An objective that trains further networks beside the student: they take turns, one optimiser
    step each. The student's own turns call the objective; it must not pull on the others."""

    @property
    def roles(self) -> dict[str, Role]: ...

    def turn(self, step: int, progress: float) -> str:
        """Whose the step is: STUDENT or a name among `roles`; a pure function, so that a resumed
        run goes on with the right one."""
        ...


def roles_of(objective: object) -> dict[str, Role]:
    """The further roles of an objective; most have none."""
    return getattr(objective, "roles", {})


def target_network_of(objective: object) -> TargetNetwork | None:
    """The copy of the student that an objective holds; most hold none."""
    return getattr(objective, "held", None)


def whose_turn(step: int, student_update_freq: int, others: Sequence[str]) -> str:
    """In every period of `every` steps the others go first, in rotation, and the student last."""
    place = step % student_update_freq
    return (
        STUDENT if place == student_update_freq - 1 or not others else others[place % len(others)]
    )


def check_period(student_update_freq: int, others: int) -> None:
    """Raises UsageError when a period of `every` steps has no turn for one of the roles."""
    if student_update_freq < 1 + others:
        raise UsageError(
            f"student_update_freq is {student_update_freq}; {others + 1} networks need at least {others + 1} turns"
        )


def role_settings(lr_scale: float, betas: Sequence[float] | None) -> tuple[float, float] | None:
    """The betas as a pair. Raises UsageError for a rate or betas that make no sense."""
    if lr_scale <= 0:
        raise UsageError(f"lr_scale is {lr_scale}; it must be above 0")
    if betas is None:
        return None
    if len(betas) != 2 or not all(0 <= b < 1 for b in betas):
        raise UsageError(f"betas {betas} are not two numbers in [0, 1)")
    return betas[0], betas[1]
