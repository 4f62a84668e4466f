"""The projection loop: what is known, imposed on every guess of the clean latents.

A denoiser whose guesses agree with what is known is a denoiser too, so the few-step sampler of a
student and the ODE walk of a teacher both become editors without a line of their own.
"""

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from vidcm.codecs.causal_vae import CausalVAE
from vidcm.codecs.chunked import decode_chunked, encode_chunked
from vidcm.diffusion.base import Cond
from vidcm.diffusion.samplers import Consistent, Flow, Jumping
from vidcm.diffusion.shapes import like
from vidcm.editing.operators import Operator

Project = Callable[[Tensor], Tensor]


class Student(Consistent, Jumping, Protocol):
    """Whatever students' samplers need."""


class LatentPrefix:
    """Leading latent frames that are known: those of a clip seen whole. A causal codec gives them
    the same latents whatever follows, so they are imposed without decoding.

    latents: `(1 c t h w)`, t at most that of the clips."""

    def __init__(self, latents: Tensor):
        self.latents = latents

    def __call__(self, x0: Tensor) -> Tensor:
        known = self.latents.expand(len(x0), -1, -1, -1, -1)
        return torch.cat([known, x0[:, :, known.shape[2] :]], 2)


def decoded(codec: CausalVAE, latents: Tensor) -> Tensor:
    """`codec.decode(latents)` of clips of any length, a piece at a time."""
    return torch.cat(list(decode_chunked(codec, latents)), 2)


class ThroughPixels:
    """Operators on pixels, one after the other, for latents: decode, project, encode."""

    def __init__(self, codec: CausalVAE, operators: Sequence[Operator]):
        self.codec, self.operators = codec, tuple(operators)

    def __call__(self, x0: Tensor) -> Tensor:
        video = decoded(self.codec, x0)
        for operator in self.operators:
            video = operator.project(video)
        return encode_chunked(self.codec, video)


class Chain:
    """Projections one after the other."""

    def __init__(self, *projections: Project):
        self.projections = projections

    def __call__(self, x0: Tensor) -> Tensor:
        for project in self.projections:
            x0 = project(x0)
        return x0


class Observing:
    """A student whose clean latents are projected, for either sampler of students."""

    def __init__(self, denoiser: Student, project: Project):
        self.denoiser, self.project, self.path = denoiser, project, denoiser.path

    def predict_x0(self, x_t: Tensor, t: Tensor, cond: Cond) -> Tensor:
        return self.project(self.denoiser.predict_x0(x_t, t, cond))

    def flow_map(self, x_t: Tensor, t: Tensor, s: Tensor, cond: Cond) -> Tensor:
        """Where a jump leads if the clean latents that it heads for are projected: those whose
        straight path on the noise of one and the same draw meets both ends of the jump."""
        path, x_s = self.path, self.denoiser.flow_map(x_t, t, s, cond)
        a, b = (like(f(t), x_t) for f in (path.alpha, path.sigma))
        c, d = (like(f(s), x_t) for f in (path.alpha, path.sigma))
        x0 = self.project((d * x_t - b * x_s) / (a * d - b * c))
        return c * x0 + d * (x_t - a * x0) / b


class ObservingFlow:
    """A denoiser whose velocity heads for projected clean latents, for ODE samplers.

    The noise is what remains of x_t beside them, so that what is known stays on its own line from
    data to noise all the way. Not defined at t = 0, where no sampler asks."""

    def __init__(self, denoiser: Flow, project: Project):
        self.denoiser, self.project, self.path = denoiser, project, denoiser.path

    def velocity(self, x_t: Tensor, t: Tensor, cond: Cond) -> Tensor:
        x0, _ = self.path.to_x0_eps(x_t, self.denoiser.velocity(x_t, t, cond), t)
        x0 = self.project(x0)
        alpha, sigma = (like(f(t), x_t) for f in (self.path.alpha, self.path.sigma))
        return self.path.velocity(x0, (x_t - alpha * x0) / sigma, t)
