"""The denoiser with a network: a backbone on a path, with its text tower."""

from collections.abc import Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn

from vidcm.diffusion.base import Cond, DenoiserBase, Prediction
from vidcm.diffusion.paths import ProbPath, RectifiedFlow
from vidcm.diffusion.shapes import like
from vidcm.registry import build


class Denoiser(nn.Module, DenoiserBase):
    """A backbone on a path. Teachers and students both are of this class.

    Whatever the path, the network sees unit-variance input z = x_t / n, n^2 = alpha^2 + sigma^2,
    and predicts F = (alpha eps - sigma x0) / n, the velocity of TrigFlow (v-prediction, Salimans &
    Ho 2022, arXiv 2202.00512). Next to noise F = -x0, so a narrow network need not carry the noise
    of wide latents through. Casts to and from the network's precision happen here alone.

    Args:
        backbone: Network `(x (b c t h w), time (b,) or (b t), cond) -> (b c t h w)`.
        conditioner: Text tower, `prompts -> (tokens, mask)`.
        channels: Latent channels.
        path: Diffusion path; default rectified flow.
        two_times: Whether the backbone takes a second time, the target of a jump. It then predicts
            the average of F on the way; otherwise a jump is a step of DDIM.
        given_frames: Kinds of given frames the model was trained with (`GivenFrames`).
    """

    def __init__(
        self,
        backbone: nn.Module,
        conditioner: nn.Module,
        channels: int,
        path: ProbPath | None = None,
        *,
        two_times: bool = False,
        given_frames: Sequence[str] = (),
    ):
        super().__init__()
        self.conditioner: Any = conditioner  # with attributes of its own, which nn.Module hides
        self.backbone: Any = backbone
        self.path = path or RectifiedFlow()
        self.channels, self.two_times = channels, two_times
        self.given_frames = frozenset(given_frames)

    @classmethod
    def from_spec(
        cls,
        backbone: dict,
        conditioner: dict,
        channels: int,
        path: dict | None = None,
        given_frames: Sequence[str] = (),
    ) -> Self:
        """Build the parts by name. Raises UsageError for unknown parts or options."""
        text = build("conditioner", conditioner)
        network = build("backbone", backbone, channels=channels, context=text.hidden_size)
        return cls(
            network,
            text,
            channels,
            build("path", path) if path else None,
            two_times=bool(backbone.get("two_times", False)),
            given_frames=given_frames,
        )

    def encode(self, prompts: Sequence[str], guidance_scale: Tensor | None = None) -> Cond:
        """Prompts to a condition; the empty prompt is the unconditional one.

        Args:
            prompts: One text per sample.
            guidance_scale: `(b,)`, for a student; None for a teacher.
        """
        tokens, mask = self.conditioner(prompts)
        return Cond(tokens, mask, guidance_scale)

    def predict(self, x_t: Tensor, t: Tensor, cond: Cond, s: Tensor | None = None) -> Prediction:
        """As in the base class, float32.

        For s = 0 the prediction's x0 is the consistency function, equal to x_t at t = 0 whatever
        the weights.
        """
        alpha, sigma = self.path.alpha(t), self.path.sigma(t)
        size = torch.hypot(alpha, sigma)
        cos, sin = like(alpha / size, x_t), like(sigma / size, x_t)
        z = x_t / like(size, x_t)
        target = (self._network_time(t if s is None else s),) if self.two_times else ()
        out = self.backbone(z, self._network_time(t), cond, *target).float()
        x0, eps = cos * z - sin * out, sin * z + cos * out
        return Prediction(x0, eps, self.path.velocity(x0, eps, t))

    def _network_time(self, t: Tensor) -> Tensor:
        """The network's time input: rectified-flow time, in [0, 1] on every path."""
        sigma, alpha = self.path.sigma(t), self.path.alpha(t)
        return sigma / (sigma + alpha)
