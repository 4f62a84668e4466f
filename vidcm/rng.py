"""Randomness as an argument: sample i of seed s is the same whatever the batch or machine."""

from collections.abc import Iterable, Sequence

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


class SampleRng:
    """One generator per sample, on the CPU so that every device draws the same numbers.

    seed, positions: the sample's place in the run; equal places give equal draws, in call order.
    """

    def __init__(self, seed: int, positions: Iterable[int], device: torch.device | str = "cpu"):
        self.device = device
        self.generators = [torch.Generator().manual_seed(mix(seed, p)) for p in positions]

    def __len__(self) -> int:
        return len(self.generators)

    def normal(self, *shape: int) -> Tensor:
        """Standard normal `(b, *shape)`, fp32."""
        draws = [torch.randn(shape, generator=g) for g in self.generators]
        return torch.stack(draws).to(self.device)

    def uniform(self, *shape: int) -> Tensor:
        """Uniform in [0, 1) `(b, *shape)`, fp32."""
        draws = [torch.rand(shape, generator=g) for g in self.generators]
        return torch.stack(draws).to(self.device)


class SampleRngs(SampleRng):
    """The generators of clips by their own seeds: place 0 of each seed."""

    def __init__(self, seeds: Sequence[int], device: torch.device):
        super().__init__(0, [], device)
        self.generators = [g for s in seeds for g in SampleRng(s, [0]).generators]
