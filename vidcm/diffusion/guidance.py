"""Classifier-free guidance and negative prompts, as denoisers around a denoiser."""

from dataclasses import replace

import torch
from torch import Tensor

from vidcm.diffusion.base import Cond, DenoiserBase, Prediction, combine


class CFGDenoiser(DenoiserBase):
    """Classifier-free guidance (Ho & Salimans 2022, arXiv 2207.12598): v_u + w (v_c - v_u).

    Both branches go through the network in one batch. At the number 1 only the conditional
    one does.

    Args:
        denoiser: A teacher.
        scale: The scale w, a number or one per sample `(b,)`.
        negative: The unconditional branch, one condition per sample: the empty prompt's, or a
            negative prompt's.
    """

    def __init__(self, denoiser: DenoiserBase, scale: float | Tensor, negative: Cond):
        self.denoiser, self.scale, self.negative = denoiser, scale, negative
        self.path = denoiser.path

    def predict(self, x_t: Tensor, t: Tensor, cond: Cond, s: Tensor | None = None) -> Prediction:
        if not isinstance(self.scale, Tensor) and self.scale == 1:
            return self.denoiser.predict(x_t, t, cond, s)
        both = self.denoiser.predict(
            torch.cat([x_t, x_t]),
            torch.cat([t, t]),
            cond.stack(self.negative),
            None if s is None else torch.cat([s, s]),
        )
        scale = torch.as_tensor(self.scale, dtype=both.v.dtype, device=both.v.device)
        scale = scale.view(-1, *[1] * (both.v.ndim - 1))

        def guided(pair: Tensor) -> Tensor:
            conditional, unconditional = pair.chunk(2)
            return unconditional + scale * (conditional - unconditional)

        return combine(guided, both)


class NegativePromptStudent(DenoiserBase):
    """A student guided against a negative prompt n.

    Guidance against n instead of the empty prompt u is v_n + w (v_c - v_n) =
    [v_u + w (v_c - v_u)] + (w - 1) (v_u - v_n): the student's own prediction plus a correction,
    taken from its predictions at guidance 1. Three evaluations a step, one where w = 1.

    Args:
        student: A denoiser with embedded guidance.
        negative: The negative prompts, one per sample.
        empty: The empty prompts, one per sample.
        scale: The guidance scale w of the student's conditions.
    """

    def __init__(self, student: DenoiserBase, negative: Cond, empty: Cond, scale: float):
        self.student, self.path, self.scale = student, student.path, scale
        ones = torch.ones(len(negative), device=negative.tokens.device)
        self.negative = replace(negative, guidance_scale=ones)
        self.empty = replace(empty, guidance_scale=ones)

    def predict(self, x_t: Tensor, t: Tensor, cond: Cond, s: Tensor | None = None) -> Prediction:
        own = self.student.predict(x_t, t, cond, s)
        if self.scale == 1:
            return own
        texts = (cond.with_text(c) for c in (self.empty, self.negative))
        empty, negative = (self.student.predict(x_t, t, c, s) for c in texts)
        return combine(lambda c, u, n: c + (self.scale - 1) * (u - n), own, empty, negative)
