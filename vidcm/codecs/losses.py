"""Reconstruction terms for a codec: each maps (video, target) `(b c t h w)` to a scalar."""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor


def charbonnier(video: Tensor, target: Tensor, width: float = 0.05) -> Tensor:
    """A smooth absolute error: quadratic below `width`, linear above (Charbonnier et al. 1994)."""
    return ((video - target).square() + width**2).sqrt().mean() - width


def structural(video: Tensor, target: Tensor, scales: int = 2) -> Tensor:
    """1 - SSIM over `scales` octaves (Wang et al. 2004), the perceptual term: a network trained on
    photographs says little about 64-pixel art, local structure does."""
    x, y = (rearrange(v, "b c t h w -> (b t) c h w") * 0.5 + 0.5 for v in (video, target))
    loss = x.new_zeros(())
    for _ in range(scales):
        loss = loss + (1 - ssim_map(x, y)).mean() / scales
        x, y = F.avg_pool2d(x, 2), F.avg_pool2d(y, 2)
    return loss


def ssim_map(x: Tensor, y: Tensor, window: int = 5) -> Tensor:
    """SSIM of images in [0, 1] `(n c h w)` per window position, box windows."""

    def mean(z: Tensor) -> Tensor:
        return F.avg_pool2d(z, window, stride=1)

    mx, my = mean(x), mean(y)
    vx = (mean(x * x) - mx * mx).clamp(min=0)
    vy = (mean(y * y) - my * my).clamp(min=0)
    cov = mean(x * y) - mx * my
    a, b = 0.01**2, 0.03**2
    return ((2 * mx * my + a) * (2 * cov + b)) / ((mx**2 + my**2 + a) * (vx + vy + b))


def kl_to_unit_normal(mean: Tensor, logvar: Tensor) -> Tensor:
    """KL(N(mean, exp logvar) || N(0, 1)), mean over elements."""
    return 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()


def psnr(video: Tensor, target: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB of each clip in [-1, 1], `(b c t h w)` -> `(b,)`."""
    mse = (video - target).square().flatten(1).mean(1) / 4
    return -10 * torch.log10(mse.clamp(min=1e-10))
