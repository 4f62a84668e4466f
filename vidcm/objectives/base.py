"""What an objective is: a callable that turns a batch into a loss, and knows nothing of training."""

from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor, nn

from vidcm.data.batch import Batch
from vidcm.rng import SampleRng


@dataclass
class Loss:
    """total: the scalar to descend. logs: detached scalars for the training log."""

    total: Tensor
    logs: dict[str, Tensor] = field(default_factory=dict)


class Objective(Protocol):
    """One file per method. progress runs from 0 to 1 over the training run; `rng` gives every
    sample its own draws, so a loss does not depend on how a batch is split over ranks."""

    def __call__(self, model: nn.Module, batch: Batch, progress: float, rng: SampleRng) -> Loss: ...
