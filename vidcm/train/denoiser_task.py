"""Training a denoiser, teacher or student: checks that the parts fit, and draws sample sheets."""

import inspect
import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from vidcm.codecs.causal_vae import CausalVAE
from vidcm.config import TrainConfig
from vidcm.data.batch import Dataset
from vidcm.data.encoded import Encoded
from vidcm.data.latents import LatentShards
from vidcm.diffusion import samplers
from vidcm.diffusion.denoiser import Denoiser
from vidcm.diffusion.guidance import CFGDenoiser
from vidcm.diffusion.times import SHIFT, shifted_timesteps, student_timesteps, to_path_time
from vidcm.errors import UsageError
from vidcm.media.contact_sheet import contact_sheet
from vidcm.media.pixels import to_frames
from vidcm.metrics.motion import motion, motion_ratio
from vidcm.objectives.common import guidance_of
from vidcm.objectives.flow_matching import FlowMatching
from vidcm.registry import build, lookup
from vidcm.rng import SampleRng
from vidcm.store import load_model, read_card
from vidcm.train.health import RATIO, check_finite, diagnose
from vidcm.train.loop import Task
from vidcm.train.setup import apply_memory_options, init_from

TEACHER_STEPS, STUDENT_STEPS, GUIDANCE = 25, (4, 2, 1), 3.0


def video_task(config: TrainConfig, model: Denoiser, data: Dataset, device: torch.device) -> Task:
    """Build teacher, objective and codec around a denoiser. Raises UsageError when the teacher's
    latents differ from the student's, or the data are another codec's."""
    teacher = _teacher(config, model, device)
    make_fake = partial(_fake, config, config.teacher, device) if config.teacher else None
    objective = build("objective", config.objective, teacher=teacher, make_fake=make_fake)
    if hasattr(objective, "check"):
        objective.check(config)
    if config.codec is None:
        raise UsageError("a denoiser needs a codec: set codec to the `final` folder of a codec run")
    codec: CausalVAE = load_model(config.codec, CausalVAE, device)
    if codec.channels != model.channels:
        raise UsageError(f"model.channels is {model.channels}, but the codec has {codec.channels}")
    if isinstance(data, LatentShards):
        data.check_codec(read_card(config.codec)["sha256"])
    else:
        data = Encoded(data, codec, device)
    first = data.batch(config.seed, [0]).latents
    assert first is not None
    shape = first.shape[1:]
    low, high = guidance_of(config.objective)
    guidance = min(max(GUIDANCE, low), high)  # a student knows no other scales
    # One by one: neighbours may be of several shapes.
    prompts = config.preview_prompts or [data.batch(config.seed, [i]).captions[0] for i in range(6)]

    def preview(weights: dict[str, Tensor], path: Path) -> dict[str, float]:
        copy = build("model", config.model).to(device).eval().requires_grad_(False)
        copy.load_state_dict(weights)
        rows, labels, sick = [], [], []

        def draw(label: str, latents: Tensor, reference: Tensor | None = None) -> Tensor:
            check_finite(latents, label)
            frames = to_frames(codec.decode(latents))
            rows.append(list(frames[:, :: codec.time_stride].cpu().numpy()))
            labels.append(label)
            sick.extend(f"{label}: {sentence}" for sentence in diagnose(frames, reference))
            return frames

        rng = SampleRng(config.seed, range(len(prompts)), device)
        noise = rng.normal(*shape)
        flow = copy if isinstance(objective, FlowMatching) else teacher
        numbers: dict[str, float] = {}
        reference = None
        if flow is not None:
            guided = CFGDenoiser(flow, guidance, flow.encode([""] * len(prompts)))
            times = to_path_time(flow.path, shifted_timesteps(TEACHER_STEPS, by=SHIFT))
            start = noise * flow.path.sigma(times[0]).float()
            x = samplers.euler(guided, start, times, flow.encode(prompts))
            reference = draw(f"teacher, {TEACHER_STEPS} steps", x)
            numbers["preview/motion"] = float(motion(reference).mean())
        if flow is not copy:
            scale = torch.full((len(prompts),), guidance, device=device)
            cond = copy.encode(prompts, scale if teacher else None)
            own = samplers.student_settings(objective)
            sampler = samplers.SAMPLERS[own["sampler"]]
            for steps in [own["phases"]] if "phases" in own else STUDENT_STEPS:
                times = to_path_time(
                    copy.path, own.get("timesteps") or student_timesteps(steps)
                ).tolist()
                start = noise * copy.path.sigma(torch.tensor(times[0])).float()
                x = sampler(copy, start, times, cond, rng)
                frames = draw(f"student, {steps} steps", x, reference)
                if reference is not None:
                    numbers[f"{RATIO}{steps}"] = motion_ratio(
                        motion(frames), motion(reference)
                    ).overall
        contact_sheet(rows, labels, path, scale=1, overwrite=True)
        for sentence in sick:
            tqdm.write(f"warning: {path.name}: {sentence}", file=sys.stderr)
        numbers["preview/healthy"] = int(not sick)
        return numbers

    return Task(model, objective, data, preview, finish=lambda weights: weights)


def _fake(config: TrainConfig, folder: str, device: torch.device) -> Denoiser:
    """A trainable copy of the teacher that is told guidance scales, for the score of students whose
    samples depend on them. It is part of a run, and never exported."""
    spec = read_card(folder)["spec"]
    fake: Denoiser = build(
        "model", {**spec, "backbone": {**spec["backbone"], "guidance_embed": True}}
    )
    init_from(fake, folder)
    apply_memory_options(fake.to(device), config)
    return fake


def _teacher(config: TrainConfig, student: Denoiser, device: torch.device) -> Denoiser | None:
    if config.teacher is None:
        return None
    teacher: Denoiser = load_model(config.teacher, Denoiser, device)
    if teacher.channels != student.channels:
        raise UsageError(
            f"the teacher's latents have {teacher.channels} channels, the student's "
            f"{student.channels}; use the teacher's codec and channels"
        )
    if getattr(teacher.backbone, "guidance", None) is not None:
        raise UsageError(
            f"teacher {config.teacher} is a student: it takes a guidance scale as an input "
            "(backbone.guidance_embed); set teacher to the model that it was made from"
        )
    if getattr(student.backbone, "guidance", None) is None:
        raise UsageError(
            "a student of a teacher is told guidance scales, and model.backbone.guidance_embed is false; "
            "set it to true (the weights of an init without stay good)"
        )
    before = _text_tower(read_card(config.teacher)["spec"])
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
    return teacher


def _text_tower(spec: dict) -> dict[str, Any]:
    """The options of a denoiser's text tower, those that are not given included."""
    told = spec["conditioner"]
    options = inspect.signature(lookup("conditioner", told["name"])).parameters
    return {name: p.default for name, p in options.items()} | told
