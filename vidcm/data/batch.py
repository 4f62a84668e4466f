"""Batches: the output of data sets and the input of objectives."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from vidcm.diffusion.control import Control


@dataclass(frozen=True)
class Batch:
    """Clips and captions of one training step or a part of it.

    Attributes:
        captions: b strings.
        frames: uint8 `(b t h w c)`; a batch has frames, latents or only captions.
        latents: float `(b c t h w)`, of unit variance on average.
        labels: int64 `(b, attributes)` if the data set has them.
        control: What the network is given beside the captions, if it was encoded too.
    """

    captions: list[str]
    frames: Tensor | None = None
    latents: Tensor | None = None
    labels: Tensor | None = None
    control: Control | None = None

    def __len__(self) -> int:
        return len(self.captions)

    def to(self, device: torch.device | str) -> "Batch":
        tensors = {k: getattr(self, k) for k in ("frames", "latents", "labels")}
        control = None if self.control is None else self.control.map(lambda x: x.to(device))
        moved = {k: v.to(device) for k, v in tensors.items() if v is not None}
        return replace(self, **moved, control=control)


class Dataset(Protocol):
    """A pure function of seed and position, so that loaders have no state and runs resume.

    Attributes:
        size: Number of different samples; None where they are composed.
    """

    @property
    def size(self) -> int | None: ...

    def batch(self, seed: int, positions: Iterable[int]) -> Batch:
        """The samples at these positions of the endless sequence of `seed`."""
        ...


@dataclass(frozen=True)
class MicroBatch:
    """A part of the global batch, with its seed and positions for randomness and messages."""

    batch: Batch
    seed: int
    positions: list[int]
