"""Training a denoiser, teacher or student: the parts around it, and checks that they fit."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from vidcm.codecs.base import VideoCodec
from vidcm.config import TrainConfig
from vidcm.data.batch import Dataset
from vidcm.data.clip_control import ClipControl
from vidcm.data.encoded import Encoded
from vidcm.data.latents import LatentShards
from vidcm.diffusion.denoiser import Denoiser
from vidcm.errors import UsageError
from vidcm.families.cached_text import CachedText
from vidcm.families.text import PipelineText
from vidcm.objectives.base import Objective
from vidcm.registry import build, lookup, options_of
from vidcm.store import read_card, weights_hash
from vidcm.train.loop import Task, Weights
from vidcm.train.preview import Preview
from vidcm.train.sequence import check_sequence, parallelize, sequence_group
from vidcm.train.setup import Models, apply_memory_options


def denoiser_task(
    config: TrainConfig, model: Denoiser, data: Dataset, device: torch.device
) -> Task:
    """Build teacher, objective and codec around a denoiser.

    Args:
        config: Of the run.
        model: The denoiser, on `device`.
        data: Latents, or frames that the codec encodes.
        device: Of all networks.

    Raises:
        UsageError: Teacher and student do not fit together, the data are another codec's, or the
            objective contradicts the config.
    """
    models = Models(_cached_text(config, model, data))
    models.with_text(model)
    parts = denoiser_parts(config, model, device, models)
    objective, teacher, codec = parts.objective, parts.teacher, parts.codec
    assert config.codec is not None
    if isinstance(data, LatentShards):
        data.check_codec(weights_hash(config.codec))
        data.check_control(model.control)
    else:
        source, control = model.control, None
        if source is not None and source.required:
            control = ClipControl(source, codec, device)
        data = Encoded(data, codec, device, control)
    preview = Preview(config, objective, teacher, codec, data, device, models)
    if (group := sequence_group(config, device)) is None:
        return Task(model, objective, data, preview)
    for network in filter(None, (model, teacher)):
        parallelize(network, group)

    def alone(weights: Weights, path: Path) -> dict[str, float]:
        with group.alone():  # rank 0 draws it
            return preview(weights, path)

    return Task(model, objective, data, alone)


def _cached_text(config: TrainConfig, model: Denoiser, data: Dataset) -> CachedText | None:
    """What takes the place of the model's frozen text tower, if its tokens lie beside latents."""
    tower = model.conditioner
    if not isinstance(tower, PipelineText) or not isinstance(data, LatentShards):
        return None
    text = data.cached_tower(tower)
    if text is not None:
        text.check(config.preview_prompts)
    return text


@dataclass
class DenoiserParts:
    """What a denoiser is trained with."""

    objective: Objective
    teacher: Denoiser | None
    codec: VideoCodec


def denoiser_parts(
    config: TrainConfig, model: Denoiser, device: torch.device, models: Models
) -> DenoiserParts:
    """Build objective, teacher and codec. Raises as `denoiser_task`, but for the data.

    Args:
        config: Of the run.
        model: The denoiser.
        device: Of all networks.
        models: Builds them.
    """
    teacher = _teacher(config, model, device, models)
    make_fake = partial(_fake, config, config.teacher, device, models) if config.teacher else None
    objective: Objective = build(
        "objective", config.objective, teacher=teacher, make_fake=make_fake
    )
    objective.check(config)
    check_sequence(config, objective)
    check_guidance(model, objective)
    if config.codec is None:
        raise UsageError("a denoiser needs a codec: set codec to the `final` folder of a codec run")
    codec: VideoCodec = models.load(config.codec, VideoCodec, device)
    if codec.channels != model.channels:
        raise UsageError(f"model.channels is {model.channels}, but the codec has {codec.channels}")
    return DenoiserParts(objective, teacher, codec)


def check_guidance(model: Denoiser, objective: Objective) -> None:
    """Raises UsageError where an objective trains scales that a student does not take."""
    if objective.guidance_range is None or model.guidance_scales is None:
        return
    (low, high), (least, most) = objective.guidance_range, model.guidance_scales
    if low < least or high > most:
        raise UsageError(
            f"objective.guidance_range is {low:g} to {high:g}, and the student has the scale "
            f"{least:g} built in (model.guidance_scale); set both to the same number"
        )


def _fake(config: TrainConfig, folder: str, device: torch.device, models: Models) -> Denoiser:
    """A trainable copy of the teacher that takes guidance scales: the fake score."""
    spec = read_card(folder)["spec"]
    kind: type[Denoiser] = lookup("model", spec["name"])
    fake: Denoiser = models.build(kind.student_spec(spec))
    models.start(fake, folder)
    apply_memory_options(fake.to(device), config)
    return fake


def _teacher(
    config: TrainConfig, student: Denoiser, device: torch.device, models: Models
) -> Denoiser | None:
    """The frozen teacher of a config. Raises UsageError where the student does not fit."""
    if config.teacher is None:
        return None
    spec = read_card(config.teacher)["spec"]
    teacher: Denoiser = models.load(config.teacher, Denoiser, device)
    if teacher.channels != student.channels:
        raise UsageError(
            f"the teacher's latents have {teacher.channels} channels, the student's "
            f"{student.channels}; use the teacher's codec and channels"
        )
    if teacher.guidance_scales is not None:
        raise UsageError(
            f"teacher {config.teacher} is a student: it takes a guidance scale as an input or has "
            "one built in; set teacher to the model that it was distilled from"
        )
    if student.guidance_scales is None:
        raise UsageError(
            "a student of a teacher takes guidance scales: set model.backbone.guidance_embed to "
            "true, or for a public model model.guidance_scale to the scale to build in (the "
            "weights of an init without stay good)"
        )
    if _control_facts(teacher) != _control_facts(student):
        raise UsageError(
            "teacher and student read different things beside text; give both networks of one "
            "architecture"
        )
    before = _text_tower(spec)
    for option, value in _text_tower(config.model).items():
        if before.get(option) != value:
            raise UsageError(
                f"the teacher's text tower has {option}={before.get(option)}, the student's "
                f"{value}; set model.conditioner as in {config.teacher}/model.json"
            )
    if type(teacher.path) is not type(student.path):
        raise UsageError(
            f"the teacher is on the path {type(teacher.path).__name__}, the student on "
            f"{type(student.path).__name__}; give both the same path"
        )
    # public weights are published in bf16, so nothing is lost
    return teacher.store_in(torch.bfloat16) if config.precision == "bf16" else teacher


def _control_facts(network: Denoiser) -> dict[str, Any] | None:
    return None if network.control is None else network.control.facts()


def _text_tower(spec: dict) -> dict[str, Any]:
    """The options of a denoiser's text tower, defaults included; of a public one its folder."""
    if "conditioner" not in spec:
        return {"base": str(Path(spec["base"]).resolve().parent)}
    options = options_of("conditioner", spec["conditioner"]["name"])
    return {name: p.default for name, p in options.items()} | spec["conditioner"]
