"""Classifier-free guidance and negative prompts, as denoisers around a denoiser."""

from dataclasses import replace

import torch
from torch import Tensor

from vidcm.diffusion.base import Cond
from vidcm.diffusion.samplers import Flow, Student


class CFGDenoiser:
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


class NegativePromptStudent:
    """A student moved away from a negative prompt n. Guidance against n instead of the empty prompt
    u is v_n + w (v_c - v_n) = [v_u + w (v_c - v_u)] + (w - 1) (v_u - v_n): what the student learnt
    plus a correction, here taken of its clean latents at guidance 1. Three evaluations a step."""

    def __init__(self, student: "Student", negative: Cond, empty: Cond, scale: float):
        self.student, self.path, self.scale = student, student.path, scale
        ones = torch.ones(len(negative), device=negative.tokens.device)
        self.negative, self.empty = replace(negative, guidance=ones), replace(empty, guidance=ones)

    def predict_x0(self, x_t: Tensor, t: Tensor, cond: Cond) -> Tensor:
        away = self.student.predict_x0(x_t, t, self.empty) - self.student.predict_x0(
            x_t, t, self.negative
        )
        return self.student.predict_x0(x_t, t, cond) + (self.scale - 1) * away

    def flow_map(self, x_t: Tensor, t: Tensor, s: Tensor, cond: Cond) -> Tensor:
        there = self.student.flow_map
        away = there(x_t, t, s, self.empty) - there(x_t, t, s, self.negative)
        return there(x_t, t, s, cond) + (self.scale - 1) * away
