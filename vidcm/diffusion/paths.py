"""Diffusion paths: x_t = alpha(t) x0 + sigma(t) eps, from data at t = 0 to noise at t = t_max.

All paths are one path seen on different clocks: equal ratios sigma / alpha are equal noise levels
up to a factor on x_t, so a network trained on one can be run on another (`match`). Data have unit
variance per channel. Arithmetic is float32 or wider; times are `(b,)` or per frame `(b, t)`.
"""

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor

from vidcm.diffusion.shapes import like


class ProbPath(ABC):
    """Subclasses give `alpha`, `sigma`, their derivatives, and the time of a noise ratio."""

    t_max: float

    @abstractmethod
    def alpha(self, t: Tensor) -> Tensor:
        """Scale of the data."""

    @abstractmethod
    def sigma(self, t: Tensor) -> Tensor:
        """Scale of the noise."""

    @abstractmethod
    def d_alpha(self, t: Tensor) -> Tensor:
        """d alpha / dt."""

    @abstractmethod
    def d_sigma(self, t: Tensor) -> Tensor:
        """d sigma / dt."""

    @abstractmethod
    def t_from_sigma(self, ratio: Tensor) -> Tensor:
        """The time at which sigma / alpha equals `ratio`."""

    def sigma_ratio(self, t: Tensor) -> Tensor:
        """sigma / alpha, the noise level on the clock that all paths share (EDM's sigma)."""
        return self.sigma(t) / self.alpha(t)

    def add_noise(self, x0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """x_t of clean latents and unit noise."""
        return like(self.alpha(t), x0) * x0 + like(self.sigma(t), x0) * eps

    def velocity(self, x0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """dx_t / dt."""
        return like(self.d_alpha(t), x0) * x0 + like(self.d_sigma(t), x0) * eps

    def to_x0_eps(self, x_t: Tensor, v: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """The (x0, eps) that `add_noise` and `velocity` made x_t and v of."""
        a, s, da, ds = (
            like(f(t), x_t) for f in (self.alpha, self.sigma, self.d_alpha, self.d_sigma)
        )
        wronskian = a * ds - s * da
        return (ds * x_t - s * v) / wronskian, (a * v - da * x_t) / wronskian


class RectifiedFlow(ProbPath):
    """alpha = 1 - t, sigma = t on [0, 1] (Liu et al. 2022, arXiv 2209.03003)."""

    t_max = 1.0

    def alpha(self, t: Tensor) -> Tensor:
        return 1 - t

    def sigma(self, t: Tensor) -> Tensor:
        return t

    def d_alpha(self, t: Tensor) -> Tensor:
        return -torch.ones_like(t)

    def d_sigma(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)

    def t_from_sigma(self, ratio: Tensor) -> Tensor:
        return torch.where(ratio.isinf(), torch.ones_like(ratio), ratio / (1 + ratio))


class TrigFlow(ProbPath):
    """alpha = cos t, sigma = sin t on [0, pi/2] (Lu & Song 2024, arXiv 2410.11081, section 3)."""

    t_max = math.pi / 2

    def alpha(self, t: Tensor) -> Tensor:
        return torch.cos(t)

    def sigma(self, t: Tensor) -> Tensor:
        return torch.sin(t)

    def d_alpha(self, t: Tensor) -> Tensor:
        return -torch.sin(t)

    def d_sigma(self, t: Tensor) -> Tensor:
        return torch.cos(t)

    def t_from_sigma(self, ratio: Tensor) -> Tensor:
        return torch.atan(ratio)


class VarianceExploding(ProbPath):
    """Variance exploding: alpha = 1, sigma = t on [0, 80 / 0.5].

    EDM's clock for data of unit variance (Karras et al. 2022, arXiv 2206.00364).
    """

    t_max = 160.0

    def alpha(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)

    def sigma(self, t: Tensor) -> Tensor:
        return t

    def d_alpha(self, t: Tensor) -> Tensor:
        return torch.zeros_like(t)

    def d_sigma(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)

    def t_from_sigma(self, ratio: Tensor) -> Tensor:
        return ratio


def match(x_t: Tensor, t: Tensor, source: ProbPath, target: ProbPath) -> tuple[Tensor, Tensor]:
    """The same noisy latents on another path: (x, t) on `target` at equal signal-to-noise ratio.

    Computed in float64; times are returned in the dtype of `t`.
    """
    # The float32 next to t_max may lie beyond it, where the ratio changes its sign.
    wide = t.double().clamp(max=source.t_max)
    there = target.t_from_sigma(source.sigma_ratio(wide)).clamp(max=target.t_max)
    # At infinite ratio only the noise is left, and the scale is the ratio of the sigmas.
    size, size_there = (
        torch.hypot(p.alpha(s), p.sigma(s)) for p, s in ((source, wide), (target, there))
    )
    return x_t * like((size_there / size).to(x_t.dtype), x_t), there.to(t.dtype)
