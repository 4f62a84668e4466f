"""What every data set yields and every objective consumes."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """captions: b strings. frames: uint8 `(b t h w c)`. latents: float `(b c t h w)`,
    of unit variance on average. One of frames and latents is there. labels: int64
    `(b, attributes)`, where a data set has them."""

    captions: list[str]
    frames: Tensor | None = None
    latents: Tensor | None = None
    labels: Tensor | None = None

    def __len__(self) -> int:
        return len(self.captions)

    def to(self, device: torch.device | str) -> "Batch":
        tensors = {k: getattr(self, k) for k in ("frames", "latents", "labels")}
        return replace(self, **{k: v.to(device) for k, v in tensors.items() if v is not None})


class Dataset(Protocol):
    """A data set is a function of (seed, position): position `p` is always the same sample, so a
    loader has no state to save and a run resumes anywhere."""

    def batch(self, seed: int, positions: Iterable[int]) -> Batch: ...


@dataclass(frozen=True)
class MicroBatch:
    """A part of the global batch and its place in the run (for randomness and error messages)."""

    batch: Batch
    seed: int
    positions: list[int]
