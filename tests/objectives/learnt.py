"""The Gaussian world with two parameters to learn: samples are N(mu + shift, std^2)."""

import torch
from oracle import Gaussian
from torch import Tensor, nn

from vidcm.data.batch import Batch
from vidcm.diffusion.base import Cond
from vidcm.diffusion.paths import ProbPath
from vidcm.rng import SampleRng

MEANS = {"": 0.4, "up": 0.9}
TRUE = 0.5  # the data's standard deviation


class Learnt(nn.Module, Gaussian):
    """Student and fake score in one: `clean` makes the samples, `predict` scores them."""

    def __init__(self, path: ProbPath, shift: float = 0.0, std: float = TRUE):
        nn.Module.__init__(self)
        Gaussian.__init__(self, path, std, MEANS)
        self.shift = nn.Parameter(torch.tensor(shift, dtype=torch.float64))
        self.std = nn.Parameter(torch.tensor(std, dtype=torch.float64))

    def mean(self, cond: Cond) -> Tensor:
        return super().mean(cond) + self.shift


def batch(places: range, size: int = 16) -> Batch:
    """Data of this world, `(b 1 1 1 size)` float64."""
    x0 = MEANS["up"] + TRUE * SampleRng(8, places).normal(1, 1, 1, size).double()
    return Batch(["up"] * len(x0), latents=x0)
