"""The closed-form Gaussian world, in which every claim about diffusion can be checked by hand.

Data are N(mu, std^2) per element, mu given by the prompt. On any path the noisy marginal is
N(alpha mu, d^2) with d^2 = alpha^2 std^2 + sigma^2, and a trajectory of the probability-flow ODE
keeps its standard score z = (x_t - alpha mu) / d, so that posterior mean, velocity and the whole
flow map are one line each. Guidance moves mu and nothing else: v is affine in mu with a slope that
prompts share, hence v_u + w (v_c - v_u) is the velocity of the world whose mean is
mu_u + w (mu_c - mu_u).
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from vidcm.diffusion.base import Cond, DenoiserBase, Prediction
from vidcm.diffusion.paths import ProbPath, RectifiedFlow, TrigFlow, VarianceExploding
from vidcm.diffusion.shapes import like

PATHS = [RectifiedFlow(), TrigFlow(), VarianceExploding()]


class Gaussian(DenoiserBase):
    """The exact denoiser of this world. means: prompt -> mu, "" among them for guidance.

    Without a target time its prediction is a perfect teacher's, the posterior means. With one it is
    a perfect student's: the data and noise whose mixtures are x_t at t and x_s at s. It obeys the
    guidance scale of its condition.
    """

    def __init__(self, path: ProbPath, std: float = 0.5, means: dict[str, float] | None = None):
        self.path, self.std, self.means = path, std, means or {"": 0.7}

    def encode(self, prompts: Sequence[str], guidance_scale: Tensor | None = None) -> Cond:
        mu = torch.tensor([self.means[p] for p in prompts], dtype=torch.float64)
        return Cond(mu.view(-1, 1, 1), torch.ones(len(mu), 1, dtype=torch.bool), guidance_scale)

    def mean(self, cond: Cond) -> Tensor:
        """mu of every sample `(b,)`, at the guidance scale it was told."""
        mu = cond.tokens[:, 0, 0]
        if cond.guidance_scale is None:
            return mu
        return self.means[""] + cond.guidance_scale.double() * (mu - self.means[""])

    def spread(self, t: Tensor) -> Tensor:
        """Standard deviation of x_t."""
        return torch.hypot(self.path.alpha(t) * self.std, self.path.sigma(t))

    def _deviation(self, x_t: Tensor, t: Tensor, cond: Cond) -> tuple[Tensor, Tensor]:
        mu = like(self.mean(cond), x_t).to(x_t.dtype)
        return mu, x_t - like(self.path.alpha(t), x_t) * mu

    def predict(self, x_t: Tensor, t: Tensor, cond: Cond, s: Tensor | None = None) -> Prediction:
        mu, off = self._deviation(x_t, t, cond)
        alpha, sigma = self.path.alpha(t), self.path.sigma(t)
        gain = alpha * self.std**2 / self.spread(t) ** 2
        x0 = mu + like(gain, x_t) * off
        eps = like(sigma / self.spread(t) ** 2, x_t) * off
        if s is not None:
            x0, eps = jump(self.path, x_t, self.flow(x_t, t, s, cond), t, s, (x0, eps))
        return Prediction(x0, eps, self.path.velocity(x0, eps, t))

    def flow_map(self, x_t: Tensor, t: Tensor, s: Tensor, cond: Cond) -> Tensor:
        return self.flow(x_t, t, s, cond)  # exact, also where t and s all but meet

    def flow(self, x_t: Tensor, t: Tensor, s: Tensor, cond: Cond) -> Tensor:
        """Where the trajectory through x_t at t is at s."""
        mu, off = self._deviation(x_t, t, cond)
        return like(self.path.alpha(s), x_t) * mu + like(self.spread(s) / self.spread(t), x_t) * off


def jump(
    path: ProbPath, x_t: Tensor, x_s: Tensor, t: Tensor, s: Tensor, still: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor]:
    """(x0, eps) of which x_t and x_s are mixtures; `still` where t = s."""
    a_t, n_t, a_s, n_s = (like(f(u), x_t) for u in (t, s) for f in (path.alpha, path.sigma))
    here = like(t == s, x_t)
    area = torch.where(here, 1.0, a_t * n_s - n_t * a_s)
    x0 = torch.where(here, still[0], (n_s * x_t - n_t * x_s) / area)
    eps = torch.where(here, still[1], (a_t * x_s - a_s * x_t) / area)
    return x0, eps


def start(path: ProbPath, noise: Tensor, times: Sequence[float] | Tensor) -> Tensor:
    """Noise alone at the first of a sampler's times."""
    return noise * float(path.sigma(torch.tensor(float(times[0]), dtype=torch.float64)))


class Said(nn.Module):
    """A conditioner for prompts that are numbers: the token is the number."""

    hidden_size = 1

    def forward(self, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        numbers = torch.tensor([float(p or 0) for p in prompts])
        return numbers.view(-1, 1, 1), torch.ones(len(numbers), 1, dtype=torch.bool)
