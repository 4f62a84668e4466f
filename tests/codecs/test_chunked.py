"""A clip of any length in chunks equals the clip in one pass."""

import pytest
import torch

from vidcm.codecs.causal_vae import CausalVAE
from vidcm.codecs.chunked import _chunks, decode_chunked, encode_chunked
from vidcm.errors import UsageError


@pytest.fixture
def codec() -> CausalVAE:
    torch.manual_seed(0)
    codec = CausalVAE(8, (48, 12, 16))
    for parameter in codec.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    return codec.eval().requires_grad_(False)


@pytest.mark.parametrize("chunk", [1, 2, 3, 5, 20])
def test_chunks_equal_one_pass(codec, chunk):
    video = torch.randn(1, 3, 45, 16, 24)
    latents = codec.encode(video)
    torch.testing.assert_close(encode_chunked(codec, video, chunk), latents)
    rebuilt = torch.cat(list(decode_chunked(codec, latents, chunk)), dim=2)
    torch.testing.assert_close(rebuilt, codec.decode(latents))


def test_less_context_would_show(codec, monkeypatch):
    video = torch.randn(1, 3, 45, 16, 24)
    monkeypatch.setattr(CausalVAE, "context", CausalVAE.context - 1)
    assert (encode_chunked(codec, video, 3) - codec.encode(video)).abs().max() > 1e-4


def test_chunks_cover_everything_once():
    assert [(first, end) for _, first, end in _chunks(11, 4, CausalVAE.context)] == [
        (0, 4),
        (4, 8),
        (8, 11),
    ]


def test_refusals(codec):
    with pytest.raises(UsageError, match="use 41 or 45"):
        encode_chunked(codec, torch.randn(1, 3, 44, 16, 24))
    with pytest.raises(UsageError, match="at least 1"):
        encode_chunked(codec, torch.randn(1, 3, 45, 16, 24), 0)
