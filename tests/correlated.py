"""The closed-form Gaussian world of clips: frames that hang together, each at a time of its own.

Over frames, an element is N(mu, C), mu given by the prompt; elements are independent. With A and S
the diagonals of alpha and sigma, one entry per frame, x_t is N(A mu, A C A + S^2), so posterior mean
and velocity are one line each; a frame at time 0 is known, and the others are those of the law given
it. That law is Gaussian again, so that trajectories keep its standard scores. As in `oracle.py`
guidance moves mu and nothing else.
"""

import torch
from oracle import Gaussian, jump
from torch import Tensor, nn

from vidcm.diffusion.base import Cond, Prediction
from vidcm.diffusion.paths import ProbPath
from vidcm.diffusion.shapes import like
from vidcm.rng import SampleRng

MEANS = {"": 0.2, "up": 0.9}


def covariance(frames: int = 3) -> Tensor:
    """Neighbours alike, and the last frame less spread than the others; float64."""
    place = torch.arange(frames, dtype=torch.float64)
    scale = 1 - 0.3 * place / frames
    return 0.6 * torch.exp(-(place[:, None] - place).abs() / 2) * scale[:, None] * scale


def given_law(mean: Tensor, cov: Tensor, given: Tensor, seen: Tensor) -> tuple[Tensor, Tensor]:
    """Mean `(free, k)` and covariance of the free frames, given frames `seen (given, k)`; the
    textbook's formula. mean: `(frames,)`. given: bool `(frames,)`."""
    gain = cov[~given][:, given] @ torch.linalg.inv(cov[given][:, given])
    centre = mean[~given, None] + gain @ (seen - mean[given, None])
    return centre, cov[~given][:, ~given] - gain @ cov[given][:, ~given]


class Clips(Gaussian):
    """The exact denoiser, float64: without a target time a perfect teacher that was trained
    with given frames, with one a perfect student. Times are `(b,)` or `(b, t)`; jumps want equal
    times of the frames that are not at 0."""

    def __init__(self, path: ProbPath, cov: Tensor | None = None):
        super().__init__(path, means=MEANS)
        self.cov = covariance() if cov is None else cov

    def draw(self, places: range, prompt: str = "up", size: int = 2) -> Tensor:
        """Clean clips `(b 2 t size 2)`."""
        noise = SampleRng(8, places).normal(2, len(self.cov), size, 2).double()
        return self.means[prompt] + _mix(torch.linalg.cholesky(self.cov), noise)

    def predict(self, x_t: Tensor, t: Tensor, cond: Cond, s: Tensor | None = None) -> Prediction:
        """E[x0 | x_t] and E[eps | x_t], each frame's from all frames; or those of a jump."""
        frames = t if t.ndim == 2 else t[:, None].expand(-1, len(self.cov))
        alpha, sigma = self.path.alpha(frames).double(), self.path.sigma(frames).double()
        mu = like(self.mean(cond), x_t)
        spread = alpha[:, :, None] * self.cov * alpha[:, None] + torch.diag_embed(sigma**2)
        off = _mix(torch.linalg.inv(spread), x_t - like(alpha, x_t) * mu)
        x0 = mu + _mix(self.cov * alpha[:, None], off)
        eps = like(sigma, x_t) * off
        if s is not None:
            x0, eps = jump(self.path, x_t, self.flow(x_t, t, s, cond), t, s, (x0, eps))
        return Prediction(x0, eps, self.path.velocity(x0, eps, frames.double()))

    def flow(self, x_t: Tensor, t: Tensor, s: Tensor, cond: Cond) -> Tensor:
        return torch.stack(
            [self._one(*one) for one in zip(x_t, t, s, self.mean(cond), strict=True)]
        )

    def _one(self, x: Tensor, t: Tensor, s: Tensor, mu: Tensor) -> Tensor:
        """The flow of one sample `(c t h w)`; t and s a time, or one per frame."""
        frames = len(self.cov)
        t, s = t.double().expand(frames), s.double().expand(frames)
        given = t == 0
        if given.all():
            return x
        flat = x.transpose(0, 1).flatten(1)  # t k
        (at, to), out = (u[~given].unique() for u in (t, s)), flat.clone()
        assert len(at) == len(to) == 1, "frames at several times that are not 0"
        centre, cov = given_law(mu.expand(frames).double(), self.cov, given, flat[given])
        values, basis = torch.linalg.eigh(cov)
        now, then = (
            torch.sqrt(self.path.alpha(u) ** 2 * values + self.path.sigma(u) ** 2) for u in (at, to)
        )
        score = (basis.T @ (flat[~given] - self.path.alpha(at) * centre)) / now[:, None]
        out[~given] = self.path.alpha(to) * centre + basis @ (then[:, None] * score)
        return out.view(frames, x.shape[0], *x.shape[2:]).transpose(0, 1)


def _mix(matrix: Tensor, x: Tensor) -> Tensor:
    """A matrix `(t t)` or `(b t t)` applied along the frames of `x (b c t h w)`."""
    batched = matrix if matrix.ndim == 3 else matrix.expand(len(x), -1, -1)
    return torch.einsum("bij,bcjhw->bcihw", batched, x)


class Framewise(nn.Module):
    """A backbone that sees all frames of an element with their times, and no other element."""

    def __init__(self, channels: int, context: int, frames: int = 3, width: int = 64):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(3 * frames + context, width),
            nn.SiLU(),
            nn.Linear(width, width),
            nn.SiLU(),
            nn.Linear(width, frames),
        )

    def forward(self, x: Tensor, time: Tensor, cond: Cond) -> Tensor:
        elements = x.movedim(2, -1)  # b c h w t
        times = time if time.ndim == 2 else time[:, None].expand(-1, x.shape[2])
        known = torch.cat([times, times == 0, cond.tokens[:, 0].to(x.dtype)], dim=1).to(x.dtype)
        known = known[:, None, None, None].expand(*elements.shape[:-1], -1)
        return self.layers(torch.cat([elements, known], dim=-1)).movedim(-1, 2)
