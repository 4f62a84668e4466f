"""Two networks for two ranges of noise, as in Wan 2.2 A14B: one denoiser of both."""

from collections.abc import Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn

from vidcm.diffusion.base import Cond, Prediction
from vidcm.diffusion.denoiser import Denoiser
from vidcm.diffusion.paths import RectifiedFlow, match


class Experts(Denoiser):
    """A denoiser that is one network at high noise and another below.

    Args:
        high: From the boundary up.
        low: Below the boundary, on the same path.
        boundary_ratio: Rectified-flow time of the boundary, in (0, 1).
    """

    def __init__(self, high: Denoiser, low: Denoiser, boundary_ratio: float):
        nn.Module.__init__(self)
        self.high, self.low, self.boundary_ratio = high, low, boundary_ratio
        self.path, self.channels, self.shift = high.path, high.channels, high.shift
        self.two_times, self.given_frames = high.two_times, high.given_frames
        self.control = high.control
        boundary = torch.tensor([boundary_ratio], dtype=torch.float64)
        self.boundary = float(match(boundary, boundary, RectifiedFlow(), self.path)[1])

    @property
    def backbone(self) -> Any:
        return self.high.backbone

    @property
    def conditioner(self) -> Any:
        return self.high.conditioner

    @property
    def guidance_scales(self) -> tuple[float, float] | None:
        return self.high.guidance_scales

    def encode(self, prompts: Sequence[str], guidance_scale: Tensor | None = None) -> Cond:
        return self.high.encode(prompts, guidance_scale)

    def store_in(self, dtype: torch.dtype) -> Self:
        self.high.store_in(dtype)
        self.low.store_in(dtype)
        return self

    def predict(self, x_t: Tensor, t: Tensor, cond: Cond, s: Tensor | None = None) -> Prediction:
        noisy = (t if t.ndim == 1 else t.amax(1)) >= self.boundary
        if noisy.all() or not noisy.any():
            return (self.high if noisy.any() else self.low).predict(x_t, t, cond, s)
        views = {k: torch.empty_like(x_t, dtype=torch.float32) for k in ("x0", "eps", "v")}
        for expert, rows in (
            (self.high, noisy.nonzero()[:, 0]),
            (self.low, (~noisy).nonzero()[:, 0]),
        ):
            part = expert.predict(
                x_t[rows], t[rows], cond.rows(rows), None if s is None else s[rows]
            )
            for name, view in views.items():
                view[rows] = getattr(part, name).float()
        return Prediction(**views)
