"""Projected predictions: observations imposed on every prediction of the clean latents.

A denoiser whose predictions agree with the observations is a denoiser too, so every sampler, of
students and of teachers, edits without a line of its own.
"""

from collections.abc import Callable

from torch import Tensor

from vidcm.diffusion.base import Cond, DenoiserBase, Prediction
from vidcm.diffusion.shapes import like

Project = Callable[[Tensor], Tensor]  # clean latents to the clean latents that agree


class ProjectedDenoiser(DenoiserBase):
    """A denoiser whose clean latents are projected: x0' = P(x0), eps' = (x_t - alpha x0') / sigma.

    Observed latents then stay on their own line from data to noise, x_s = alpha_s x0' +
    sigma_s eps', for ODE solvers and for jumps alike. Not defined at t = 0, where no sampler
    evaluates.

    Args:
        denoiser: A teacher with guidance, or a student.
        project: The projection P.
    """

    def __init__(self, denoiser: DenoiserBase, project: Project):
        self.denoiser, self.project, self.path = denoiser, project, denoiser.path

    def predict(self, x_t: Tensor, t: Tensor, cond: Cond, s: Tensor | None = None) -> Prediction:
        x0 = self.project(self.denoiser.predict(x_t, t, cond, s).x0)
        alpha, sigma = (like(f(t), x_t) for f in (self.path.alpha, self.path.sigma))
        eps = (x_t - alpha * x0) / sigma
        return Prediction(x0, eps, self.path.velocity(x0, eps, t))


class Chain:
    """Projections one after the other."""

    def __init__(self, *projections: Project):
        self.projections = projections

    def __call__(self, x0: Tensor) -> Tensor:
        for project in self.projections:
            x0 = project(x0)
        return x0
