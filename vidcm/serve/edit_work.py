"""Edits of uploaded clips, or of earlier results, by the tasks of `vidcm edit`."""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from vidcm.conditioning.prompts import check_prompts
from vidcm.editing.edit import output_spec
from vidcm.editing.inputs import read_inputs, stand_in_tasks
from vidcm.editing.scene import OutputSpec, Task, check
from vidcm.errors import UsageError
from vidcm.generation import Generation
from vidcm.inputs import warnings_about
from vidcm.media.load import SourceClip
from vidcm.media.masks import drawn_mask, mask_of_file
from vidcm.registry import TABLE, check_name, options_of
from vidcm.serve.checkpoints import Checkpoint, draw_seed
from vidcm.serve.generation_work import num_frames, on_step
from vidcm.serve.jobs import Progress, Result, Work
from vidcm.serve.requests import EditRequest, VideoRequest
from vidcm.serve.uploads import Upload, Workspace

OPTIONS = {"mask", "place", "factor", "given", "at", "strength", "noise", "count"}
# What a clip with a first frame may be asked for beside it.
WITH_PICTURE = {"prompt", "model", "size", "num_frames", "seconds", "seed", "scale"}
WITH_PICTURE |= {"guidance_scale", "num_inference_steps", "use_teacher"}


@dataclass(frozen=True, eq=False)
class EditWork:
    """An edit. See `jobs.Work`.

    Attributes:
        request: What was asked.
        checkpoint: The model.
        generation: How it samples.
        specs: The tasks, by name.
        tasks: The same as objects, for checks.
        spec: What the model generates by itself.
        videos: Files to edit.
        mask: File of a mask.
        seeds: Of the noise.
        workspace: Where the files lie, and what reads them.
        warnings: See `jobs.Work`.
    """

    request: EditRequest
    checkpoint: Checkpoint
    generation: Generation
    specs: dict[str, dict[str, Any]]
    tasks: dict[str, Task]
    spec: OutputSpec
    videos: Sequence[Upload]
    mask: Upload | None
    seeds: Sequence[int]
    workspace: Workspace
    warnings: Sequence[str]

    @classmethod
    def of(
        cls,
        request: EditRequest,
        checkpoint: Checkpoint,
        workspace: Workspace,
        videos: Sequence[Upload] = (),
        mask: Upload | None = None,
    ) -> "EditWork":
        """Check a request. Raises UsageError."""
        specs = task_specs(request, mask is not None)
        tasks = stand_in_tasks(specs)
        check(tasks, len(videos))
        prompts = request.prompts
        check_prompts([prompt or "any" for prompt in prompts])  # an empty one leaves all open
        seeds = [draw_seed()] if request.seed is None else request.seed
        seeds = [seeds] if isinstance(seeds, int) else list(seeds)
        for name, values in (("prompts", prompts), ("seeds", seeds)):
            if len(values) > 1 and "interpolate" not in specs:
                raise UsageError(f"got {len(values)} {name}; only interpolate takes two")
        if request.start and not videos:
            raise UsageError("start is about an input, and there is none; leave it out")
        generation = checkpoint.generation(request)
        height, width = request.height_width
        spec = output_spec(generation, height, width)
        frames = request.num_frames or min(spec.frames, checkpoint.limits.max_frames)
        checkpoint.check_shape(generation, 1, spec.height, spec.width, request.scale)
        if frames > checkpoint.limits.max_frames:
            most = checkpoint.limits.max_frames
            raise UsageError(f"num_frames is {frames}; this server makes at most {most}")
        spec = replace(spec, max_frames=min(spec.max_frames, checkpoint.limits.max_frames))
        return cls(
            request,
            checkpoint,
            generation,
            specs,
            tasks,
            spec,
            videos,
            mask,
            seeds,
            workspace,
            warnings_about(generation, prompts),
        )

    @property
    def kind(self) -> Literal["edit"]:
        return "edit"

    @property
    def model(self) -> str:
        return self.checkpoint.name

    @property
    def scale(self) -> int:
        return self.request.scale

    @property
    def batch_key(self) -> Hashable:
        """Edits are made one by one."""
        return id(self)

    @property
    def max_batch(self) -> int:
        return 1

    @property
    def facts(self) -> Mapping[str, Any]:
        return {
            "task": ",".join(self.specs),
            "remixed_from_video_id": self.request.video.id if self.request.video else None,
            "prompt": " > ".join(self.request.prompts),
            "size": f"{self.spec.width}x{self.spec.height}",
            "num_frames": None,
            "fps": self.generation.settings.fps,
            "num_inference_steps": self.generation.num_inference_steps,
            "guidance_scale": self.generation.guidance_scale,
        }

    def run(self, batch: Sequence[Work], progress: Progress) -> list[Result]:
        progress("read")
        request, pipe = self.request, self.checkpoint.pipe
        inputs = read_inputs(
            self.specs,
            self.tasks,
            self.spec,
            pipe.settings.fps,
            [video.path for video in self.videos],
            self.workspace.reader,
            self._read_mask,
            frames=request.num_frames,
            start=request.start,
        )
        progress("denoise")
        height, width = request.height_width
        clips = pipe.edit(
            list(inputs.specs.values()),
            inputs.clips,
            request.prompts,
            num_inference_steps=request.num_inference_steps,
            guidance_scale=request.guidance_scale,
            seed=self.seeds if "interpolate" in self.specs else self.seeds[0],
            num_frames=request.num_frames,
            height=height,
            width=width,
            use_teacher=request.use_teacher,
            callback_on_step_end=on_step(progress, self.generation.num_inference_steps),
        )
        notes = [self.public(note) for note in inputs.notes]
        return [Result(clips.frames, inputs.fps, [], notes, clips.evaluations, clips.seconds, 1)]

    def _read_mask(self, film: SourceClip, fps: float) -> np.ndarray:
        if self.mask is None:
            assert self.request.mask is not None
            return drawn_mask(self.request.mask, film, fps)
        load, start = self.workspace.reader.load_clip, self.request.start
        return mask_of_file(self.mask.path, film, fps, start, load)

    def close(self) -> None:
        for upload in self._uploads:
            upload.close()

    def public(self, message: str) -> str:
        for upload in self._uploads:
            message = message.replace(str(upload.path), upload.label)
        return message

    @property
    def _uploads(self) -> list[Upload]:
        return [*self.videos, *([self.mask] if self.mask else [])]


def task_specs(request: EditRequest, mask_file: bool = False) -> dict[str, dict[str, Any]]:
    """The tasks of a request with their options.

    Args:
        request: What was asked.
        mask_file: Whether a mask was uploaded.

    Raises:
        UsageError: An unknown task, one named twice, or an option that none of them takes.
    """
    names = [name.strip() for name in request.task.split(",")]
    given = request.model_dump(include=OPTIONS, exclude_none=True)
    if mask_file and "mask" in given:
        raise UsageError("mask is there as text and as a file; give one of them")
    if mask_file:
        given["mask"] = ""
    if "place" in given:
        given["place"] = tuple(map(int, given["place"].split(",")))
    for name in names:
        check_name("task", {"name": name})
        if names.count(name) > 1:
            raise UsageError(f"the task {name} stands twice; name it once")
    taken = {name: options_of("task", name) for name in TABLE["task"]}
    for option in given:
        if not any(option in taken[name] for name in names):
            takers = ", ".join(name for name, options in taken.items() if option in options)
            raise UsageError(f"{option} is for {takers}, not for {', '.join(names)}")
    return {
        name: {"name": name} | {o: v for o, v in given.items() if o in taken[name]}
        for name in names
    }


def from_picture(request: VideoRequest, picture: Upload, checkpoint: Checkpoint) -> EditRequest:
    """The edit that a request of a clip with a first frame is.

    Raises:
        UsageError: The file is no picture, or the request has a field that edits do not.
    """
    if not picture.is_picture:
        raise UsageError(
            f"{picture.label} is no picture; POST /v1/videos/edits extends and edits videos"
        )
    if other := sorted(request.model_fields_set - WITH_PICTURE):
        raise UsageError(f"{', '.join(other)} cannot be combined with {picture.label}")
    generation = checkpoint.generation(request)
    fields = request.model_dump(include=WITH_PICTURE - {"seconds", "num_frames"})
    frames = num_frames(request, generation, generation.settings.fps)
    return EditRequest(task="animate", num_frames=frames, **fields)
