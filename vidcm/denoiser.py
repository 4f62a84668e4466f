"""A denoiser: a backbone on a path, with its text tower. Teachers and students are denoisers;
so is a guided denoiser. Samplers and objectives see nothing else.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vidcm.paths import Path
from vidcm.registry import build
from vidcm.shapes import like

if TYPE_CHECKING:
    from vidcm.sampling import Flow, Student


@dataclass(frozen=True)
class Cond:
    """tokens: `(b, n, d)` embedded text. mask: bool `(b, n)`, True where there is a token.
    guidance: scale `(b,)` a student was told, or None."""

    tokens: Tensor
    mask: Tensor
    guidance: Tensor | None = None

    def __len__(self) -> int:
        return len(self.tokens)

    def stack(self, other: "Cond") -> "Cond":
        """Both as one batch, the shorter prompts padded; guidance scales are left out."""
        return replace(batched([self, other]), guidance=None)

    def at(self, place: float) -> "Cond":
        """What holds at a place along the clip, in latent frames: the same everywhere."""
        return self


def batched(conds: Sequence[Cond]) -> Cond:
    """Conditions as one batch, the shorter prompts padded. Guidance scales are kept where all have
    them, else left out."""
    longest = max(c.mask.shape[1] for c in conds)
    pads = [(0, longest - c.mask.shape[1]) for c in conds]
    tokens = [F.pad(c.tokens, (0, 0, *p)) for c, p in zip(conds, pads, strict=True)]
    masks = [F.pad(c.mask, p) for c, p in zip(conds, pads, strict=True)]
    told = [c.guidance for c in conds if c.guidance is not None]
    guidance = torch.cat(told) if len(told) == len(conds) else None
    return Cond(torch.cat(tokens), torch.cat(masks), guidance)


class Backbone(Protocol):
    """Knows nothing about diffusion: `(x (b c t h w), time (b,)|(b t), cond) -> (b c t h w)`; one
    of two times is told a second one, `time_to`, in the shape of the first."""

    def __call__(
        self, x: Tensor, time: Tensor, cond: Cond, time_to: Tensor | None = None
    ) -> Tensor: ...


@dataclass(frozen=True)
class Prediction:
    """Clean latents, noise and velocity: three views of one output."""

    x0: Tensor
    eps: Tensor
    v: Tensor


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
            "backbone", backbone, channels=channels, context=self.conditioner.width
        )
        self.path: Path = build("path", path or {"name": "rectified_flow"})
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

    def clean(self, x_t: Tensor, t: Tensor, cond: Cond) -> Tensor:
        """The consistency function f(x_t, t); f(x, 0) = x whatever the weights."""
        return self.predict(x_t, t, cond, torch.zeros_like(t)).x0

    def jump(self, x_t: Tensor, t: Tensor, s: Tensor, cond: Cond) -> Tensor:
        """x_s of the trajectory through x_t, in one evaluation; `clean` for s = 0, and x_t for
        s = t whatever the weights. Where paths are straight it is
        x_t - (t - s) velocity(x_t, t, cond, s) (Geng et al. 2025, arXiv 2505.13447, eq. 3), on
        TrigFlow the same turn of the circle."""
        seen = self.predict(x_t, t, cond, s)
        return self.path.noise(seen.x0, seen.eps, s)


class Guided:
    """Classifier-free guidance as a denoiser around a denoiser (Ho & Salimans 2022): v_u + w (v_c
    - v_u) with w = `scale`, a number or one per sample; both branches in one batch.

    negative: what to move away from, one condition per sample (default: the empty prompt's).
    """

    def __init__(self, denoiser: "Flow", scale: float | Tensor, negative: Cond):
        self.denoiser, self.scale, self.negative = denoiser, scale, negative
        self.path = denoiser.path

    def velocity(self, x_t: Tensor, t: Tensor, cond: Cond) -> Tensor:
        both = cond.stack(self.negative)
        v = self.denoiser.velocity(torch.cat([x_t, x_t]), torch.cat([t, t]), both)
        conditional, unconditional = v.chunk(2)
        scale = torch.as_tensor(self.scale, dtype=v.dtype, device=v.device)
        scale = scale.view(-1, *[1] * (v.ndim - 1))
        return unconditional + scale * (conditional - unconditional)


class Steered:
    """A student moved away from a negative prompt n. Guidance against n instead of the empty prompt
    u is v_n + w (v_c - v_n) = [v_u + w (v_c - v_u)] + (w - 1) (v_u - v_n): what the student learnt
    plus a correction, here taken of its clean latents at guidance 1. Three evaluations a step."""

    def __init__(self, student: "Student", negative: Cond, empty: Cond, scale: float):
        self.student, self.path, self.scale = student, student.path, scale
        ones = torch.ones(len(negative), device=negative.tokens.device)
        self.negative, self.empty = replace(negative, guidance=ones), replace(empty, guidance=ones)

    def clean(self, x_t: Tensor, t: Tensor, cond: Cond) -> Tensor:
        away = self.student.clean(x_t, t, self.empty) - self.student.clean(x_t, t, self.negative)
        return self.student.clean(x_t, t, cond) + (self.scale - 1) * away

    def jump(self, x_t: Tensor, t: Tensor, s: Tensor, cond: Cond) -> Tensor:
        there = self.student.jump
        away = there(x_t, t, s, self.empty) - there(x_t, t, s, self.negative)
        return there(x_t, t, s, cond) + (self.scale - 1) * away
