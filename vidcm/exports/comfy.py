"""One file in the layout that Wan's authors published, with a workflow, for ComfyUI."""

import json
from pathlib import Path
from typing import Any

import torch

from vidcm.diffusion.times import shifted_timesteps
from vidcm.errors import UsageError, VidcmError
from vidcm.exports.base import ExportTarget, facts
from vidcm.exports.reference import Reference, difference, network_outputs, outputs
from vidcm.exports.student import PublicStudent
from vidcm.families.base import find_family, library_class
from vidcm.families.component import check_complete
from vidcm.families.original import original_names
from vidcm.store import save_tensors

SAMPLERS = {"consistency": "lcm", "flow_map": "euler"}  # ours and ComfyUI's
HEAD, TEXT, FREQUENCIES = 128, 4096, 256  # widths that ComfyUI takes for granted
PATCH = (1, 2, 2)
WORKFLOW, CONFIG = "workflow.json", "config.json"


class ComfyFile(ExportTarget):
    """A file for ComfyUI's folder `models/diffusion_models`, and a workflow that sets its times.

    Its `config.json` is for diffusers, which reads the file by
    `WanTransformer3DModel.from_single_file(file, config=folder)`.
    """

    name = "comfy"

    def check(self, student: PublicStudent) -> None:
        if student.denoiser.two_times:
            raise UsageError(
                "ComfyUI would run this student as plain Wan: it drops the second time with a line "
                "in its log; use --to anyflow"
            )
        if student.family.name != "wan":
            raise UsageError(f"vidcm exports Wan to ComfyUI, not {student.family.name}")
        config = student.transformer.config
        for what, value, only in (
            ("attention heads of width", config.attention_head_dim, HEAD),
            ("text tokens of width", config.text_dim, TEXT),
            ("time embeddings of width", config.freq_dim, FREQUENCIES),
            ("patches of", tuple(config.patch_size), PATCH),
        ):
            if value != only:
                raise UsageError(f"ComfyUI knows {what} {only} only, and the student has {value}")
        comfy_shift(student)

    def write(self, student: PublicStudent, folder: Path) -> dict[str, Any]:
        weights = student.weights()
        names = original_names(student.family, weights)
        sampling = {
            "steps": student.settings.num_inference_steps,
            "shift": comfy_shift(student),
            "guidance": 1.0,
            "sampler": SAMPLERS[student.settings.sampler],
            "scheduler": "simple",
        }
        metadata = {key: str(value) for key, value in sampling.items()}
        metadata["vidcm"] = json.dumps(facts(self.name, student))
        file = f"{student.family.name}_{sampling['steps']}_steps.safetensors"
        save_tensors({names[k]: v for k, v in weights.items()}, folder / file, metadata)
        student.transformer.save_config(folder)
        workflow = comfy_workflow(file, sampling, student.denoiser.channels)
        (folder / WORKFLOW).write_text(json.dumps(workflow, indent=1) + "\n", "utf-8")
        return {"weights": file, "comfy": sampling}

    def reference(self, student: PublicStudent) -> Reference:
        return outputs(student)

    def compare(
        self, folder: Path, manifest: dict[str, Any], reference: Reference
    ) -> dict[str, float]:
        cls, file = library_class("WanTransformer3DModel"), folder / str(manifest.get("weights"))
        try:
            network = cls.from_single_file(
                str(file), config=str(folder), torch_dtype=torch.float32, local_files_only=True
            )
        except (OSError, ValueError, RuntimeError, KeyError, NotImplementedError) as error:
            line = " ".join(str(error).split())
            raise VidcmError(f"diffusers cannot read {file}: {line[:300]}") from None
        check_complete(network, {}, file)
        family = find_family(cls.__name__)
        with torch.no_grad():
            found = network_outputs(family, network.eval(), reference)
        return {"network": difference(found, reference["outputs"])}


def comfy_shift(student: PublicStudent) -> float:
    """The shift at which ComfyUI's scheduler `simple` has the student's times.

    Raises:
        UsageError: There is none.
    """
    steps = student.settings.num_inference_steps
    times = student.times(steps).double()
    last = float(times[-1])
    shift = student.settings.shift or (1.0 if steps == 1 else (steps - 1) * last / (1 - last))
    grid = shifted_timesteps(steps, by=shift)[:-1]
    if not torch.allclose(times, grid, atol=1e-3, rtol=0):
        given = ", ".join(f"{t:.4g}" for t in times)
        raise UsageError(
            f"the student's times {given} are of no shift, which ComfyUI's scheduler `simple` "
            "needs; give --shift"
        )
    return shift


def comfy_workflow(file: str, sampling: dict[str, Any], channels: int) -> dict[str, Any]:
    """A text-to-video graph in ComfyUI's API format, which its window opens too.

    Args:
        file: Of the network, in ComfyUI's folder of networks.
        sampling: Steps, shift, guidance, sampler and scheduler.
        channels: Latent channels: 48 are those of Wan 2.2 5B, others of Wan 2.1.
    """
    small = channels == 48
    vae = "wan2.2_vae.safetensors" if small else "wan_2.1_vae.safetensors"
    size = {"width": 1280, "height": 704, "length": 121} if small else {}
    size = size or {"width": 832, "height": 480, "length": 81}
    latent = {"Wan22ImageToVideoLatent": {"vae": ["vae", 0]}} if small else {}
    ((latent_class, more),) = (latent or {"EmptyHunyuanLatentVideo": {}}).items()
    graph = {
        "model": ("UNETLoader", {"unet_name": file, "weight_dtype": "default"}),
        "shift": ("ModelSamplingSD3", {"model": ["model", 0], "shift": sampling["shift"]}),
        "clip": (
            "CLIPLoader",
            {"clip_name": "umt5_xxl_fp8_e4m3fn_scaled.safetensors", "type": "wan"},
        ),
        "vae": ("VAELoader", {"vae_name": vae}),
        "prompt": ("CLIPTextEncode", {"clip": ["clip", 0], "text": "a red ball bounces"}),
        "no prompt": ("CLIPTextEncode", {"clip": ["clip", 0], "text": ""}),
        "latent": (latent_class, {**size, "batch_size": 1, **more}),
        "sampler": (
            "KSampler",
            {
                "model": ["shift", 0],
                "positive": ["prompt", 0],
                "negative": ["no prompt", 0],
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
        "video": ("CreateVideo", {"images": ["frames", 0], "fps": 24.0 if small else 16.0}),
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
    return {key: {"class_type": kind, "inputs": inputs} for key, (kind, inputs) in graph.items()}
