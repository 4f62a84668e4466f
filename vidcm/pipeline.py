"""Prompts to clips: text, denoising, decoding, each timed; then whatever file was asked for."""

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from vidcm.codecs.causal_vae import CausalVAE
from vidcm.codecs.chunked import decode_chunked
from vidcm.conditioning.prompts import check_prompts
from vidcm.diffusion import samplers
from vidcm.diffusion.denoiser import Denoiser
from vidcm.diffusion.guidance import CFGDenoiser, NegativePromptStudent
from vidcm.diffusion.times import shifted_timesteps, student_timesteps, to_path_time
from vidcm.diffusion.windows import Schedule, Windowed, check_then
from vidcm.errors import UsageError, VidcmError
from vidcm.media.clips import Clips, Clock
from vidcm.media.pixels import to_frames
from vidcm.media.sizes import check_size
from vidcm.rng import SampleRngs
from vidcm.runtime import fast_cpu, pick_device
from vidcm.store import load_model

if TYPE_CHECKING:
    from vidcm.editing.edit import Asked

BUNDLED = Path(__file__).parent / "pretrained"
MAX_STEPS = 1000


class VideoPipeline:
    """A student, its teacher, their codec, and the settings they were tuned with.

    A pipeline folder holds model folders `codec`, `student`, `teacher` and `pipeline.json`:
    frames, height, width, fps, steps, guidance and times of the student, steps, guidance and shift
    of the teacher. Of a student also its `sampler` if that is not "consistency", and `phases` if it
    has any. `trained`, if there: (frames, height, width) of every shape the models were trained on.
    """

    def __init__(self, folder: Path, settings: dict, device: torch.device):
        self.folder, self.settings, self.device = folder, settings, device
        self.codec: CausalVAE = load_model(folder / "codec", CausalVAE, device)
        self._models: dict[str, Denoiser] = {}

    @classmethod
    def from_pretrained(cls, name: str | Path, device: str = "auto") -> "VideoPipeline":
        """name: a bundled model ("lpc-64") or a pipeline folder. Raises UsageError when there is
        none, VidcmError when it is damaged."""
        fast_cpu()
        bundled = sorted(p.parent.name for p in BUNDLED.glob("*/pipeline.json"))
        folder = BUNDLED / name if str(name) in bundled else Path(name)
        try:
            settings = json.loads((folder / "pipeline.json").read_text("utf-8"))
        except FileNotFoundError:
            raise UsageError(
                f"{name} is neither a bundled model ({', '.join(bundled) or 'none'}) nor a pipeline "
                "folder with a pipeline.json; tools/export.py makes one from runs"
            ) from None
        except (OSError, ValueError) as error:
            raise VidcmError(f"cannot read {folder / 'pipeline.json'}: {error}") from None
        needed = ("frames", "height", "width", "fps", "student", "teacher")
        missing = [k for k in needed if k not in settings]
        for role in sorted({"student", "teacher"} - set(missing)):
            missing += [f"{role}.{k}" for k in ("steps", "guidance") if k not in settings[role]]
        if missing:
            raise VidcmError(
                f"{folder / 'pipeline.json'} lacks {', '.join(missing)}; export it again"
            )
        sampler = settings["student"].get("sampler", "consistency")
        if sampler not in samplers.SAMPLERS:
            raise VidcmError(
                f"{folder / 'pipeline.json'} asks for the sampler {sampler!r}; this version knows "
                f"{', '.join(samplers.SAMPLERS)}"
            )
        return cls(folder, settings, pick_device(device))

    def model(self, role: str) -> Denoiser:
        """The denoiser of a role, "student" or "teacher", loaded on first use."""
        if role not in self._models:
            model: Denoiser = load_model(self.folder / role, Denoiser, self.device)
            if (role == "student") != (model.backbone.guidance is not None):
                raise UsageError(
                    f"{self.folder / role} is not a {role}: a student takes a guidance scale as an "
                    "input, a teacher does not"
                )
            self._models[role] = model
        return self._models[role]

    def __call__(
        self,
        prompts: str | Sequence[str],
        *,
        steps: int | None = None,
        guidance: float | None = None,
        negative_prompt: str = "",
        seed: int | Sequence[int] = 0,
        num_clips: int = 1,
        frames: int | None = None,
        height: int | None = None,
        width: int | None = None,
        then: Sequence[tuple[int, str]] = (),
        teacher: bool = False,
        solver: str | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> Clips:
        """Make `num_clips` clips of every prompt.

        steps: network evaluations of the student (default: the checkpoint's), or solver steps of
        the teacher. guidance: its scale. negative_prompt: what to move away from. seed: of the
        first clip, the next ones count up; or one per clip. The same seed gives the same clip in
        any batch. frames, height, width: of the clips (default: the checkpoint's); beyond what the
        models were trained on, windows share the work (`vidcm/diffusion/windows.py`). then: (frame, prompt)
        of prompts that take over along a clip of several windows. solver: the teacher's, "euler",
        "heun" or "dpm" (default: the checkpoint's, or euler). progress: called with (step, steps);
        may raise to cancel.
        Raises UsageError for an empty or huge prompt, numbers out of range or sizes that the
        strides of codec and network do not divide.
        """
        prompts = [prompts] if isinstance(prompts, str) else list(prompts)
        check_prompts(prompts)
        if num_clips < 1:
            raise UsageError(f"num_clips is {num_clips}; it must be at least 1")
        prompts = [p for p in prompts for _ in range(num_clips)]
        seeds = [seed + i for i in range(len(prompts))] if isinstance(seed, int) else list(seed)
        if len(seeds) != len(prompts):
            raise UsageError(
                f"{len(seeds)} seeds for {len(prompts)} clips; give one seed, or one per clip"
            )
        role = "teacher" if teacher else "student"
        own = self.settings[role]
        steps, scale = self.numbers(teacher, steps, guidance)
        solver = solver or own.get("solver", "euler")
        if solver not in samplers.SOLVERS:
            raise UsageError(f"solver is {solver!r}; use {', '.join(samplers.SOLVERS)}")
        channels, *size = self.latent_shape(role, frames, height, width)
        model, whole = self.model(role), self.windowed(role)
        room = whole.room(size[0])
        windows = whole.windows(room, *size[1:])
        places = [self.place(frame) for frame, _ in then]
        check_prompts([*prompts, *(prompt for _, prompt in then)])
        check_then(then, places, [w.place for w in windows])
        clock = Clock(self.device)

        device, count = self.device, len(prompts)
        with torch.no_grad():
            told = None if teacher else torch.full((count,), float(scale), device=device)
            cond = model.encode(prompts, told)
            if then:
                later = [model.encode([prompt] * count, told) for _, prompt in then]
                cond = Schedule.of(cond, list(zip(places, later, strict=True)))
            negative, empty = (model.encode([p] * count) for p in (negative_prompt, ""))
            clock("text")
            rng = whole.recurring(SampleRngs(seeds, device))
            noise = rng.normal(channels, room, *size[1:])
            report = progress or (lambda step, steps: None)
            times = self.times(teacher, steps)
            start = torch.full((count,), times[0], device=device)
            x = model.path.add_noise(torch.zeros_like(noise), noise, start)
            if teacher:
                denoiser = CFGDenoiser(whole, scale, negative)
                sampler = samplers.SOLVERS[solver]
            else:
                denoiser = (
                    NegativePromptStudent(whole, negative, empty, scale)
                    if negative_prompt
                    else whole
                )
                sampler = samplers.SAMPLERS[own.get("sampler", "consistency")]

            def on_step(step: int, time: float, x: torch.Tensor) -> torch.Tensor:
                report(step + 1, steps)
                return x

            x = sampler(denoiser, x, times, cond, rng, on_step)
            clock("denoise")
            pieces = decode_chunked(self.codec, x[:, :, : size[0]])
            pixels = torch.cat([to_frames(video).cpu() for video in pieces], dim=1).numpy()
            clock("decode")
        slopes = 2 * steps - 1 if teacher and solver == "heun" else steps
        evaluations = slopes * (2 if teacher else 3 if negative_prompt else 1) * len(windows)
        return Clips(pixels, prompts, seeds, self.settings["fps"], evaluations, clock.seconds)

    def edit(
        self,
        task: "Asked | Sequence[Asked]",
        clips: Sequence[np.ndarray] = (),
        prompts: str | Sequence[str] = "",
        *,
        steps: int | None = None,
        guidance: float | None = None,
        seed: int | Sequence[int] = 0,
        frames: int | None = None,
        height: int | None = None,
        width: int | None = None,
        teacher: bool = False,
        zero_shot: bool = False,
        progress: Callable[[int, int], None] | None = None,
    ) -> Clips:
        """Edit clips, uint8 `(t h w 3)`, without training: what the task knows of them is kept
        exactly, the prompt says what the rest shows ("" leaves it open).

        task: a name ("extend"), a name with options ({"name": "inpaint", "mask": mask}), or several
        to do at once; `vidcm edit --help` lists them. clips: as many as the task takes, of the size
        it asks for. prompts: one result each, with seeds that count up from `seed` or one each; two
        of them are the ends of the task interpolate. frames: how many the model makes, given ones
        among them (default: the checkpoint's); of tasks along a whole clip, which make as many as
        it has, the most. height, width: of the result (default: the checkpoint's). guidance: default
        1 for a student where something of the clip is given, else the checkpoint's. zero_shot: not
        to show given frames to a model that was trained with them, as with any other. The other
        options are those of a call.
        Raises UsageError for tasks, clips and numbers that do not fit."""
        from vidcm.editing.edit import How, edit

        how = How(steps, guidance, teacher, progress, zero_shot)
        return edit(self, task, clips, prompts, seed, how, frames, height, width)

    @property
    def trained(self) -> list[list[int]]:
        """Frames, height and width of every shape the models were trained on."""
        own = [self.settings[k] for k in ("frames", "height", "width")]
        return self.settings.get("trained", [own])

    def windowed(self, role: str) -> Windowed:
        """The denoiser of a role for clips of any size: within the largest it was trained on as it
        is, beyond in windows of that size."""
        largest = map(max, zip(*self.trained, strict=True))
        return Windowed(self.model(role), self.codec.latent_shape(*largest)[1:])

    def latent_shape(
        self, role: str, frames: int | None, height: int | None, width: int | None
    ) -> tuple[int, int, int, int]:
        """`(c, t, h, w)` of the latents of a clip, None for the checkpoint's own numbers. Raises
        UsageError for what the strides of codec and network do not divide."""
        asked = {"frames": frames, "height": height, "width": width}
        frames, height, width = (self.settings[k] if v is None else v for k, v in asked.items())
        patch = getattr(self.model(role).backbone, "patch_size", (1, 1, 1))
        check_size(height, width, self.codec.stride * math.lcm(*patch[1:]))
        return self.codec.latent_shape(frames, height, width)

    def place(self, frame: int) -> float:
        """Where a frame of pixels is along the latents; the first is a latent frame of its own."""
        return (frame - 1) / self.codec.time_stride + 1

    def numbers(
        self, teacher: bool, steps: int | None, guidance: float | None
    ) -> tuple[int, float]:
        """Steps and guidance as asked, or the checkpoint's own. Raises UsageError when one is out
        of range."""
        own = self.settings["teacher" if teacher else "student"]
        steps = own["steps"] if steps is None else steps
        scale = own["guidance"] if guidance is None else guidance
        if not 1 <= steps <= MAX_STEPS:
            raise UsageError(f"steps is {steps}; use 1 to {MAX_STEPS}")
        if steps != own.get("phases", steps):
            raise UsageError(
                f"steps is {steps}, but this student goes from noise to data in {own['phases']} "
                f"phases of one step each; use {own['phases']}"
            )
        if not 0 <= scale <= 100:
            raise UsageError(f"guidance is {scale}; use 0 to 100 (1 is without)")
        return steps, float(scale)

    def times(self, teacher: bool, steps: int, until: float = 1.0) -> list[float]:
        """What a sampler of so many steps walks through, on the model's path. until: where it
        begins, as a share of the whole way in rectified-flow time; 1 is noise."""
        own = self.settings["teacher" if teacher else "student"]
        if teacher:
            grid = shifted_timesteps(steps, by=own.get("shift", 1.0)).tolist()
        else:
            grid = student_timesteps(
                steps, {int(k): v for k, v in own.get("times", {}).items()} or None
            )
        if until < 1:
            grid = [until * t / grid[0] for t in grid]
        return to_path_time(self.model("teacher" if teacher else "student").path, grid).tolist()
