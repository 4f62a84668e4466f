"""Randomness as an argument: sample i of seed s is the same whatever the batch or machine."""

from collections.abc import Iterable
from typing import Protocol, Self

import torch
from torch import Tensor

_MASK = (1 << 64) - 1


def mix(*words: int) -> int:
    """A well-spread 63-bit seed from whole numbers (splitmix64, Steele et al. 2014)."""
    state = 0x9E3779B97F4A7C15
    for word in words:
        state = (state ^ (word & _MASK)) + 0x9E3779B97F4A7C15 & _MASK
        state = (state ^ state >> 30) * 0xBF58476D1CE4E5B9 & _MASK
        state = (state ^ state >> 27) * 0x94D049BB133111EB & _MASK
        state ^= state >> 31
    return state >> 1


class Noise(Protocol):
    """Standard normal draws of a batch: all that a sampler needs of a generator."""

    def __len__(self) -> int:
        """Samples of the batch."""
        ...

    def normal(self, *shape: int) -> Tensor:
        """Standard normal `(b, *shape)`, float32."""
        ...


class SampleRng:
    """One generator per sample, on the CPU so that every device draws the same numbers.

    Args:
        seed: Seed of a run.
        positions: Position of each sample in the run. Equal positions give equal draws, in the
            order of calls.
        device: Where the draws are put.
    """

    def __init__(self, seed: int, positions: Iterable[int], device: torch.device | str = "cpu"):
        self.device = device
        self.generators = [torch.Generator().manual_seed(mix(seed, p)) for p in positions]

    @classmethod
    def of_seeds(cls, seeds: Iterable[int], device: torch.device | str = "cpu") -> Self:
        """One sample for each seed, at position 0."""
        rng = cls(0, (), device)
        rng.generators = [torch.Generator().manual_seed(mix(seed, 0)) for seed in seeds]
        return rng

    def __len__(self) -> int:
        return len(self.generators)

    def normal(self, *shape: int) -> Tensor:
        """Standard normal `(b, *shape)`, float32."""
        draws = [torch.randn(shape, generator=g, dtype=torch.float32) for g in self.generators]
        return torch.stack(draws).to(self.device)

    def uniform(self, *shape: int) -> Tensor:
        """Uniform in [0, 1) `(b, *shape)`, float32."""
        draws = [torch.rand(shape, generator=g, dtype=torch.float32) for g in self.generators]
        return torch.stack(draws).to(self.device)
