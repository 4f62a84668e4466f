"""How close clips are to their true clips, pixel by pixel: PSNR and SSIM of uint8 frames."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

VERSION = 1
BEST = 100.0  # dB, given to clips without any difference


def psnr(frames: Tensor, truth: Tensor) -> np.ndarray:
    """Peak signal-to-noise ratio of each clip in dB, uint8 `(b t h w c)` -> float64 `(b,)`, over
    all its pixels at once; 100 dB at most."""
    _check(frames, truth)
    error = (frames.double() - truth.double()).square().flatten(1).mean(1)
    return (10 * torch.log10(255**2 / error.clamp(min=255**2 * 10 ** (-BEST / 10)))).numpy()


def ssim(frames: Tensor, truth: Tensor) -> np.ndarray:
    """Structural similarity of each clip, mean over frames, colours and window places (Wang et al.
    2004, eq. 13: an 11-pixel Gaussian window of deviation 1.5), uint8 `(b t h w c)` -> `(b,)`.

    Sides of 11 pixels or more."""
    _check(frames, truth)
    return torch.stack([_ssim(a, b) for a, b in zip(frames, truth, strict=True)]).numpy()


def _ssim(frames: Tensor, truth: Tensor) -> Tensor:
    x, y = (v.double().movedim(-1, 1).flatten(0, 1)[:, None] for v in (frames, truth))
    window = torch.exp(-0.5 * ((torch.arange(11, dtype=torch.float64) - 5) / 1.5) ** 2)
    window = window / window.sum()

    def mean(z: Tensor) -> Tensor:
        return F.conv2d(F.conv2d(z, window.view(1, 1, 11, 1)), window.view(1, 1, 1, 11))

    mx, my = mean(x), mean(y)
    vx, vy, cov = mean(x * x) - mx * mx, mean(y * y) - my * my, mean(x * y) - mx * my
    a, b = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    return ((2 * mx * my + a) * (2 * cov + b) / ((mx**2 + my**2 + a) * (vx + vy + b))).mean()


def _check(frames: Tensor, truth: Tensor) -> None:
    if frames.dtype != torch.uint8 or truth.dtype != torch.uint8 or frames.shape != truth.shape:
        raise ValueError(
            f"got {frames.dtype} {tuple(frames.shape)} and {truth.dtype} {tuple(truth.shape)}, "
            "expected two uint8 (b t h w c) of one shape"
        )
