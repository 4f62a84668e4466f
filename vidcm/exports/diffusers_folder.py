"""A pipeline folder of diffusers with the student's own times as its scheduler."""

import json
import os
import shutil
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import torch

from vidcm.diffusion.base import Cond
from vidcm.errors import UsageError, VidcmError
from vidcm.exports.base import ExportTarget
from vidcm.exports.control import FRAMES, OF_PIPELINES, needed
from vidcm.exports.layout import LAYOUTS, SampleLayout, layout_of
from vidcm.exports.reference import PROMPT, Reference, clips, difference, pipeline_codec
from vidcm.exports.student import PublicStudent
from vidcm.families.base import library_class
from vidcm.families.component import read_config

INDEX, TRANSFORMER, SCHEDULER = "model_index.json", "transformer", "scheduler"
SECOND = "transformer_2"  # below a boundary of noise
MODULE, CLASS = "scheduling_few_step", "FewStepScheduler"
PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl", "*.msgpack", "*.h5", "*.onnx")
SHARED = ("vae", "text_encoder", "tokenizer")


class DiffusersFolder(ExportTarget):
    """A folder that `DiffusionPipeline.from_pretrained` loads with `trust_remote_code=True`.

    Codec and text tower are hard links to those of the pipeline that the student came from, or
    copies where its file system is another one. A student with a text tower of its own comes
    without them: they are to be given as None, and prompts as embeddings.
    """

    name = "diffusers"
    takes_two = True

    def check(self, student: PublicStudent) -> None:
        layout_of(student.family)
        if student.denoiser.two_times:
            raise UsageError(
                "pipelines of diffusers but one give a network one time, and this student takes "
                "two; use --to anyflow"
            )
        if student.denoiser.parameterization.sign != 1:
            raise UsageError("the few-step scheduler knows networks of the usual sign only")
        base_index(student)
        if needed(student.denoiser.control) is not None and student.base is None:
            raise UsageError("the student reads more than text, and has no pipeline to run it in")

    def write(self, student: PublicStudent, folder: Path) -> dict[str, Any]:
        return write_pipeline(student, folder, [MODULE, CLASS]) | self._write_scheduler(
            student, folder / SCHEDULER
        )

    def _write_scheduler(self, student: PublicStudent, folder: Path) -> dict[str, Any]:
        schedules = {str(n): student.schedule(n) for n in student.step_counts}
        config = {
            "_class_name": CLASS,
            "_diffusers_version": library_version(),
            "num_train_timesteps": 1000,
            "prediction_type": student.prediction_type,
            "schedules": schedules,
            "stochastic": student.settings.sampler == "consistency",
        }
        folder.mkdir()
        (folder / "scheduler_config.json").write_text(json.dumps(config, indent=1) + "\n", "utf-8")
        (folder / f"{MODULE}.py").write_text(scheduler_source(), "utf-8")
        return {"step_counts": student.step_counts}

    def reference(self, student: PublicStudent) -> Reference:
        root = None if student.base is None else student.base.parent
        codec = None if root is None else pipeline_codec(root)
        return clips(student, layout_of(student.family), codec)

    def compare(
        self, folder: Path, manifest: dict[str, Any], reference: Reference
    ) -> dict[str, float]:
        check_scheduler(folder, manifest)
        return compare_pipeline(folder, manifest, reference, remote_code=True)


def scheduler_source() -> str:
    """The source of the scheduler that folders carry."""
    return resources.files("vidcm.exports").joinpath(f"{MODULE}.py").read_text("utf-8")


def check_scheduler(folder: Path, manifest: dict[str, Any]) -> None:
    """Refuse a folder whose scheduler, which diffusers runs, is not the one of this vidcm.

    Raises:
        VidcmError: It is another one.
    """
    if (folder / SCHEDULER / f"{MODULE}.py").read_text("utf-8") != scheduler_source():
        raise VidcmError(
            f"{folder / SCHEDULER / MODULE}.py is not the scheduler of this vidcm, and is not "
            f"run; verify it with vidcm {manifest.get('vidcm')}"
        )


def library_version() -> str:
    """The version of diffusers."""
    import diffusers

    return diffusers.__version__


def base_index(student: PublicStudent) -> dict[str, Any]:
    """The `model_index.json` of the student's pipeline; one without shared parts if it has none.

    Raises:
        UsageError: The base is no part of a whole pipeline, or one with two networks.
    """
    if student.base is None:
        return {"_class_name": student.family.pipeline, "_diffusers_version": library_version()}
    root = student.base.parent
    index = read_config(root, INDEX)
    two = (index.get(SECOND) or [None])[0] is not None
    if two and student.low is None:
        raise UsageError(
            f"{root} has two networks ({SECOND}), and the student is one; give the other by "
            "--student-2 with --to diffusers"
        )
    missing = [name for name in SHARED if not (root / name).is_dir()]
    if missing:
        raise UsageError(f"{root} lacks {', '.join(missing)}; give the student a whole pipeline")
    return index


def write_pipeline(student: PublicStudent, folder: Path, scheduler: list[str]) -> dict[str, Any]:
    """Write a pipeline folder but for its scheduler.

    Args:
        student: The student.
        folder: Where to.
        scheduler: Library or module, and class, of the scheduler.

    Returns:
        What the manifest says of it.
    """
    index = base_index(student)
    shared = [] if student.base is None else _components(index)
    for name in shared:
        assert student.base is not None
        link_folder(student.base.parent / name, folder / name)
    for part, one in ((TRANSFORMER, student), (SECOND, student.low)):
        if one is not None:
            _save_network(one, folder / part)
            index[part] = ["diffusers", type(one.transformer).__name__]
    index[SCHEDULER] = scheduler
    (folder / INDEX).write_text(json.dumps(index, indent=1) + "\n", "utf-8")
    return {"absent": [name for name in SHARED if name not in shared]}


def _save_network(student: PublicStudent, folder: Path) -> None:
    """The component folder of a network, in the precision of the export."""
    network = student.transformer
    own = {name: p.data for name, p in network.named_parameters()}
    for name, p in network.named_parameters():
        p.data = student.stored(name, p.data)
    network.save_pretrained(folder)
    for name, p in network.named_parameters():
        p.data = own[name]


def _components(index: dict[str, Any]) -> list[str]:
    """The parts of a pipeline that its student shares."""
    parts = [k for k, v in index.items() if isinstance(v, list) and v[0] is not None]
    return [name for name in parts if name not in (TRANSFORMER, SECOND, SCHEDULER)]


def link_folder(source: Path, target: Path) -> None:
    """Put the files of a folder, but for pickles, into another one, by links where it can be."""
    shutil.copytree(
        source, target, copy_function=_link, ignore=shutil.ignore_patterns(*PICKLED, ".*")
    )


def _link(source: str, target: str) -> None:
    try:
        os.link(os.path.realpath(source), target)
    except OSError:  # another file system, or one without links
        shutil.copy2(source, target)


def load_pipeline(folder: Path, manifest: dict[str, Any], remote_code: bool) -> Any:
    """The pipeline of diffusers in float32. Raises VidcmError if diffusers cannot load it."""
    options = dict.fromkeys(manifest["absent"]) | {"trust_remote_code": remote_code}
    pipeline_class = library_class("DiffusionPipeline")
    try:
        pipeline = pipeline_class.from_pretrained(
            folder, torch_dtype=torch.float32, local_files_only=True, **options
        )
    except (OSError, ValueError, RuntimeError, KeyError, ImportError) as error:
        line = " ".join(str(error).split())
        raise VidcmError(f"diffusers cannot load {folder}: {line[:300]}") from None
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def compare_pipeline(
    folder: Path, manifest: dict[str, Any], reference: Reference, remote_code: bool
) -> dict[str, float]:
    """Run a pipeline folder in diffusers; see `ExportTarget.compare`."""
    pipeline, layout = load_pipeline(folder, manifest, remote_code), manifest_layout(manifest)
    noise = reference["noise"]
    shape, cond = noise.shape, Cond(reference["tokens"], reference["mask"])
    call = pipeline_call(pipeline, manifest, shape, cond)
    if FRAMES in reference:
        call |= OF_PIPELINES[type(pipeline).__name__].arguments(reference[FRAMES])
    found: dict[str, float] = {}
    for name, expected in reference.items():
        if name.startswith("clip."):
            steps = int(name.removeprefix("clip."))
            latents = pipeline(
                latents=layout.pack(noise), num_inference_steps=steps, output_type="latent", **call
            ).frames
            label = f"{steps} step{'s' if steps > 1 else ''}"
            found[label] = difference(layout.unpack(latents, shape), expected)
    steps = max(int(n.removeprefix("clip.")) for n in reference if n.startswith("clip."))
    if "video" in reference:
        video = pipeline(
            latents=layout.pack(noise), num_inference_steps=steps, output_type="pt", **call
        ).frames
        found["decoded"] = difference(video.movedim(1, 2) * 2 - 1, reference["video"])
    found["same seed"] = _repeated(pipeline, steps, call)
    return found


def manifest_layout(manifest: dict[str, Any]) -> SampleLayout:
    """Layout of the pipeline's latents. Raises VidcmError if the manifest is damaged."""
    family = manifest.get("family")
    if family not in LAYOUTS:
        raise VidcmError(f"the manifest is damaged: {family!r} is no family")
    return LAYOUTS[family]


def pipeline_call(
    pipeline: Any, manifest: dict[str, Any], shape: Sequence[int], cond: Cond
) -> dict[str, Any]:
    """Arguments of a call of the pipeline for embedded prompts.

    Args:
        pipeline: diffusers' pipeline.
        manifest: Of the export.
        shape: `(b, c, t, h, w)` of the latents.
        cond: Embedded prompts, one for each clip.
    """
    _, _, frames, height, width = shape
    in_time, in_space = _strides(pipeline)
    call = {
        "prompt_embeds": cond.tokens,
        "num_frames": (frames - 1) * in_time + 1,
        "height": height * in_space,
        "width": width * in_space,
        "guidance_scale": manifest["guidance_scale"],
    }
    if manifest["family"] == "ltx":
        call["prompt_attention_mask"] = cond.mask
    return call


def _strides(pipeline: Any) -> tuple[int, int]:
    """Frames and pixels of a latent, as the pipeline counts them."""
    if type(pipeline).__name__ == "LTXPipeline":
        return pipeline.vae_temporal_compression_ratio, pipeline.vae_spatial_compression_ratio
    return pipeline.vae_scale_factor_temporal, pipeline.vae_scale_factor_spatial


def _repeated(pipeline: Any, steps: int, call: dict[str, Any]) -> float:
    """How far two clips of one seed, from a prompt if there is a text tower, are apart."""
    if pipeline.text_encoder is not None:
        kept = {k: v for k, v in call.items() if not k.startswith("prompt_")}
        call = {"prompt": PROMPT, **kept}
    first, second = (
        pipeline(
            num_inference_steps=steps,
            output_type="latent",
            generator=torch.Generator().manual_seed(7),
            **call,
        ).frames
        for _ in range(2)
    )
    return difference(second, first)
