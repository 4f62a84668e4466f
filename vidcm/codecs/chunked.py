"""Long clips through a causal codec piece by piece, with the numbers of one go and bounded memory.

A piece starts CONTEXT latent frames early, which is as far back as the codec looks (three frames at
each of its two levels), and drops what it made of them.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from vidcm.codecs.causal_vae import CausalVAE
from vidcm.errors import UsageError
from vidcm.media.sizes import check_frames

CONTEXT = 4  # latent frames


def _spans(total: int, piece: int) -> Iterator[tuple[int, int, int]]:
    """(where to read from, first, end) of pieces that cover `total` latent frames."""
    if piece < 1:
        raise UsageError(f"a piece of {piece} latent frames is too short; use at least 1")
    for first in range(0, total, piece):
        yield max(first - CONTEXT, 0), first, min(first + piece, total)


def encode_chunked(codec: CausalVAE, video: Tensor, piece: int = 8) -> Tensor:
    """`codec.encode(video)` of a clip of any length, `piece` latent frames at a time."""
    stride = codec.time_stride
    total = (check_frames(video.shape[2], stride) - 1) // stride + 1
    parts = []
    for start, first, end in _spans(total, piece):
        clip = video[:, :, start * stride : (end - 1) * stride + 1]
        parts.append(codec.encode(clip)[:, :, first - start :])
    return torch.cat(parts, dim=2)


def decode_chunked(codec: CausalVAE, latents: Tensor, piece: int = 8) -> Iterator[Tensor]:
    """`codec.decode(latents)` as consecutive videos `(b 3 t h w)`, `piece` latent frames each."""
    stride = codec.time_stride
    for start, first, end in _spans(latents.shape[2], piece):
        video = codec.decode(latents[:, :, start:end])
        yield video if first == 0 else video[:, :, (first - start - 1) * stride + 1 :]
