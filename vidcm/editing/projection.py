"""The projection loop: observations imposed on every prediction of the clean latents.

A denoiser whose predictions agree with the observations is a denoiser too, so every sampler, of
students and of teachers, edits without a line of its own.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from vidcm.codecs.causal_vae import CausalVAE
from vidcm.codecs.chunked import decode_chunked, encode_chunked
from vidcm.diffusion.base import Cond, DenoiserBase, Prediction
from vidcm.diffusion.shapes import like
from vidcm.editing.operators import Operator

Project = Callable[[Tensor], Tensor]


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


class ProjectedDenoiser(DenoiserBase):
    """A denoiser whose clean latents are projected: x0' = P(x0), eps' = (x_t - alpha x0') / sigma.

    What is known then stays on its own line from data to noise, x_s = alpha_s x0' + sigma_s eps',
    for solvers of the ODE and for jumps alike. Not defined at t = 0, where no sampler evaluates."""

    def __init__(self, denoiser: DenoiserBase, project: Project):
        self.denoiser, self.project, self.path = denoiser, project, denoiser.path

    def predict(self, x_t: Tensor, t: Tensor, cond: Cond, s: Tensor | None = None) -> Prediction:
        x0 = self.project(self.denoiser.predict(x_t, t, cond, s).x0)
        alpha, sigma = (like(f(t), x_t) for f in (self.path.alpha, self.path.sigma))
        eps = (x_t - alpha * x0) / sigma
        return Prediction(x0, eps, self.path.velocity(x0, eps, t))
