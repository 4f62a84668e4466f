"""Tiny pipelines of public families with random weights, in folders as diffusers saves them.

They prove calls, clocks, statistics and layouts, nothing of quality.
"""

import os

os.environ["HF_HUB_OFFLINE"] = "1"

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

WORDS = "a the monkey robot dances bounces left right red ball . ,".split()
TEXT = 32  # width of text tokens


def tokenizer() -> Any:
    """A tokenizer of whole words; those that it does not know are one token."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    names = ["<pad>", "</s>", "<unk>", *WORDS]
    words = Tokenizer(models.WordLevel({w: i for i, w in enumerate(names)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    )


def text_encoder(kind: str, width: int = TEXT) -> Any:
    import transformers

    config = getattr(transformers, f"{kind}Config")(
        vocab_size=64, d_model=width, d_kv=8, d_ff=37, num_layers=2, num_heads=4
    )
    return getattr(transformers, f"{kind}EncoderModel")(config).eval()


WAN = {
    "patch_size": (1, 2, 2),
    "num_attention_heads": 2,
    "attention_head_dim": 12,
    "in_channels": 16,
    "out_channels": 16,
    "text_dim": TEXT,
    "freq_dim": 256,
    "ffn_dim": 32,
    "num_layers": 2,
    "cross_attn_norm": True,
    "qk_norm": "rms_norm_across_heads",
    "rope_max_seq_len": 32,
}


def wan_codec(channels: int = 16, **options: Any) -> Any:
    from diffusers import AutoencoderKLWan

    statistics = {
        "latents_mean": [0.1 * i for i in range(channels)],
        "latents_std": [1.0 + 0.05 * i for i in range(channels)],
    }
    return AutoencoderKLWan(
        base_dim=3,
        z_dim=channels,
        dim_mult=[1, 1, 1, 1],
        num_res_blocks=1,
        temperal_downsample=[False, True, True],
        **statistics,
        **options,
    )


def wan(**options: Any) -> Any:
    from diffusers import FlowMatchEulerDiscreteScheduler, WanPipeline, WanTransformer3DModel

    config = WAN | options
    return WanPipeline(
        transformer=WanTransformer3DModel(**config),
        vae=wan_codec(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        text_encoder=text_encoder("UMT5", config["text_dim"]),
        tokenizer=tokenizer(),
    )


def wan_experts(**options: Any) -> Any:
    """Wan 2.2 A14B: two networks, by the level of noise."""
    from diffusers import WanTransformer3DModel

    pipeline = wan(**options)
    pipeline.register_modules(transformer_2=WanTransformer3DModel(**WAN | options))
    pipeline.register_to_config(boundary_ratio=0.875)
    return pipeline


def wan_5b() -> Any:
    """Wan 2.2 TI2V: a codec of twice the stride and a time for each token."""
    from diffusers import FlowMatchEulerDiscreteScheduler, WanPipeline, WanTransformer3DModel

    codec = wan_codec(
        48,
        in_channels=12,
        out_channels=12,
        is_residual=True,
        patch_size=2,
        scale_factor_spatial=16,
        scale_factor_temporal=4,
    )
    return WanPipeline(
        transformer=WanTransformer3DModel(**WAN | {"in_channels": 48, "out_channels": 48}),
        vae=codec,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=5.0),
        text_encoder=text_encoder("UMT5"),
        tokenizer=tokenizer(),
        expand_timesteps=True,
    )


def image_tower(width: int) -> dict[str, Any]:
    """CLIP and its processor, of 8 x 8 pixels: 5 tokens of a picture."""
    from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModel

    config = CLIPVisionConfig(
        hidden_size=width,
        intermediate_size=37,
        num_hidden_layers=3,
        num_attention_heads=4,
        image_size=8,
        patch_size=4,
    )
    side = {"height": 8, "width": 8}
    return {
        "image_encoder": CLIPVisionModel(config).eval(),
        "image_processor": CLIPImageProcessor(crop_size=side, size={"shortest_edge": 8}),
    }


def wan_image(clip: int = 24, **options: Any) -> Any:
    """Wan 2.1 I2V: a mask, a picture's latents and CLIP's tokens of that width."""
    from diffusers import WanImageToVideoPipeline, WanTransformer3DModel

    plain, config = wan(**options), WAN | {"in_channels": 36} | options
    width = config["num_attention_heads"] * config["attention_head_dim"]
    if clip:
        config |= {"image_dim": clip, "added_kv_proj_dim": width}
    parts = {name: plain.components[name] for name in ("vae", "text_encoder", "tokenizer")}
    return WanImageToVideoPipeline(
        transformer=WanTransformer3DModel(**config),
        scheduler=plain.scheduler,
        **parts,
        **(image_tower(clip) if clip else {}),
    )


def wan_image_experts() -> Any:
    """Wan 2.2 I2V A14B: two networks that read a mask and a picture, without CLIP."""
    from diffusers import WanTransformer3DModel

    pipeline = wan_image(clip=0)
    second = WanTransformer3DModel(**WAN | {"in_channels": 36})
    pipeline.register_modules(transformer_2=second)
    pipeline.register_to_config(boundary_ratio=0.9)
    return pipeline


def wan_vace(**options: Any) -> Any:
    """Wan VACE: a branch of two layers that reads a control clip."""
    from diffusers import WanVACEPipeline, WanVACETransformer3DModel

    plain, config = wan(**options), WAN | {"num_layers": 4} | options
    parts = {name: plain.components[name] for name in ("vae", "text_encoder", "tokenizer")}
    network = WanVACETransformer3DModel(**config, vace_layers=[0, 2], vace_in_channels=96)
    return WanVACEPipeline(transformer=network, scheduler=plain.scheduler, **parts)


def anyflow() -> Any:
    from diffusers import AnyFlowPipeline, AnyFlowTransformer3DModel, FlowMapEulerDiscreteScheduler

    options = {k: v for k, v in WAN.items() if k != "qk_norm"}
    return AnyFlowPipeline(
        transformer=AnyFlowTransformer3DModel(**options, gate_value=0.25, deltatime_type="r"),
        vae=wan_codec(),
        scheduler=FlowMapEulerDiscreteScheduler(shift=5.0),
        text_encoder=text_encoder("UMT5"),
        tokenizer=tokenizer(),
    )


def ltx(channels: int = 8, *, large: bool = False, **options: Any) -> Any:
    """With `large`, the codec has the strides of the real one, 8 frames and 32 pixels."""
    from diffusers import (
        AutoencoderKLLTXVideo,
        FlowMatchEulerDiscreteScheduler,
        LTXPipeline,
        LTXVideoTransformer3DModel,
    )

    codec = AutoencoderKLLTXVideo(
        latent_channels=channels,
        block_out_channels=(8,) * 4,
        decoder_block_out_channels=(8,) * 4,
        layers_per_block=(1,) * 5,
        decoder_layers_per_block=(1,) * 5,
        spatio_temporal_scaling=(True, True, large, False),
        decoder_spatio_temporal_scaling=(True, True, large, False),
        decoder_inject_noise=(False,) * 5,
        upsample_residual=(False,) * 4,
        upsample_factor=(1,) * 4,
        patch_size=4 if large else 1,
        patch_size_t=1,
        encoder_causal=True,
        decoder_causal=False,
    )
    codec.latents_mean.copy_(torch.linspace(-0.3, 0.4, channels))
    codec.latents_std.copy_(torch.linspace(0.5, 1.5, channels))
    config = {
        "in_channels": channels,
        "out_channels": channels,
        "patch_size": 1,
        "patch_size_t": 1,
        "num_attention_heads": 4,
        "attention_head_dim": 8,
        "cross_attention_dim": 32,
        "num_layers": 1,
        "caption_channels": TEXT,
        **options,
    }
    transformer = LTXVideoTransformer3DModel(**config)
    return LTXPipeline(
        transformer=transformer,
        vae=codec,
        scheduler=FlowMatchEulerDiscreteScheduler(),
        text_encoder=text_encoder("T5", config["caption_channels"]),
        tokenizer=tokenizer(),
    )


def cogvideox(rotary: bool = False) -> Any:
    from diffusers import (
        AutoencoderKLCogVideoX,
        CogVideoXDDIMScheduler,
        CogVideoXPipeline,
        CogVideoXTransformer3DModel,
    )

    transformer = CogVideoXTransformer3DModel(
        num_attention_heads=4,
        attention_head_dim=16,
        in_channels=4,
        out_channels=4,
        time_embed_dim=2,
        text_embed_dim=TEXT,
        num_layers=1,
        sample_width=2,
        sample_height=2,
        sample_frames=9,
        patch_size=2,
        temporal_compression_ratio=4,
        max_text_seq_length=226,
        use_rotary_positional_embeddings=rotary,
        use_learned_positional_embeddings=False,
    )
    codec = AutoencoderKLCogVideoX(
        down_block_types=("CogVideoXDownBlock3D",) * 4,
        up_block_types=("CogVideoXUpBlock3D",) * 4,
        block_out_channels=(8,) * 4,
        latent_channels=4,
        layers_per_block=1,
        norm_num_groups=2,
        temporal_compression_ratio=4,
    )
    return CogVideoXPipeline(
        transformer=transformer,
        vae=codec,
        scheduler=CogVideoXDDIMScheduler(
            prediction_type="v_prediction",
            rescale_betas_zero_snr=True,
            snr_shift_scale=3.0,
            timestep_spacing="trailing",
        ),
        text_encoder=text_encoder("T5"),
        tokenizer=tokenizer(),
    )


COMFY = {"num_attention_heads": 1, "attention_head_dim": 128, "text_dim": 4096}
FAMILIES: dict[str, Callable[[], Any]] = {
    "wan": wan,
    # With the widths that ComfyUI takes for granted.
    "wan_comfy": lambda: wan(**COMFY),
    "wan_experts_comfy": lambda: wan_experts(**COMFY),
    "wan_image_comfy": lambda: wan_image(clip=1280, **COMFY),
    "wan_vace_comfy": lambda: wan_vace(**COMFY),
    "ltx_comfy": lambda: ltx(
        channels=128,
        large=True,
        num_attention_heads=32,
        attention_head_dim=2,
        cross_attention_dim=64,
        caption_channels=4096,
    ),
    "wan_5b": wan_5b,
    "wan_experts": wan_experts,
    "wan_image": wan_image,
    "wan_vace": wan_vace,
    "wan_image_experts": wan_image_experts,
    "anyflow": anyflow,
    "ltx": ltx,
    "cogvideox": cogvideox,
    "cogvideox_rotary": lambda: cogvideox(rotary=True),
}


def save(name: str, folder: Path) -> Path:
    """The folder of a family's tiny pipeline. Weights that start at zero are shaken."""
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore")
        torch.manual_seed(7)
        pipeline = FAMILIES[name]()
        second = getattr(pipeline, "transformer_2", None)
        for part in filter(None, (pipeline.transformer, second, pipeline.vae)):
            for parameter in part.parameters():
                parameter.data += 0.05 * torch.randn_like(parameter)
        pipeline.save_pretrained(folder)
    return folder


def student(base: Path, folder: Path, by: float = 0.02, **facts: Any) -> Path:
    """A student's model folder: the weights of a base, moved; `facts` of its training."""
    from vidcm.families.denoiser import PublicDenoiser
    from vidcm.store import read_card, read_weights, save_model

    generator = torch.Generator().manual_seed(11)
    own = facts.get("guidance_range", [3.0, 3.0])
    spec = {**read_card(base)["spec"], "guidance_scale": own[0]}
    assert PublicDenoiser.spec_is_student(spec)
    weights = {
        name: tensor + by * torch.randn(tensor.shape, generator=generator)
        for name, tensor in read_weights(base).items()
    }
    told = {"guidance_range": own, "sampler": "consistency", **facts}
    save_model(folder, spec, weights, metadata={"student": told, "step": 1})
    return folder
