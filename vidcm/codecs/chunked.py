"""Long clips through a causal codec in chunks: the same numbers in bounded memory.

A chunk starts early by the codec's context, its receptive field along time, and drops the results
of these frames. Codecs that take whole clips only get them whole.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from vidcm.codecs.base import VideoCodec
from vidcm.errors import UsageError
from vidcm.media.sizes import check_frames


def encode_chunked(codec: VideoCodec, video: Tensor, chunk: int = 8) -> Tensor:
    """Latents of a clip of any length, as `codec.encode(video)`.

    Args:
        codec: the codec.
        video: `(b 3 t h w)` in [-1, 1].
        chunk: latent frames at a time, at least 1.
    """
    stride = codec.time_stride
    total = (check_frames(video.shape[2], codec.frame_step) - 1) // stride + 1
    parts = []
    for start, first, end in _chunks(total, chunk, codec.context):
        clip = video[:, :, start * stride : (end - 1) * stride + 1]
        parts.append(codec.encode(clip)[:, :, first - start :])
    return torch.cat(parts, dim=2)


def decode_chunked(codec: VideoCodec, latents: Tensor, chunk: int = 8) -> Iterator[Tensor]:
    """Consecutive parts of `codec.decode(latents)`, videos `(b 3 t h w)`.

    Args:
        codec: the codec.
        latents: `(b c t h w)`.
        chunk: latent frames at a time, at least 1.
    """
    stride = codec.time_stride
    for start, first, end in _chunks(latents.shape[2], chunk, codec.context):
        video = codec.decode(latents[:, :, start:end])
        yield video if first == 0 else video[:, :, (first - start - 1) * stride + 1 :]


def _chunks(total: int, size: int, context: int | None) -> Iterator[tuple[int, int, int]]:
    """(start with context, first, end) of the chunks that cover `total` latent frames."""
    if size < 1:
        raise UsageError(f"a chunk of {size} latent frames is too short; use at least 1")
    if context is None:
        yield 0, 0, total
        return
    for first in range(0, total, size):
        yield max(first - context, 0), first, min(first + size, total)
