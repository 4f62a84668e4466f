"""A denoiser: a backbone on a path, with its text tower. Teachers and students are denoisers;
so is a guided denoiser. Samplers and objectives see nothing else.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from vidcm.diffusion.base import Cond, Prediction
from vidcm.diffusion.paths import ProbPath
from vidcm.diffusion.shapes import like
from vidcm.registry import build

if TYPE_CHECKING:
    pass


class Denoiser(nn.Module):
    """backbone, conditioner, path: specs for the registry. channels: of the latents.

    Whatever the path, the network sees unit-variance input z = x_t / n, n^2 = alpha^2 + sigma^2,
    and predicts F = (alpha eps - sigma x0) / n, the velocity of TrigFlow (v-prediction, Salimans &
    Ho 2022, arXiv 2202.00512): next to noise that is -x0, so a narrow network need not carry the
    noise of wide latents through. A backbone with the option `two_times` is also told where a jump
    ends, and predicts the average of F on the way there; without, a jump is a step of DDIM. Casts
    to and from the network's precision happen here and nowhere else. Raises UsageError for unknown
    parts.
    """

    def __init__(self, backbone: dict, conditioner: dict, channels: int, path: dict | None = None):
        super().__init__()
        self.conditioner = build("conditioner", conditioner)
        self.backbone = build(
            "backbone", backbone, channels=channels, context=self.conditioner.hidden_size
        )
        self.path: ProbPath = build("path", path or {"name": "rectified_flow"})
        self.two_times = bool(backbone.get("two_times", False))
        self.channels = channels

    def encode(self, prompts: Sequence[str], guidance: Tensor | None = None) -> Cond:
        """Prompts to a condition; the empty prompt is the unconditional one."""
        tokens, mask = self.conditioner(prompts)
        return Cond(tokens, mask, guidance)

    def predict(self, x_t: Tensor, t: Tensor, cond: Cond, s: Tensor | None = None) -> Prediction:
        """Clean latents, noise and velocity dx_t / dt on this denoiser's path, float32.

        s: where a jump ends, for two times; they are then what leads there in one straight step.
        The default, t itself, gives the velocity at t."""
        alpha, sigma = self.path.alpha(t), self.path.sigma(t)
        size = torch.hypot(alpha, sigma)
        cos, sin = like(alpha / size, x_t), like(sigma / size, x_t)
        z = x_t / like(size, x_t)
        end = (self._clock(t if s is None else s),) if self.two_times else ()
        out = self.backbone(z, self._clock(t), cond, *end).float()
        x0, eps = cos * z - sin * out, sin * z + cos * out
        return Prediction(x0, eps, self.path.velocity(x0, eps, t))

    def _clock(self, t: Tensor) -> Tensor:
        """What the network is told of time: rectified-flow time, in [0, 1] on every path."""
        sigma, alpha = self.path.sigma(t), self.path.alpha(t)
        return sigma / (sigma + alpha)

    def velocity(self, x_t: Tensor, t: Tensor, cond: Cond, s: Tensor | None = None) -> Tensor:
        """dx_t / dt on this denoiser's path; its average from t to s, for two times."""
        return self.predict(x_t, t, cond, s).v

    def predict_x0(self, x_t: Tensor, t: Tensor, cond: Cond) -> Tensor:
        """The consistency function f(x_t, t); f(x, 0) = x whatever the weights."""
        return self.predict(x_t, t, cond, torch.zeros_like(t)).x0

    def flow_map(self, x_t: Tensor, t: Tensor, s: Tensor, cond: Cond) -> Tensor:
        """x_s of the trajectory through x_t, in one evaluation; `clean` for s = 0, and x_t for
        s = t whatever the weights. Where paths are straight it is
        x_t - (t - s) velocity(x_t, t, cond, s) (Geng et al. 2025, arXiv 2505.13447, eq. 3), on
        TrigFlow the same turn of the circle."""
        seen = self.predict(x_t, t, cond, s)
        return self.path.add_noise(seen.x0, seen.eps, s)
