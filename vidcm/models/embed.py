"""Embeddings of scalars."""

import math

import torch
from torch import Tensor, nn


class ScalarEmbedding(nn.Module):
    """A sinusoidal embedding of a scalar of order one and a two-layer map, `(...) -> (..., width)`.

    The highest frequency is `top`, so that d emb / d t stays of order 10 to 100, which methods that
    differentiate along time need (Lu & Song 2024, arXiv 2410.11081, section 4.1). zero: start as if
    the scalar were not there.
    """

    def __init__(self, width: int, *, frequencies: int = 64, top: float = 64.0, zero: bool = False):
        super().__init__()
        steps = torch.linspace(0, 1, frequencies)
        self.register_buffer("frequencies", torch.exp(steps * math.log(top)), persistent=False)
        self.frequencies: Tensor
        self.map = nn.Sequential(
            nn.Linear(2 * frequencies, width), nn.SiLU(), nn.Linear(width, width)
        )
        if zero:
            for parameter in self.map[-1].parameters():
                nn.init.zeros_(parameter)

    def forward(self, scalar: Tensor) -> Tensor:
        wide = scalar.to(torch.promote_types(scalar.dtype, torch.float32))
        angles = wide.unsqueeze(-1) * self.frequencies
        waves = torch.cat([angles.cos(), angles.sin()], dim=-1)
        return self.map(waves.to(next(self.map.parameters()).dtype))
