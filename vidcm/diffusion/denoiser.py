"""The denoiser with a network: a backbone on a path, with its text tower."""

import copy
import math
from collections.abc import Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn

from vidcm.diffusion.base import Cond, DenoiserBase, Prediction
from vidcm.diffusion.parameterization import Parameterization, VPrediction
from vidcm.diffusion.paths import ProbPath, RectifiedFlow
from vidcm.diffusion.shapes import like
from vidcm.registry import build


class Denoiser(nn.Module, DenoiserBase):
    """A backbone on a path. Teachers and students both are of this class.

    Whatever the path, the network reads and predicts what its parameterization says; by default
    unit-variance input and v-prediction, the velocity of TrigFlow. Next to noise that is -x0, so a
    narrow network need not carry the noise of wide latents through. Casts to and from the
    network's precision happen here alone.

    Args:
        backbone: Network `(x (b c t h w), time (b,) or (b t), cond) -> (b c t h w)`.
        conditioner: Text tower, `prompts -> (tokens, mask)`.
        channels: Latent channels.
        path: Diffusion path; default rectified flow.
        parameterization: What the network reads and predicts; default v-prediction.
        two_times: Whether the backbone takes a second time, the target of a jump. It then predicts
            the average of F on the way; otherwise a jump is a step of DDIM.
        given_frames: Kinds of given frames the model was trained with (`GivenFrames`).

    Attributes:
        shift: Resolution shift of the times that it is sampled at; None for vidcm's own.
        control: What makes what the network is given beside text (`vidcm.families.control`); None
            for text alone.
    """

    shift: float | None = None
    control: Any = None

    def __init__(
        self,
        backbone: nn.Module,
        conditioner: nn.Module,
        channels: int,
        path: ProbPath | None = None,
        *,
        parameterization: Parameterization | None = None,
        two_times: bool = False,
        given_frames: Sequence[str] = (),
    ):
        super().__init__()
        self.conditioner: Any = conditioner  # with attributes of its own, which nn.Module hides
        self.backbone: Any = backbone
        self.path = path or RectifiedFlow()
        self.parameterization = parameterization or VPrediction()
        self.channels, self.two_times = channels, two_times
        self.given_frames = frozenset(given_frames)

    @property
    def guidance_scales(self) -> tuple[float, float] | None:
        """Guidance scales that it takes as an input or has built in; None for a teacher."""
        return (0.0, math.inf) if self.backbone.guidance is not None else None

    @staticmethod
    def spec_is_student(spec: dict) -> bool:
        """Whether a spec is of a student."""
        return bool(spec["backbone"].get("guidance_embed", False))

    @staticmethod
    def spec_has_two_times(spec: dict) -> bool:
        """Whether a spec is of a model with a second time."""
        return spec["backbone"].get("two_times", False) is True

    @staticmethod
    def student_spec(spec: dict) -> dict:
        """The spec of a student of a teacher's spec."""
        return {**spec, "backbone": {**spec["backbone"], "guidance_embed": True}}

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

    def store_in(self, dtype: torch.dtype) -> Self:
        """Keep a frozen network in half precision where that is usual; here it stays fp32."""
        return self

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
        network, alpha, sigma = self.parameterization, self.path.alpha(t), self.path.sigma(t)
        size = network.size(alpha, sigma)
        a, noise = like(alpha / size, x_t), like(sigma / size, x_t)
        z = x_t / like(size, x_t)
        target = (self._network_time(t if s is None else s),) if self.two_times else ()
        out = self.backbone(z, network.clock(alpha, sigma), cond, *target).float()
        x0, eps = network.recover(z, out, a, noise)
        return Prediction(x0, eps, self.path.velocity(x0, eps, t))

    def guided_by_attention(self, negative: Cond, guidance: Any) -> Self:
        """The same denoiser, its weights shared, with attention guided against a negative prompt.

        Args:
            negative: The negative prompt, one sample.
            guidance: `vidcm.models.nag.AttentionGuidance`.

        Raises:
            UsageError: Its network cannot be guided so.
        """
        other = copy.copy(self)
        other._modules = {
            **self._modules,
            "backbone": self.backbone.guided_by_attention(negative, guidance),
        }
        return other

    def _network_time(self, t: Tensor) -> Tensor:
        """The network's time input at times of the path."""
        return self.parameterization.clock(self.path.alpha(t), self.path.sigma(t))
