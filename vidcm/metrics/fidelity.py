"""Pixel fidelity to a reference: PSNR and SSIM of clips in any range of values."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

VERSION = 1
MAX_PSNR = 100.0  # dB, of clips without any difference

LocalMean = Callable[[Tensor], Tensor]


def psnr(
    video: Tensor, reference: Tensor, *, peak: float = 255.0, mask: Tensor | None = None
) -> Tensor:
    """Peak signal-to-noise ratio of each clip in dB, at most `MAX_PSNR`.

    Args:
        video: `(b ...)`; integers are compared in float64.
        reference: Of the same shape.
        peak: width of the range of values: 255 for uint8, 2 for [-1, 1].
        mask: bool, broadcastable to `video`; only values where it is True count.

    Returns:
        `(b,)`.
    """
    _check_shapes(video, reference)
    error = (_floating(video) - _floating(reference)).square()
    if mask is None:
        mse = error.flatten(1).mean(1)
    else:
        used = mask.expand_as(error)
        mse = torch.stack([e[m].mean() for e, m in zip(error, used, strict=True)])
    return -10 * torch.log10((mse / peak**2).clamp(min=10 ** (-MAX_PSNR / 10)))


def ssim(video: Tensor, reference: Tensor) -> Tensor:
    """Structural similarity of each clip: mean over frames, colours and window positions.

    Wang et al. 2004, eq. 13, with the paper's 11-pixel Gaussian window of deviation 1.5.

    Args:
        video: uint8 `(b t h w c)`, sides of 11 pixels or more.
        reference: Of the same shape.

    Returns:
        float64 `(b,)`.
    """
    _check_shapes(video, reference)
    window = gaussian_window(11, 1.5)
    images = (
        [v.double().movedim(-1, 1).flatten(0, 1)[:, None] for v in pair]
        for pair in zip(video, reference, strict=True)
    )
    return torch.stack([ssim_map(x, y, window, peak=255).mean() for x, y in images])


def ssim_map(x: Tensor, y: Tensor, local_mean: LocalMean, *, peak: float) -> Tensor:
    """SSIM at each window position (Wang et al. 2004, eq. 13).

    Args:
        x: Images `(n c h w)`.
        y: Images of the same shape.
        local_mean: weighted mean over a window at every position, such as `box_window(5)`.
        peak: width of the range of values.
    """
    mx, my = local_mean(x), local_mean(y)
    vx = (local_mean(x * x) - mx * mx).clamp(min=0)
    vy = (local_mean(y * y) - my * my).clamp(min=0)
    cov = local_mean(x * y) - mx * my
    a, b = (0.01 * peak) ** 2, (0.03 * peak) ** 2
    return ((2 * mx * my + a) * (2 * cov + b)) / ((mx**2 + my**2 + a) * (vx + vy + b))


def box_window(size: int) -> LocalMean:
    """Equal weights over size x size pixels."""
    return lambda images: F.avg_pool2d(images, size, stride=1)


def gaussian_window(size: int, std: float) -> LocalMean:
    """Gaussian weights over size x size pixels, of images with one channel."""

    def local_mean(images: Tensor) -> Tensor:
        offsets = torch.arange(size, dtype=images.dtype, device=images.device) - size // 2
        weights = torch.exp(-0.5 * (offsets / std) ** 2)
        weights = weights / weights.sum()
        return F.conv2d(F.conv2d(images, weights.view(1, 1, -1, 1)), weights.view(1, 1, 1, -1))

    return local_mean


def _floating(video: Tensor) -> Tensor:
    return video if video.is_floating_point() else video.double()


def _check_shapes(video: Tensor, reference: Tensor) -> None:
    if video.dtype != reference.dtype or video.shape != reference.shape:
        raise ValueError(
            f"got {video.dtype} {tuple(video.shape)} and {reference.dtype} "
            f"{tuple(reference.shape)}, expected two clips of one dtype and shape"
        )
