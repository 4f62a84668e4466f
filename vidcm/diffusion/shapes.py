"""Dimension legend and the one broadcast helper.

b batch, c channels, t frames (inside einops strings only), h w grid, n tokens, d width.
Video and latents are `b c t h w`; tokens are `b n d`; diffusion times are `(b,)` or `(b, t)`.
"""

from torch import Tensor

from vidcm.errors import UsageError


def like(t: Tensor, x: Tensor) -> Tensor:
    """A time `(b,)` or per-frame `(b, t)` shaped to multiply `x (b c t h w)` or any `(b, ...)`."""
    if t.ndim == 1:
        return t.view(-1, *[1] * (x.ndim - 1))
    return t.view(t.shape[0], 1, t.shape[1], *[1] * (x.ndim - 3))


def check_frames(frames: int, stride: int = 4) -> int:
    """Clips have `stride * k + 1` frames (the first is coded alone); returns `frames` or raises
    UsageError naming the nearest valid numbers."""
    if frames < 1 or (frames - 1) % stride:
        below = max((frames - 1) // stride * stride + 1, 1)
        raise UsageError(
            f"{frames} frames do not fit the codec's temporal stride {stride}; "
            f"use {below} or {below + stride}"
        )
    return frames


def check_size(height: int, width: int, multiple: int) -> tuple[int, int]:
    """Sizes are multiples of codec stride x patch; returns them or raises UsageError."""
    for name, value in (("height", height), ("width", width)):
        if value < 1 or value % multiple:
            below = max(value // multiple * multiple, multiple)
            raise UsageError(
                f"{name} {value} is not a multiple of {multiple}; use {below} or {below + multiple}"
            )
    return height, width
