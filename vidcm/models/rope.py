"""Rotary embedding over three axes (Su et al. 2021, arXiv 2104.09864), as in video DiTs."""

import torch
from torch import Tensor


def rotary(
    frames: int, height: int, width: int, dim: int, device: torch.device, base: float = 100.0
) -> Tensor:
    """Rotary angles `(t h w, dim / 2)` of the tokens of a clip.

    The pairs of a head are shared out over time, rows and columns, a quarter or a little more of
    them to time. Positions are token indices, so a model trained on one shape runs on another.
    """
    pairs = dim // 2
    spatial = pairs * 3 // 8
    angles = []
    for axis, share in enumerate((pairs - 2 * spatial, spatial, spatial)):
        rates = base ** -(torch.arange(share, device=device, dtype=torch.float32) / max(share, 1))
        shape = [1, 1, 1, share]
        shape[axis] = -1
        places = torch.arange((frames, height, width)[axis], device=device, dtype=torch.float32)
        turned = (places[:, None] * rates).view(shape)
        angles.append(turned.expand(frames, height, width, share))
    return torch.cat(angles, dim=-1).reshape(frames * height * width, pairs)


def rotate(x: Tensor, angles: Tensor) -> Tensor:
    """Turn pairs (first half, second half) of `x (b, heads, n, dim)` by angles `(n, dim / 2)`."""
    cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
    a, b = x.chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, a * sin + b * cos], dim=-1)
