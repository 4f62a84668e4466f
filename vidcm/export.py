"""A pipeline folder out of model folders: what `generate` and `VideoPipeline` load."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vidcm.codecs.base import VideoCodec
from vidcm.conditioning.prompts import words_of
from vidcm.data.latents import INDEX, stored_captions
from vidcm.diffusion.denoiser import Denoiser
from vidcm.errors import UsageError
from vidcm.families.denoiser import scheduler_config
from vidcm.families.schedule import resolution_shift
from vidcm.files import replacing
from vidcm.pipeline import VideoPipeline
from vidcm.registry import lookup
from vidcm.settings import PipelineSettings
from vidcm.store import read_card, read_weights, save_model
from vidcm.train.health import LEAST_MOTION, logged_motion

KINDS: dict[str, Any] = {"codec": VideoCodec}  # all others are denoisers
ROLES = ("codec", "teacher", "student")
EXPERTS = ("teacher_2", "student_2")  # the networks below a boundary of noise, where there is one
MOST_WORDS = 20_000


def student_facts(student: str | Path | None) -> dict[str, Any]:
    """Return the settings of a student that its training determined, from its model folder.

    A public student without times of its own has those of its pipeline's scheduler.
    """
    card: dict[str, Any] = {"spec": {}, "metadata": {}} if student is None else read_card(student)
    facts, base = card["metadata"].get("student", {}), card["spec"].get("base")
    if base and not facts.keys() & {"timesteps", "lowest_sigma", "shift"}:
        facts = {**facts, "shift": resolution_shift(scheduler_config(base))}
    low, high = facts.get("guidance_range", (1.0, 5.0))
    return {"sampler": "consistency", **facts, "guidance_range": (low, high)}


def known_words(student: str | Path) -> str:
    """The words of the captions that a model was trained on, sorted, as one text.

    They are in the latent cache that its card names; "" where that is gone, or for more than
    `MOST_WORDS` words.
    """
    data = read_card(student)["metadata"].get("config", {}).get("data", {})
    if (
        data.get("name") not in ("latents", "lpc_latents")
        or not Path(data["path"], INDEX).is_file()
    ):
        return ""
    words = sorted({w for text in stored_captions(data["path"]) for w in words_of(text)})
    return " ".join(w for w in words if w[0].isalnum()) if len(words) <= MOST_WORDS else ""


def export(
    models: Mapping[str, str | Path],
    output: Path,
    settings: PipelineSettings,
    *,
    storage: str = "fp16",
    overwrite: bool = False,
) -> None:
    """Write model folders and settings as a pipeline folder, once they have generated a clip.

    Args:
        models: The model folder of each of `ROLES`, and of `EXPERTS` if there are two networks.
        output: The pipeline folder.
        settings: Of the pipeline.
        storage: Precision of the weights: "fp16", or "int8" for teacher and student.
        overwrite: Replace the models of an existing folder; its other files stay.

    Raises:
        UsageError: Parts do not fit together.
    """
    if (output / "pipeline.json").exists() and not overwrite:
        raise UsageError(f"{output} holds a pipeline; give another --output, or --overwrite")
    cards = {role: read_card(folder) for role, folder in models.items()}
    for role, card in cards.items():
        student = role.startswith("student")
        kind: Any = lookup("model", card["spec"].get("name"))
        if not issubclass(kind, KINDS.get(role, Denoiser)):
            raise UsageError(f"{models[role]} is not a {role}: it holds a {kind.__name__}")
        if role != "codec" and kind.spec_is_student(card["spec"]) != student:
            raise UsageError(
                f"{models[role]} is not a {role.removesuffix('_2')}: a student takes a guidance "
                "scale as an input (backbone.guidance_embed) or has one built in (guidance_scale), "
                "a teacher has none"
            )
    with replacing(output) as draft:
        if output.exists():
            old = shutil.ignore_patterns("pipeline.json", *ROLES, *EXPERTS)
            shutil.copytree(output, draft, ignore=old)
        for role, card in cards.items():
            if "sha256" not in card:  # of diffusers: named, not copied
                settings.folders[role] = str(Path(models[role]).resolve())
                continue
            eight = storage == "int8" and role != "codec"
            dtype = torch.int8 if eight else torch.float16
            weights = read_weights(models[role])
            save_model(draft / role, card["spec"], weights, metadata=card["metadata"], dtype=dtype)
        settings.save(draft)
        pipe = VideoPipeline.from_pretrained(draft, device="cpu")
        for role in ("teacher", "student"):
            if pipe.model(role).channels != pipe.codec.channels:
                raise UsageError(
                    f"{models[role]} makes latents of {pipe.model(role).channels} channels, "
                    f"{models['codec']} reads {pipe.codec.channels}; give the codec it was trained "
                    "with"
                )
        source = pipe.model("student").control
        given = source is not None and source.required
        image = np.full((settings.height, settings.width, 3), 127, np.uint8) if given else None
        pipe("a test", image=image, num_inference_steps=settings.student.phases or 1)
        pipe("a test", image=image, num_inference_steps=1, use_teacher=True)


def refuse_still(student: str | Path) -> None:
    """Raises UsageError when the run that a student's folder lies in logged too little motion."""
    log = Path(student).resolve().parent / "metrics.jsonl"
    ratios = logged_motion(log, read_card(student)["metadata"].get("step"))
    if ratios and (worst := min(ratios.items(), key=lambda item: item[1]))[1] < LEAST_MOTION:
        raise UsageError(
            f"{student} moves {worst[1]:.4g} times as much as its teacher ({worst[0]} in {log}), "
            f"below {LEAST_MOTION}; train on, or export it all the same with --allow-still"
        )
