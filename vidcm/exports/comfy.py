"""One file in the layout that a network's authors published, with a workflow, for ComfyUI."""

import json
from pathlib import Path
from typing import Any

import torch

from vidcm.diffusion.times import shifted_timesteps
from vidcm.errors import UsageError, VidcmError
from vidcm.exports.base import ExportTarget, facts
from vidcm.exports.comfy_workflow import comfy_workflow
from vidcm.exports.reference import Reference, difference, network_outputs, outputs
from vidcm.exports.student import PublicStudent
from vidcm.families.base import find_family, library_class
from vidcm.families.component import check_complete, read_config
from vidcm.families.ltx import LTX
from vidcm.families.original import original_names
from vidcm.store import save_tensors

WEIGHTS = ("weights", "weights_2")  # keys of the manifest
SAMPLERS = {"consistency": "lcm", "flow_map": "euler"}  # ours and ComfyUI's
# What ComfyUI takes for granted, by options of diffusers' config: words for it, and the values.
WAN: dict[str, tuple[str, tuple[Any, ...]]] = {
    "attention_head_dim": ("attention heads of width", (128,)),
    "text_dim": ("text tokens of width", (4096,)),
    "freq_dim": ("time embeddings of width", (256,)),
    "patch_size": ("patches of", ((1, 2, 2),)),
    "image_dim": ("tokens of pictures of width", (None, 1280)),
}
WIDTHS = {
    "wan": WAN,
    "wan_vace": WAN,
    "ltx": {
        "num_attention_heads": ("numbers of attention heads of", (32,)),
        "in_channels": ("latent channels of number", (128,)),
        "caption_channels": ("text tokens of width", (4096,)),
        "patch_size": ("patches of side", (1,)),
        "patch_size_t": ("patches of frames", (1,)),
    },
}
WORKFLOW, CONFIG = "workflow.json", "config.json"


class ComfyFile(ExportTarget):
    """A file for ComfyUI's folder `models/diffusion_models`, and a workflow that sets its times.

    Two files where a pipeline has two networks.

    Its `config.json` is for diffusers, which reads the file by `from_single_file(file,
    config=folder)` of the network's class.
    """

    name = "comfy"
    takes_two = True

    def check(self, student: PublicStudent) -> None:
        if student.low is not None:
            self.check(student.low)
            first, steps = student.high_steps, student.settings.num_inference_steps
            if not 0 < first < steps:
                raise UsageError(
                    f"of {steps} steps {first} are of the network above the boundary, so one of "
                    "the two files would have no part; give --steps or --shift with some on each "
                    "side"
                )
        if student.denoiser.two_times:
            raise UsageError(
                "ComfyUI would run this student as plain Wan: it drops the second time with a line "
                "in its log; use --to anyflow"
            )
        if student.family.name not in WIDTHS:
            raise UsageError(
                f"vidcm exports Wan and LTX-Video to ComfyUI, not {student.family.name}"
            )
        config = student.transformer.config
        for option, (what, only) in WIDTHS[student.family.name].items():
            value = config[option]
            value = tuple(value) if isinstance(value, list) else value
            if value not in only:
                raise UsageError(
                    f"ComfyUI knows {what} {only[-1]} only, and the student has {value}"
                )
        if isinstance(student.family, LTX) and student.family.strides != LTX().strides:
            raise UsageError(
                "ComfyUI knows LTX codecs of 8 frames and 32 pixels for a latent only, and the "
                "student's has {} and {}".format(*student.family.strides)
            )
        if student.family.name == "wan_vace":
            layers, own = config.num_layers, list(config.vace_layers)
            if own != list(range(0, layers, layers // len(own))):
                raise UsageError(
                    f"ComfyUI spreads the layers of VACE's branch evenly, and the student has {own}"
                )
        comfy_shift(student)

    def write(self, student: PublicStudent, folder: Path) -> dict[str, Any]:
        sampling = {
            "steps": student.settings.num_inference_steps,
            "shift": comfy_shift(student),
            "guidance": 1.0,
            "sampler": SAMPLERS[student.settings.sampler],
            "scheduler": "simple",
        }
        metadata = {key: str(value) for key, value in sampling.items()}
        metadata["vidcm"] = json.dumps(facts(self.name, student))
        parts = [student] if student.low is None else [student, student.low]
        marks = [""] if student.low is None else ["high_noise_", "low_noise_"]
        steps = sampling["steps"]
        files = [f"{student.family.name}_{mark}{steps}_steps.safetensors" for mark in marks]
        for part, file in zip(parts, files, strict=True):
            weights = part.weights()
            names = original_names(part.family, weights)
            save_tensors({names[k]: v for k, v in weights.items()}, folder / file, metadata)
        student.transformer.save_config(folder)
        workflow = comfy_workflow(student, files, sampling)
        (folder / WORKFLOW).write_text(json.dumps(workflow, indent=1) + "\n", "utf-8")
        return dict(zip(WEIGHTS, files, strict=False)) | {"comfy": sampling}

    def reference(self, student: PublicStudent) -> Reference:
        found = outputs(student)
        if student.low is not None:
            found["outputs_2"] = network_outputs(student.family, student.low.transformer, found)
        return found

    def compare(
        self, folder: Path, manifest: dict[str, Any], reference: Reference
    ) -> dict[str, float]:
        keys = zip(WEIGHTS, ("network", "network below"), ("outputs", "outputs_2"), strict=True)
        return {
            label: self._compare_file(folder, folder / str(manifest.get(key)), reference, name)
            for key, label, name in keys
            if name in reference
        }

    def _compare_file(self, folder: Path, file: Path, reference: Reference, name: str) -> float:
        cls = library_class(str(read_config(folder, CONFIG).get("_class_name")))
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
        return difference(found, reference[name])


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
