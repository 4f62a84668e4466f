"""Conversions between the pixels of files and the input of networks.

`frames` are uint8 RGB, channels last: `(b t h w c)` as a batch, `(t h w c)` as one clip.
`video` is float in [-1, 1], channels second: `(b c t h w)`.
"""

import torch
from torch import Tensor

from vidcm.errors import VidcmError


def to_video(frames: Tensor) -> Tensor:
    """Convert uint8 frames `(b t h w c)` to a float32 video `(b c t h w)` in [-1, 1]."""
    if frames.dtype != torch.uint8 or frames.ndim != 5:
        raise ValueError(f"got {frames.dtype} {tuple(frames.shape)}, expected uint8 (b t h w c)")
    return frames.permute(0, 4, 1, 2, 3).float().div(127.5).sub(1).contiguous()


def to_frames(video: Tensor) -> Tensor:
    """Convert a float video `(b c t h w)` to uint8 frames `(b t h w c)`, inverting `to_video`.

    Values outside [-1, 1] are clamped, the others rounded half to even.

    Raises:
        VidcmError: a value is not finite.
    """
    if not video.is_floating_point() or video.ndim != 5:
        raise ValueError(f"got {video.dtype} {tuple(video.shape)}, expected float (b c t h w)")
    video = video.detach().float()
    if bad := int((~torch.isfinite(video)).sum()):
        raise VidcmError(
            f"{bad} of {video.numel()} video values are not finite: the model or the codec "
            "overflowed; run it in bfloat16 or float32"
        )
    pixels = video.clamp(-1, 1).add(1).mul(127.5).round().to(torch.uint8)
    return pixels.permute(0, 2, 3, 4, 1).contiguous()
