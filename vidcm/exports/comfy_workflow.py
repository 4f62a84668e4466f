"""Graphs in ComfyUI's API format, which its window opens too."""

from collections.abc import Sequence
from typing import Any

from vidcm.exports.student import PublicStudent

Graph = dict[str, tuple[str, dict[str, Any]]]

TEXTS = {"positive": ["prompt", 0], "negative": ["no prompt", 0]}
MAKERS = {"positive": ["latent", 0], "negative": ["latent", 1], "latent_image": ["latent", 2]}


def comfy_workflow(
    student: PublicStudent, files: Sequence[str], sampling: dict[str, Any]
) -> dict[str, Any]:
    """A graph from a prompt, and what else the network reads, to a clip.

    Args:
        student: The student.
        files: Of its network, in ComfyUI's folder of networks; or of both, that for high noise
            first.
        sampling: Steps, shift, guidance, sampler and scheduler.
    """
    graph = _common(files[0], sampling)
    if student.family.name == "ltx":
        graph |= _ltx(sampling)
    elif student.denoiser.channels == 48:
        graph |= _wan_5b()
    else:
        graph |= _wan(student)
    if graph["latent"][0] in ("WanImageToVideo", "WanVaceToVideo"):
        graph["sampler"][1].update(MAKERS)
    if student.low is not None:
        graph |= _two_networks(graph, files[1], student.high_steps)
    return {key: {"class_type": kind, "inputs": inputs} for key, (kind, inputs) in graph.items()}


def _two_networks(graph: Graph, low: str, first: int) -> Graph:
    """The first steps by the network of the graph, which leaves the noise of the next, then `low`.

    Args:
        graph: Of one network.
        low: File of the other one.
        first: Number of the first steps.
    """
    inputs = dict(graph["sampler"][1])
    del inputs["denoise"]
    inputs["noise_seed"] = inputs.pop("seed")
    begin = {"add_noise": "enable", "start_at_step": 0, "end_at_step": first}
    end = {"add_noise": "disable", "start_at_step": first, "end_at_step": 10000}
    begin["return_with_leftover_noise"], end["return_with_leftover_noise"] = "enable", "disable"
    end |= {"model": ["shift below", 0], "latent_image": ["sampler above", 0]}
    shift = {**graph["shift"][1], "model": ["model below", 0]}
    return {
        "model below": ("UNETLoader", {"unet_name": low, "weight_dtype": "default"}),
        "shift below": (graph["shift"][0], shift),
        "sampler above": ("KSamplerAdvanced", {**inputs, **begin}),
        "sampler": ("KSamplerAdvanced", {**inputs, **end}),
    }


def _common(file: str, sampling: dict[str, Any]) -> Graph:
    return {
        "model": ("UNETLoader", {"unet_name": file, "weight_dtype": "default"}),
        "shift": ("ModelSamplingSD3", {"model": ["model", 0], "shift": sampling["shift"]}),
        "clip": (
            "CLIPLoader",
            {"clip_name": "umt5_xxl_fp8_e4m3fn_scaled.safetensors", "type": "wan"},
        ),
        "vae": ("VAELoader", {"vae_name": "wan_2.1_vae.safetensors"}),
        "prompt": ("CLIPTextEncode", {"clip": ["clip", 0], "text": "a red ball bounces"}),
        "no prompt": ("CLIPTextEncode", {"clip": ["clip", 0], "text": ""}),
        "sampler": (
            "KSampler",
            {
                "model": ["shift", 0],
                **TEXTS,
                "latent_image": ["latent", 0],
                "seed": 0,
                "steps": sampling["steps"],
                "cfg": sampling["guidance"],
                "sampler_name": sampling["sampler"],
                "scheduler": sampling["scheduler"],
                "denoise": 1.0,
            },
        ),
        "frames": ("VAEDecode", {"samples": ["sampler", 0], "vae": ["vae", 0]}),
        "video": ("CreateVideo", {"images": ["frames", 0], "fps": 16.0}),
        "save": (
            "SaveVideo",
            {
                "video": ["video", 0],
                "filename_prefix": "video/vidcm",
                "format": "auto",
                "codec": "auto",
            },
        ),
    }


def _wan(student: PublicStudent) -> Graph:
    size: dict[str, Any] = {"width": 832, "height": 480, "length": 81, "batch_size": 1}
    config = student.transformer.config
    if student.family.name == "wan_vace":
        return {
            "control": ("LoadVideo", {"file": "control.mp4"}),
            "control frames": ("GetVideoComponents", {"video": ["control", 0]}),
            "latent": (
                "WanVaceToVideo",
                {
                    **TEXTS,
                    "vae": ["vae", 0],
                    **size,
                    "strength": 1.0,
                    "control_video": ["control frames", 0],
                },
            ),
        }
    if config.in_channels == config.out_channels:
        return {"latent": ("EmptyHunyuanLatentVideo", size)}
    picture: dict[str, Any] = {"start_image": ["picture", 0]}
    graph: Graph = {"picture": ("LoadImage", {"image": "picture.png"})}
    if config.image_dim is not None:
        picture["clip_vision_output"] = ["seen", 0]
        seen = {"clip_vision": ["clip vision", 0], "image": ["picture", 0], "crop": "none"}
        graph["clip vision"] = ("CLIPVisionLoader", {"clip_name": "clip_vision_h.safetensors"})
        graph["seen"] = ("CLIPVisionEncode", seen)
    graph["latent"] = ("WanImageToVideo", {**TEXTS, "vae": ["vae", 0], **size, **picture})
    return graph


def _wan_5b() -> Graph:
    size = {"width": 1280, "height": 704, "length": 121, "batch_size": 1}
    return {
        "vae": ("VAELoader", {"vae_name": "wan2.2_vae.safetensors"}),
        "latent": ("Wan22ImageToVideoLatent", {**size, "vae": ["vae", 0]}),
        "video": ("CreateVideo", {"images": ["frames", 0], "fps": 24.0}),
    }


def _ltx(sampling: dict[str, Any]) -> Graph:
    """LTX's network multiplies its time by 1000 itself: this node shifts and leaves it as it is."""
    size = {"width": 704, "height": 512, "length": 161, "batch_size": 1}
    names = {"clip_name": "t5xxl_fp16.safetensors", "type": "ltxv"}
    return {
        "shift": ("ModelSamplingAuraFlow", {"model": ["model", 0], "shift": sampling["shift"]}),
        "clip": ("CLIPLoader", names),
        "vae": ("VAELoader", {"vae_name": "ltx_video_vae.safetensors"}),
        "latent": ("EmptyLTXVLatentVideo", size),
        "video": ("CreateVideo", {"images": ["frames", 0], "fps": 25.0}),
    }
