"""Reconstruction terms for a codec: each maps (video, target) `(b c t h w)` to a scalar."""

import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from vidcm.metrics.fidelity import box_window, ssim_map


def charbonnier(video: Tensor, target: Tensor, width: float = 0.05) -> Tensor:
    """Smooth absolute error: quadratic below `width`, linear above (Charbonnier et al. 1994)."""
    return ((video - target).square() + width**2).sqrt().mean() - width


def ssim_loss(video: Tensor, target: Tensor, scales: int = 2) -> Tensor:
    """1 - SSIM in 5-pixel windows, mean over `scales` octaves (Wang et al. 2004).

    The perceptual term: networks trained on photographs do not fit 64-pixel art.
    """
    x, y = (rearrange(v, "b c t h w -> (b t) c h w") * 0.5 + 0.5 for v in (video, target))
    loss = x.new_zeros(())
    for _ in range(scales):
        loss = loss + (1 - ssim_map(x, y, box_window(5), peak=1)).mean() / scales
        x, y = F.avg_pool2d(x, 2), F.avg_pool2d(y, 2)
    return loss


def kl_to_unit_normal(mean: Tensor, logvar: Tensor) -> Tensor:
    """KL(N(mean, exp logvar) || N(0, 1)), mean over elements."""
    return 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()
