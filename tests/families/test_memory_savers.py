"""Text towers and codecs of public pipelines that leave the device, and tiles."""

import torch

from vidcm.codecs.base import VideoCodec
from vidcm.codecs.offloaded import OffloadedCodec
from vidcm.diffusion.denoiser import Denoiser
from vidcm.families.text import OffloadedText
from vidcm.models.offload import Offload
from vidcm.store import load_model


def test_the_text_tower_leaves_for_the_network_and_can_be_freed(public) -> None:
    teacher = load_model(public("wan") / "transformer", Denoiser)
    before = teacher.encode(["a red ball bounces"])
    offload = Offload(torch.device("cpu"))
    offload.add(teacher.backbone, when_called=True)
    tower = teacher.conditioner = OffloadedText(teacher.conditioner, offload)
    cond = teacher.encode(["a red ball bounces"])
    assert torch.equal(cond.tokens, before.tokens) and offload._there is tower
    with torch.no_grad():
        teacher.velocity(torch.randn(1, teacher.channels, 3, 4, 4), torch.tensor([0.5]), cond)
    assert offload._there is teacher.backbone
    tower.release()
    assert tower._pipeline is None
    assert torch.equal(teacher.encode(["a red ball bounces"]).tokens, before.tokens)


def test_a_codec_decodes_in_tiles(public) -> None:
    plain, tiled = (load_model(public("wan") / "vae", VideoCodec) for _ in range(2))
    tiled = OffloadedCodec(tiled, Offload(torch.device("cpu")))
    tiled.enable_tiling()
    tiled.codec.autoencoder.tile_sample_min_height = 32
    tiled.codec.autoencoder.tile_sample_min_width = 32
    tiled.codec.autoencoder.tile_sample_stride_height = 24
    tiled.codec.autoencoder.tile_sample_stride_width = 24
    latents = torch.randn(1, plain.channels, 2, 8, 8)
    with torch.no_grad():
        whole, parts = plain.decode(latents), tiled.decode(latents)
    assert whole.shape == parts.shape and not torch.equal(whole, parts)
    inside = (slice(None), slice(None), slice(None), slice(0, 8), slice(0, 8))
    assert (whole[inside] - parts[inside]).abs().mean() < 0.5 * whole.abs().mean()
