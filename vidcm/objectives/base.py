"""What an objective is: a callable from a batch to a loss, and the facts that a run needs of it."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from torch import Tensor, nn

from vidcm.config import TrainConfig
from vidcm.data.batch import Batch
from vidcm.diffusion.given_frames import GivenFrames
from vidcm.errors import UsageError
from vidcm.objectives.target_network import TargetNetwork
from vidcm.rng import SampleRng

STUDENT = "student"  # the role of the model that is trained and exported


@dataclass
class Loss:
    """A scalar to descend, and detached scalars for the training log."""

    total: Tensor
    logs: dict[str, Tensor] = field(default_factory=dict)


@dataclass
class Role:
    """A further network that an objective trains; it ends with the run.

    Args:
        module: The network.
        loss: The loss of its turns. It gets the student, like every objective, and gives it no
            gradient.
        lr_scale: Factor on the student's learning rate.
        betas: Of its AdamW; the student's by default.
    """

    module: nn.Module
    loss: Callable[[Any, Batch, float, SampleRng], Loss]
    lr_scale: float = 1.0
    betas: Sequence[float] | None = None


class Objective(ABC):
    """A method of training. Subclasses state facts as attributes; the loop knows no method.

    Attributes:
        trains: The class of models it is for.
        uses_teacher: Whether its constructor takes a frozen teacher.
        target: A copy of the student that it compares the student with, or None.
        guidance_range: Guidance scales that its students take as an input, or None.
        given_mask: Which latent frames of a sample the network sees clean.
        role_names: Names of the further networks that it trains; `roles` has them.
        student_update_freq: With further networks, the student has one step in so many.
        sampling: How its students are sampled, as keys of `pipeline.json`: `sampler`, and where
            they apply `phases`, `timesteps` and `lowest_sigma`. None for models that are sampled
            by solvers of their ODE, and for those that are not sampled.
    """

    trains: ClassVar[type[nn.Module]] = nn.Module
    uses_teacher: ClassVar[bool] = False
    target: TargetNetwork | None = None
    guidance_range: Sequence[float] | None = None
    given_mask: GivenFrames = GivenFrames()
    role_names: tuple[str, ...] = ()
    student_update_freq: int = 1

    @property
    def sampling(self) -> dict[str, Any] | None:
        return None

    @property
    def roles(self) -> dict[str, Role]:
        """Further networks that take turns with the student, one optimizer step each."""
        return {}

    def turn(self, step: int, progress: float) -> str:
        """Return the role that trains in a step: STUDENT or one of `role_names`.

        In every period the others rotate, and the student comes last. A pure function, so that a
        resumed run continues with the right role.
        """
        place, names = step % self.student_update_freq, self.role_names
        last = place == self.student_update_freq - 1
        return STUDENT if last or not names else names[place % len(names)]

    def check(self, config: TrainConfig) -> None:
        """Refuse a run that the objective is unsound in.

        Raises:
            UsageError: The config contradicts the objective.
        """
        self.given_mask.check(config)

    def before_step(self, student: nn.Module, progress: float) -> None:
        """Run right before each of the student's steps."""
        if self.target:
            self.target.before_step(student, progress)

    @abstractmethod
    def __call__(self, model: Any, batch: Batch, progress: float, rng: SampleRng) -> Loss:
        """Compute the loss of a batch.

        Args:
            model: The model that is trained, an instance of `trains`.
            batch: Latents `(b c t h w)` or frames, with captions.
            progress: Share of the training run that is over, in [0, 1).
            rng: Draws per sample, so that the loss does not depend on how a batch is split over
                ranks.
        """


def check_period(student_update_freq: int, others: int) -> None:
    """Raises UsageError when a period has no turn for one of the roles."""
    if student_update_freq < 1 + others:
        raise UsageError(
            f"student_update_freq is {student_update_freq}; {others + 1} networks need at least "
            f"{others + 1} turns"
        )


def role_settings(lr_scale: float, betas: Sequence[float] | None) -> tuple[float, float] | None:
    """Return betas as a pair. Raises UsageError for a factor or betas out of range."""
    if lr_scale <= 0:
        raise UsageError(f"lr_scale is {lr_scale}; it must be above 0")
    if betas is None:
        return None
    if len(betas) != 2 or not all(0 <= b < 1 for b in betas):
        raise UsageError(f"betas {betas} are not two numbers in [0, 1)")
    return betas[0], betas[1]
