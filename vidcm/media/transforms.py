"""Frames of any size to frames of one size, the same for every frame."""

from __future__ import annotations

import torch
from torch.nn.functional import interpolate

from vidcm.errors import UsageError


def resize_crop(
    frames: torch.Tensor, size: tuple[int, int], rng: torch.Generator | None = None
) -> torch.Tensor:
    """Scale frames until they cover a size, with antialiasing and the same aspect, then crop.

    Args:
        frames: uint8 `(t h w c)`; unchanged if they have the size already.
        size: height and width in pixels.
        rng: draws the place of the crop, the same for all frames; None for the centre.

    Returns:
        uint8 `(t height width c)`.

    Raises:
        UsageError: the size is below 1.
    """
    height, width = size
    if height < 1 or width < 1:
        raise UsageError(f"size is {height}x{width}, expected height and width of at least 1")
    h, w = frames.shape[1:3]
    scale = max(height / h, width / w)
    scaled = (max(height, round(h * scale)), max(width, round(w * scale)))
    top, left = scaled[0] - height, scaled[1] - width
    if rng is None:
        top, left = top // 2, left // 2
    else:  # both are always drawn, so that later draws do not depend on the source size
        draw = torch.rand(2, generator=rng, dtype=torch.float64)
        top, left = int(draw[0] * (top + 1)), int(draw[1] * (left + 1))
    if scaled != (h, w):  # frame by frame, since float32 takes four times the memory
        frames = torch.stack([_resize(frame, scaled) for frame in frames])
    return frames[:, top : top + height, left : left + width].contiguous()


def _resize(frame: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    image = frame.permute(2, 0, 1)[None].float()  # h w c -> 1 c h w
    image = interpolate(image, size, mode="bilinear", antialias=True, align_corners=False)
    return image[0].round().clamp(0, 255).byte().permute(1, 2, 0)
