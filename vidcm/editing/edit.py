"""Editing: tasks and input clips to a scene, a scene to clips."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vidcm.arguments import seeds
from vidcm.codecs.base import VideoCodec
from vidcm.codecs.chunked import encode_chunked
from vidcm.conditioning.prompts import check_prompts
from vidcm.diffusion.projection import Chain, Project
from vidcm.diffusion.samplers import OnStep, keep
from vidcm.editing.between import interpolate
from vidcm.editing.joins import drawn_to_start
from vidcm.editing.observations import Observations, decoded, network_input
from vidcm.editing.scene import OutputSpec, Scene, Task, check, compose
from vidcm.editing.tasks import Interpolate
from vidcm.errors import UsageError
from vidcm.generation import Generation
from vidcm.media.clips import Clips, Clock
from vidcm.media.pixels import to_frames, to_video
from vidcm.registry import build
from vidcm.rng import SampleRng

TaskSpec = str | Mapping[str, Any]  # a name, or a name with options

MAX_PIXELS = 2**25  # of all frames of an edit, 200 bytes each; more if the model alone makes more


def build_tasks(specs: TaskSpec | Sequence[TaskSpec]) -> dict[str, Task]:
    """Tasks by name.

    Args:
        specs: Names or specs (`{"name": "upscale", "factor": 4}`), one or several.

    Raises:
        UsageError: An unknown name or option, or a task named twice.
    """
    several = [specs] if isinstance(specs, str | Mapping) else specs
    if not isinstance(several, Sequence):
        raise UsageError(f"task is {specs!r}; expected a name, a spec, or a list of them")
    tasks: dict[str, Task] = {}
    for one in several:
        spec = {"name": one} if isinstance(one, str) else one
        task = build("task", spec)
        if spec["name"] in tasks:
            raise UsageError(f"the task {spec['name']} is asked for twice; name it once")
        tasks[spec["name"]] = task
    if not tasks:
        raise UsageError("there is no task; name at least one")
    return tasks


def output_spec(
    generation: Generation, height: int | None = None, width: int | None = None
) -> OutputSpec:
    """The clip that a model generates, of its own size or another.

    Raises:
        UsageError: The strides of codec and network do not divide the size.
    """
    stride, windowed = generation.codec.time_stride, generation.denoiser
    generation.latent_shape(None, height, width)
    frames, *own = generation.settings.size
    size = height or own[0], width or own[1]
    most = max(MAX_PIXELS, frames * math.prod(own)) // math.prod(size)

    def padded(frames: int) -> int:
        latents = math.ceil((frames - 1) / stride) + 1
        return (windowed.padded_frames(latents) - 1) * stride + 1

    return OutputSpec(frames, *size, stride, padded, most)


def edit(
    generation: Generation,
    task: TaskSpec | Sequence[TaskSpec],
    clips: Sequence[np.ndarray],
    prompts: list[str],
    seed: int | Sequence[int] | None,
    *,
    num_frames: int | None = None,
    height: int | None = None,
    width: int | None = None,
    zero_shot: bool = False,
    on_step: OnStep = keep,
) -> Clips:
    """See `VideoPipeline.edit`."""
    source, phases = generation.model.control, generation.settings.student.phases
    if source is not None and source.required:
        raise UsageError(
            f"an edit is of prompts and clips alone, and this model needs {source.reads} beside "
            "them; use a model of text alone"
        )
    if generation.role == "student" and phases:
        raise UsageError(
            f"this student was trained in {phases} phases and never predicts the clean clip, which "
            "editing needs; use a student of another objective, or the teacher"
        )
    tasks = build_tasks(task)
    check_prompts(["any" if p == "" else p for p in prompts])
    if any(isinstance(one, Interpolate) for one in tasks.values()):
        if others := [name for name, one in tasks.items() if not isinstance(one, Interpolate)]:
            raise UsageError(
                f"interpolate stands alone, without {', '.join(others)}; do one, then the other "
                "with its result"
            )
        if (num_frames, height, width) != (None, None, None):
            raise UsageError(
                "interpolate makes clips of the model's own frames and size; leave frames, "
                "height and width out"
            )
        check(tasks, len(clips))
        (one,) = tasks.values()
        assert isinstance(one, Interpolate)
        return interpolate(generation, one, clips, prompts, seed, on_step)
    drawn = seeds(seed, len(prompts), "prompts")
    spec = output_spec(generation, height, width)
    spec, scene = compose(tasks, clips, spec, num_frames)
    return render(generation, spec, scene, prompts, drawn, zero_shot, on_step)


@torch.no_grad()
def render(
    generation: Generation,
    spec: OutputSpec,
    scene: Scene,
    prompts: list[str],
    seeds: list[int],
    zero_shot: bool = False,
    on_step: OnStep = keep,
) -> Clips:
    """Clips of a scene, one for each prompt and seed."""
    if scene.known.any() or scene.strength is not None or scene.noise is not None:
        generation = generation.with_low_guidance()
    codec, device = generation.codec, generation.device
    clock = Clock(device)
    cond = generation.encode(prompts)
    clock("text")
    observations, windowed = Observations(scene, codec, device), generation.denoiser
    shape = codec.latent_shape(spec.frames, spec.height, spec.width)
    rng = windowed.repeated_noise(SampleRng.of_seeds(seeds, device))
    noise, start = rng.normal(*shape), 1.0
    init = observations.init_latents() if observations.operators else torch.zeros(1, *shape)
    if scene.strength is not None:
        init, start = encode_chunked(codec, _input_video(scene).to(device)), scene.strength
    elif scene.noise is not None:
        video = _input_video(scene).to(device)
        ratio = _latent_noise(codec, video, scene.noise)
        init, start, noise = encode_chunked(codec, video), ratio / (1 + ratio), None
    kinds = frozenset[str]() if zero_shot else generation.model.given_frames
    given = network_input(scene, kinds, codec, device)
    project: Project = observations.project
    if given is not None:
        project = given if given.complete else Chain(given, project)
    clock("encode")
    x = generation.sample(
        cond,
        noise,
        rng,
        init_latents=init.to(device, torch.float32).expand(len(prompts), *shape),
        start=start,
        project=project,
        given=given,
        on_step=on_step,
    )
    clock("denoise")
    made = observations.finish(decoded(codec, x)).cpu().numpy()
    clock("decode")
    frames = _with_surroundings(scene, made)
    if scene.blend_ends:
        frames = to_frames(drawn_to_start(to_video(torch.from_numpy(frames)))).numpy()
    evaluations, fps = generation.evaluations(shape[1:]), generation.settings.fps
    return Clips(frames, prompts, seeds, fps, evaluations, clock.seconds)


def _input_video(scene: Scene) -> Tensor:
    """The input frames as a video `(1 3 t h w)`, enlarged where they are small."""
    frames = scene.frames.repeat(scene.size, 1).repeat(scene.size, 2)
    return to_video(torch.from_numpy(frames)[None])


def _latent_noise(codec: VideoCodec, video: Tensor, noise: float) -> float:
    """Sigma / alpha of the latents of pixels with noise in grey levels, measured by adding more."""
    more = SampleRng(0, [0], video.device).normal(*video.shape[1:]) * (noise / 127.5)
    off = encode_chunked(codec, video + more) - encode_chunked(codec, video)
    return float(off.square().mean().sqrt())


def _with_surroundings(scene: Scene, made: np.ndarray) -> np.ndarray:
    """Generated frames, cut, between the input frames that the model did not get."""
    around = [
        np.zeros((0, *made.shape[2:]), np.uint8) if frames is None else frames
        for frames in (scene.before, scene.after)
    ]
    before, after = (np.broadcast_to(frames, (len(made), *frames.shape)) for frames in around)
    return np.concatenate([before, made[:, : scene.length], after], 1)
