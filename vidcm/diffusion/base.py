"""Conditions, predictions and the interface of denoisers."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from vidcm.diffusion.control import Control, Region, joined
from vidcm.diffusion.paths import ProbPath
from vidcm.diffusion.times import T_START


@dataclass(frozen=True)
class Cond:
    """What a denoiser is conditioned on.

    Attributes:
        tokens: Embedded text `(b, n, d)`.
        mask: bool `(b, n)`, True where there is a token.
        guidance_scale: `(b,)`, embedded guidance of a student; None for a teacher.
        control: What the network reads beside the text; None for text alone.
    """

    tokens: Tensor
    mask: Tensor
    guidance_scale: Tensor | None = None
    control: Control | None = None

    def __len__(self) -> int:
        return len(self.tokens)

    def stack(self, other: "Cond") -> "Cond":
        """Both as one batch, the shorter prompts padded, without guidance scales.

        The control of `self` goes with both.
        """
        return replace(batched([self, self.with_text(other)]), guidance_scale=None)

    def with_text(self, other: "Cond") -> "Cond":
        """The text and guidance scale of another condition beside this one's control."""
        return replace(other, control=self.control)

    def with_control(self, control: Control | None) -> "Cond":
        """The same text beside another control."""
        return replace(self, control=control)

    def inside(self, region: Region) -> "Cond":
        """The condition of a part of the clip."""
        return self if self.control is None else replace(self, control=self.control.inside(region))

    def rows(self, part: slice | Tensor) -> "Cond":
        """Some samples of the batch."""
        scale = None if self.guidance_scale is None else self.guidance_scale[part]
        control = None if self.control is None else self.control.rows(part)
        return Cond(self.tokens[part], self.mask[part], scale, control)

    def repeat(self, times: int) -> "Cond":
        """Every sample so many times in a row."""
        return self.rows(torch.arange(len(self)).repeat_interleave(times))


def batched(conds: Sequence[Cond]) -> Cond:
    """Conditions as one batch, the shorter prompts padded.

    Guidance scales are kept if all conditions have one.
    """
    longest = max(c.mask.shape[1] for c in conds)
    pads = [(0, longest - c.mask.shape[1]) for c in conds]
    tokens = [F.pad(c.tokens, (0, 0, *p)) for c, p in zip(conds, pads, strict=True)]
    masks = [F.pad(c.mask, p) for c, p in zip(conds, pads, strict=True)]
    scales = [c.guidance_scale for c in conds if c.guidance_scale is not None]
    scale = torch.cat(scales) if len(scales) == len(conds) else None
    control = joined([c.control for c in conds])
    return Cond(torch.cat(tokens), torch.cat(masks), scale, control)


@dataclass(frozen=True)
class Prediction:
    """Three views of one network output, each shaped like the noisy latents.

    Attributes:
        x0: Clean latents.
        eps: Unit noise.
        v: Velocity dx_t / dt on the denoiser's path.
    """

    x0: Tensor
    eps: Tensor
    v: Tensor


def combine(linear: Callable[..., Tensor], *predictions: Prediction) -> Prediction:
    """A linear function of predictions, applied to each of their views."""
    return Prediction(
        linear(*(p.x0 for p in predictions)),
        linear(*(p.eps for p in predictions)),
        linear(*(p.v for p in predictions)),
    )


class DenoiserBase(ABC):
    """A denoiser: a prediction of clean latents and noise, on a path.

    Teachers, students and every wrapper of them (guidance, windows, given frames, projections)
    subclass it and write `predict` alone; samplers and objectives use its views.

    Attributes:
        path: The diffusion path.
        first_time: Rectified-flow time that students start from.
    """

    path: ProbPath
    first_time: float = T_START

    @abstractmethod
    def predict(self, x_t: Tensor, t: Tensor, cond: Cond, s: Tensor | None = None) -> Prediction:
        """Clean latents, noise and velocity of noisy latents.

        Args:
            x_t: Noisy latents `(b, c, t, h, w)`.
            t: Their times on `path`, `(b,)`, or `(b, t)` per frame.
            cond: One condition per sample.
            s: Target time of a jump, shaped like `t`. The prediction then satisfies
                `x_t = path.add_noise(x0, eps, t)` and `x_s = path.add_noise(x0, eps, s)`.
                None predicts the posterior means at `t`.
        """

    def velocity(self, x_t: Tensor, t: Tensor, cond: Cond, s: Tensor | None = None) -> Tensor:
        """dx_t / dt at t, or with two times its average from t to s."""
        return self.predict(x_t, t, cond, s).v

    def predict_x0(self, x_t: Tensor, t: Tensor, cond: Cond) -> Tensor:
        """The consistency function f(x_t, t) (Song et al. 2023, arXiv 2303.01469)."""
        return self.predict(x_t, t, cond, torch.zeros_like(t)).x0

    def flow_map(self, x_t: Tensor, t: Tensor, s: Tensor, cond: Cond) -> Tensor:
        """x_s of the trajectory through x_t, in one evaluation; `predict_x0` at s = 0.

        On straight paths it is x_t - (t - s) velocity(x_t, t, cond, s) (Geng et al. 2025, arXiv
        2505.13447, eq. 3).
        """
        found = self.predict(x_t, t, cond, s)
        return self.path.add_noise(found.x0, found.eps, s)
