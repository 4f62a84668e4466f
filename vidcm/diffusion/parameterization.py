"""What a network reads and predicts: the scale of its input, its output, and its clock.

Networks that were trained elsewhere differ in these and in nothing else that a denoiser must know,
so that objectives and samplers see clean latents, noise and velocity of any network on any path.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor


class NetworkClock(ABC):
    """A network's time input, from the scales of data and noise."""

    @abstractmethod
    def __call__(self, alpha: Tensor, sigma: Tensor) -> Tensor:
        """The time input of latents alpha x0 + sigma eps, shaped like the scales."""


@dataclass(frozen=True)
class FlowClock(NetworkClock):
    """Rectified-flow time u = sigma / (alpha + sigma) as `offset + scale * u`.

    Attributes:
        scale: 1 for [0, 1], 1000 for networks that count up to 1000, -1 for a reversed clock.
        offset: The time input of clean latents.
    """

    scale: float = 1.0
    offset: float = 0.0

    def __call__(self, alpha: Tensor, sigma: Tensor) -> Tensor:
        return self.offset + self.scale * (sigma / (sigma + alpha))


class DiscreteClock(NetworkClock):
    """Index into the noise levels of a discrete diffusion process, linear in angle between them.

    Args:
        alphas_cumprod: Squared scales of the data `(steps,)`, descending, of a variance-preserving
            process (Ho et al. 2020, arXiv 2006.11239).
    """

    def __init__(self, alphas_cumprod: Tensor):
        wide = alphas_cumprod.double().clamp(0, 1)
        self.angles = torch.atan2((1 - wide).sqrt(), wide.sqrt())

    def __call__(self, alpha: Tensor, sigma: Tensor) -> Tensor:
        angles = self.angles.to(alpha.device, torch.promote_types(alpha.dtype, torch.float32))
        angle = torch.atan2(sigma, alpha).to(angles.dtype)
        above = torch.searchsorted(angles, angle.detach()).clamp(1, len(angles) - 1)
        low, high = angles[above - 1], angles[above]
        return (above - 1 + (angle - low) / (high - low)).clamp(min=0, max=len(angles) - 1)


class Parameterization(ABC):
    """Scale of the input and meaning of the output of a network.

    Args:
        clock: Its time input; rectified-flow time in [0, 1] by default.
        sign: -1 for a network that predicts the negative of the output named by the class.
    """

    def __init__(self, clock: NetworkClock | None = None, sign: int = 1):
        self.clock, self.sign = clock or FlowClock(), sign

    @abstractmethod
    def size(self, alpha: Tensor, sigma: Tensor) -> Tensor:
        """What noisy latents are divided by before the network sees them."""

    @abstractmethod
    def recover(self, z: Tensor, out: Tensor, a: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
        """Clean latents and noise.

        Args:
            z: Input of the network, a x0 + s eps.
            out: Its output, in float32.
            a: Scale of the data in z, broadcastable to it.
            s: Scale of the noise in z.
        """


class VPrediction(Parameterization):
    """Input of unit variance, output F = a eps - s x0 (Salimans & Ho 2022, arXiv 2202.00512).

    The velocity of TrigFlow.
    """

    def size(self, alpha: Tensor, sigma: Tensor) -> Tensor:
        return torch.hypot(alpha, sigma)

    def recover(self, z: Tensor, out: Tensor, a: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
        out = self.sign * out
        return a * z - s * out, s * z + a * out


class FlowPrediction(Parameterization):
    """Input of rectified flow, a + s = 1, output eps - x0 (Liu et al. 2022, arXiv 2209.03003)."""

    def size(self, alpha: Tensor, sigma: Tensor) -> Tensor:
        return alpha + sigma

    def recover(self, z: Tensor, out: Tensor, a: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
        out = self.sign * out
        return z - s * out, z + a * out
