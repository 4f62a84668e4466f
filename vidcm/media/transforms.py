"""Frames of any size to frames of one size, the same for every frame. Needs no torch."""

from __future__ import annotations

import numpy as np
from PIL import Image

from vidcm.errors import UsageError

# Black, so that in a mask, where white is to be filled, transparent parts are not.
BACKGROUND = (0, 0, 0)


def composite(pixels: np.ndarray) -> np.ndarray:
    """Put uint8 `(... 4)`, RGB with straight alpha, on `BACKGROUND`: uint8 `(... 3)`."""
    colour, alpha = pixels[..., :3].astype(np.uint16), pixels[..., 3:].astype(np.uint16)
    below = np.array(BACKGROUND, np.uint16)
    return ((colour * alpha + below * (255 - alpha) + 127) // 255).astype(np.uint8)


def resize_crop(
    frames: np.ndarray, size: tuple[int, int], place: tuple[float, float] | None = None
) -> np.ndarray:
    """Scale frames until they cover a size, with antialiasing and the same aspect, then crop.

    Args:
        frames: uint8 `(t h w 3)`; unchanged if they have the size already.
        size: Height and width in pixels.
        place: Of the crop down and across, in [0, 1); None for the centre.

    Returns:
        uint8 `(t height width 3)`.

    Raises:
        UsageError: The size is below 1.
    """
    height, width = size
    if height < 1 or width < 1:
        raise UsageError(f"size is {height}x{width}, expected height and width of at least 1")
    h, w = frames.shape[1:3]
    scale = max(height / h, width / w)
    scaled = (max(height, round(h * scale)), max(width, round(w * scale)))
    top, left = scaled[0] - height, scaled[1] - width
    if place is None:
        top, left = top // 2, left // 2
    else:
        top, left = int(place[0] * (top + 1)), int(place[1] * (left + 1))
    if scaled == (h, w):
        return np.ascontiguousarray(frames[:, top : top + height, left : left + width])
    down, across = h / scaled[0], w / scaled[1]
    box = (left * across, top * down, (left + width) * across, (top + height) * down)
    return np.stack([
        np.asarray(Image.fromarray(f).resize((width, height), Image.Resampling.BILINEAR, box))
        for f in frames
    ])  # fmt: skip
