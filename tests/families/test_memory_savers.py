"""Text towers and codecs of public pipelines that leave the device, and tiles."""

import pytest
import torch

from vidcm.codecs.base import VideoCodec
from vidcm.codecs.offloaded import OffloadedCodec
from vidcm.diffusion.denoiser import Denoiser
from vidcm.families.text import OffloadedText
from vidcm.models.offload import Offload
from vidcm.pipeline import VideoPipeline
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


@pytest.mark.parametrize("family", ["wan", "wan_experts", "ltx"])
def test_a_pipeline_in_bf16_keeps_networks_so(public, family) -> None:
    """Half the memory but for the layers that diffusers keeps, and weights come back exactly."""
    import diffusers

    folder, size = public(family), {"num_frames": 9, "height": 32, "width": 32}
    call = size | {"use_teacher": True, "num_inference_steps": 2, "output_type": "latent"}
    pipe = VideoPipeline.from_pretrained(folder, torch_dtype=torch.bfloat16)
    plain = VideoPipeline.from_pretrained(folder, torch_dtype=torch.float32)
    half = pipe("a robot dances", **call).frames
    whole = plain("a robot dances", **call).frames
    assert (half - whole).norm() < 0.1 * whole.norm()
    theirs = diffusers.DiffusionPipeline.from_pretrained(folder, torch_dtype=torch.bfloat16)
    model = pipe.model("teacher")
    networks = [model.high, model.low] if family == "wan_experts" else [model]
    expected = [theirs.transformer, *([theirs.transformer_2] if len(networks) == 2 else [])]
    for network, other in zip(networks, expected, strict=True):
        kinds = {n: p.dtype for n, p in network.backbone.transformer.named_parameters()}
        assert kinds == {n: p.dtype for n, p in other.named_parameters()}
        assert torch.bfloat16 in kinds.values()
    again = pipe.to(torch.float32)("a robot dances", **call).frames
    assert torch.equal(again, whole)
