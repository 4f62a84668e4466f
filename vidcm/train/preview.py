"""Previews of a denoiser's run: a sheet of samples, and what is wrong with them."""

import math
import sys
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from vidcm.codecs.base import VideoCodec
from vidcm.config import TrainConfig
from vidcm.data.batch import Batch, Dataset
from vidcm.diffusion import samplers
from vidcm.diffusion.control import Control, joined
from vidcm.diffusion.denoiser import Denoiser
from vidcm.diffusion.guidance import CFGDenoiser
from vidcm.diffusion.times import SHIFT, shifted_timesteps, student_timesteps, to_path_time
from vidcm.limits import BATCH_PIXELS
from vidcm.media.contact_sheet import contact_sheet
from vidcm.media.pixels import to_frames
from vidcm.metrics.motion import motion, motion_ratio
from vidcm.objectives.base import Objective
from vidcm.objectives.common import StudentObjective
from vidcm.registry import TABLE, lookup
from vidcm.rng import SampleRng
from vidcm.store import read_card
from vidcm.train.health import DRIFT, RATIO, check_finite, diagnose
from vidcm.train.setup import Models

TEACHER_STEPS, STUDENT_STEPS, GUIDANCE = 25, (4, 2, 1), 3.0


class Preview:
    """Samples some prompts from the same noise every time: the teacher, then the student.

    Where a run goes on with a student (`init`), its clips are drawn too, and how far those of the
    trained weights are from them is logged as drift, the mean difference in grey levels.

    Args:
        config: Of the run; its `preview_prompts`, or the first captions of the data.
        objective: How its students are sampled; those that are not are teachers.
        teacher: Of the student, if any.
        codec: Decodes the latents.
        data: Latents; the first sample has the shape of the clips.
        device: Of the networks.
        models: Builds the network that is sampled.
    """

    def __init__(
        self,
        config: TrainConfig,
        objective: Objective,
        teacher: Denoiser | None,
        codec: VideoCodec,
        data: Dataset,
        device: torch.device,
        models: Models,
    ):
        self.config, self.objective, self.teacher = config, objective, teacher
        self.codec, self.device, self.models = codec, device, models
        first = data.batch(config.seed, [0]).latents
        assert first is not None
        self.shape = first.shape[1:]
        low, high = objective.guidance_range or (GUIDANCE, GUIDANCE)
        self.guidance = min(max(GUIDANCE, low), high)  # a student knows no other scales
        # One by one: neighbours may be of several shapes.
        samples = [data.batch(config.seed, [i]) for i in range(6)]
        self.control = joined([s.control for s in samples if _shape(s) == self.shape])
        if self.control is not None:
            samples = [s for s in samples if _shape(s) == self.shape]
        self.prompts = config.preview_prompts or [s.captions[0] for s in samples]

    def __call__(self, weights: dict[str, Tensor], path: Path) -> dict[str, float]:
        """Draw a sheet at `path`; returns numbers for the log.

        Raises:
            VidcmError: Samples are not finite.
        """
        model: Denoiser = self.models.build(self.config.model)
        model = model.to(self.device).eval().requires_grad_(False)
        model.load_state_dict(weights)
        half = self.config.precision == "bf16"
        with torch.autocast(self.device.type, torch.bfloat16, enabled=half):
            return self._draw(model, path)

    def _draw(self, model: Denoiser, path: Path) -> dict[str, float]:
        frames: dict[str, Tensor] = {}
        numbers: dict[str, float] = {}
        reference = None
        if self.objective.sampling is None:
            reference = self._sample_teacher(model)
        elif self.teacher is not None:
            reference = self._teacher_frames
        if reference is not None:
            frames[f"teacher, {TEACHER_STEPS} steps"] = reference
            numbers["preview/motion"] = float(motion(reference).mean())
        for steps, clips in self._sample_student(model):
            frames[_student_label(steps)] = clips
            if reference is not None:
                ratio = motion_ratio(motion(clips), motion(reference)).overall
                numbers[f"{RATIO}{steps}"] = ratio
            if (before := self._clips_before.get(steps)) is not None:
                difference = (clips.float() - before.float()).abs().mean()
                numbers[f"{DRIFT}{steps}"] = float(difference)
                frames[f"before, {_student_label(steps)}"] = before
        stride = self.codec.time_stride
        rows = [list(clips[:, ::stride].cpu().numpy()) for clips in frames.values()]
        contact_sheet(rows, list(frames), path, scale=1, overwrite=True)
        numbers["preview/healthy"] = int(not _warn(path.name, frames, reference))
        return numbers

    def _parts(self) -> Iterator[tuple[list[str], Control | None, Tensor, SampleRng]]:
        """Prompts, control, noise and draws of as many clips as memory should hold at a time.

        The control is that of the first clips of the data, in turn.
        """
        pixels = math.prod(self.shape[1:]) * self.codec.time_stride * self.codec.stride**2
        size = max(BATCH_PIXELS // pixels, 1)
        for first in range(0, len(self.prompts), size):
            prompts = self.prompts[first : first + size]
            places = range(first, first + len(prompts))
            rng, control = SampleRng(self.config.seed, places, self.device), self.control
            if control is not None:
                count = len(next(iter(control.tensors().values())))
                control = control.rows(torch.tensor([i % count for i in places]))
                control = control.map(lambda x: x.to(self.device))
            yield prompts, control, rng.normal(*self.shape), rng

    @cached_property
    def _teacher_frames(self) -> Tensor:
        """The frozen teacher's clips, the same in every preview."""
        assert self.teacher is not None
        return self._sample_teacher(self.teacher)

    @cached_property
    def _clips_before(self) -> dict[int, Tensor]:
        """The clips by number of steps of the student that the run goes on with, if it does."""
        folder = self.config.init
        if folder is None or self.objective.sampling is None:
            return {}
        card = read_card(folder)
        trained_by = card["metadata"].get("config", {}).get("objective", {}).get("name")
        known = trained_by in TABLE["objective"]
        kind = lookup("objective", trained_by) if known else Objective
        if not issubclass(kind, StudentObjective):
            return {}
        before: Denoiser = self.models.load(folder, Denoiser, self.device)
        return dict(self._sample_student(before))

    def _sample_teacher(self, teacher: Denoiser) -> Tensor:
        grid = shifted_timesteps(TEACHER_STEPS, by=teacher.shift or SHIFT)
        times = to_path_time(teacher.path, grid)
        clips = []
        for prompts, control, noise, _ in self._parts():
            guided = CFGDenoiser(teacher, self.guidance, teacher.encode([""] * len(prompts)))
            start = noise * teacher.path.sigma(times[0]).float()
            cond = teacher.encode(prompts).with_control(control)
            x = samplers.euler(guided, start, times, cond)
            clips.append(self._decode(x, f"teacher, {TEACHER_STEPS} steps"))
        return torch.cat(clips)

    def _sample_student(self, student: Denoiser) -> Iterator[tuple[int, Tensor]]:
        """Numbers of steps and the student's clips; none of a teacher."""
        sampling = self.objective.sampling
        if sampling is None:
            return
        parts = []
        for prompts, control, noise, rng in self._parts():
            scale = torch.full((len(prompts),), self.guidance, device=self.device)
            cond = student.encode(prompts, scale if self.teacher else None)
            parts.append((cond.with_control(control), noise, rng))
        for steps in [sampling["phases"]] if "phases" in sampling else STUDENT_STEPS:
            timesteps = sampling.get("timesteps") or student_timesteps(
                steps, sampling.get("lowest_sigma"), student.shift, student.first_time
            )
            times = to_path_time(student.path, timesteps).tolist()
            clips = []
            for cond, noise, rng in parts:
                start = noise * student.path.sigma(torch.tensor(times[0])).float()
                x = samplers.SAMPLERS[sampling["sampler"]](student, start, times, cond, rng)
                clips.append(self._decode(x, _student_label(steps)))
            yield steps, torch.cat(clips)

    def _decode(self, latents: Tensor, label: str) -> Tensor:
        check_finite(latents, label)
        return to_frames(self.codec.decode(latents))


def _shape(sample: Batch) -> torch.Size | None:
    return None if sample.latents is None else sample.latents.shape[1:]


def _student_label(steps: int) -> str:
    return f"student, {steps} step{'s' * (steps != 1)}"


def _warn(name: str, frames: dict[str, Tensor], reference: Tensor | None) -> bool:
    """Print what is wrong with samples; returns whether anything is."""
    sick = [
        f"{label}: {sentence}"
        for label, clips in frames.items()
        for sentence in diagnose(clips, None if clips is reference else reference)
    ]
    for sentence in sick:
        tqdm.write(f"warning: {name}: {sentence}", file=sys.stderr)
    return bool(sick)
