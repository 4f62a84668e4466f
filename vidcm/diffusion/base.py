"""Conditions, predictions and the backbone protocol that the rest of the mathematics is written in."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor


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
