"""Prompts to clips: text, denoising, decoding, each timed; then whatever file was asked for."""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from vidcm import sampling
from vidcm.codecs.causal_vae import CausalVAE
from vidcm.denoiser import Cond, Denoiser, Guided
from vidcm.errors import UsageError, VidcmError
from vidcm.rng import SampleRng
from vidcm.runtime import fast_cpu, pick_device
from vidcm.store import load_model
from vidcm.times import few_steps, on_path, uniform_grid
from vidcm.video import to_frames, write_clip

if TYPE_CHECKING:
    from vidcm.editing.edit import Asked

BUNDLED = Path(__file__).parent / "pretrained"
MAX_PROMPT = 2000  # characters
MAX_STEPS = 1000


@dataclass(frozen=True)
class Clips:
    """frames: uint8 `(n t h w c)`. evaluations: network forwards per clip, guidance's second one
    counted. seconds: wall time of text, denoise and decode for the whole call."""

    frames: np.ndarray
    prompts: list[str]
    seeds: list[int]
    fps: float
    evaluations: int
    seconds: dict[str, float] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.frames)

    def save(
        self, path: str | Path, *, fps: float | None = None, overwrite: bool = False, scale: int = 1
    ) -> list[Path]:
        """Write every clip (`name-1.mp4`, `name-2.mp4`, ... when there are several); the format is
        the extension's. Returns the paths. Raises UsageError for an unknown or existing one."""
        return [
            write_clip(clip, target, fps=fps or self.fps, overwrite=overwrite, scale=scale)
            for clip, target in zip(self.frames, numbered(path, len(self)), strict=True)
        ]


def numbered(path: str | Path, count: int) -> list[str]:
    """The file names of `count` clips: the path itself for one."""
    text = str(path)
    if count == 1:
        return [text]
    folder = text.endswith("/")
    p = Path(text)
    names = [str(p.with_name(f"{p.stem}-{i + 1}{p.suffix}")) for i in range(count)]
    return [n + "/" for n in names] if folder else names


class VideoPipeline:
    """A student, its teacher, their codec, and the settings they were tuned with.

    A pipeline folder holds model folders `codec`, `student`, `teacher` and `pipeline.json`:
    frames, height, width, fps, steps, guidance and times of the student, steps, guidance and shift of the teacher.
    Of a student also its `sampler` if that is not "consistency", and `phases` if it has any.
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
                f"{name} is neither a bundled model ({', '.join(bundled) or 'none'}) nor a pipeline folder "
                "with a pipeline.json; tools/export.py makes one from runs"
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
        if sampler not in sampling.SAMPLERS:
            raise VidcmError(
                f"{folder / 'pipeline.json'} asks for the sampler {sampler!r}; this version knows "
                f"{', '.join(sampling.SAMPLERS)}"
            )
        return cls(folder, settings, pick_device(device))

    def model(self, role: str) -> Denoiser:
        """The denoiser of a role, "student" or "teacher", loaded on first use."""
        if role not in self._models:
            model: Denoiser = load_model(self.folder / role, Denoiser, self.device)
            if (role == "student") != (model.backbone.guidance is not None):
                raise UsageError(
                    f"{self.folder / role} is not a {role}: a student takes a guidance scale as an input, a teacher does not"
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
        teacher: bool = False,
        solver: str | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> Clips:
        """Make `num_clips` clips of every prompt.

        steps: network evaluations of the student (default: the checkpoint's), or solver steps of
        the teacher. guidance: its scale. negative_prompt: what to move away from. seed: of the
        first clip, the next ones count up; or one per clip. The same seed gives the same clip in
        any batch. solver: the teacher's, "euler", "heun" or "dpm" (default: the checkpoint's, or
        euler). progress: called with (step, steps); may raise to cancel.
        Raises UsageError for an empty or huge prompt, or numbers out of range.
        """
        prompts = check_prompts([prompts] if isinstance(prompts, str) else list(prompts))
        if num_clips < 1:
            raise UsageError(f"num_clips is {num_clips}; it must be at least 1")
        prompts = [p for p in prompts for _ in range(num_clips)]
        seeds = [seed + i for i in range(len(prompts))] if isinstance(seed, int) else list(seed)
        if len(seeds) != len(prompts):
            raise UsageError(
                f"{len(seeds)} seeds for {len(prompts)} clips; give one seed, or one per clip"
            )
        own = self.settings["teacher" if teacher else "student"]
        steps, scale = self.numbers(teacher, steps, guidance)
        solver = solver or own.get("solver", "euler")
        if solver not in sampling.SOLVERS:
            raise UsageError(f"solver is {solver!r}; use {', '.join(sampling.SOLVERS)}")
        model = self.model("teacher" if teacher else "student")
        clock = Clock(self.device)

        device, count = self.device, len(prompts)
        with torch.no_grad():
            told = None if teacher else torch.full((count,), float(scale), device=device)
            cond = model.encode(prompts, told)
            negative, empty = (model.encode([p] * count) for p in (negative_prompt, ""))
            clock("text")
            shape = self.codec.latent_shape(
                *(self.settings[k] for k in ("frames", "height", "width"))
            )
            rng = SampleRngs(seeds, device)
            noise, report = rng.normal(*shape), progress or (lambda step, steps: None)
            if teacher:
                flow = Guided(model, scale, negative)
                times = self.times(True, steps)
                start = noise * model.path.sigma(torch.tensor(times[0])).float()
                x = sampling.SOLVERS[solver](flow, start, times, cond, report)
            else:
                student = Steered(model, negative, empty, scale) if negative_prompt else model
                sampler = sampling.SAMPLERS[own.get("sampler", "consistency")]
                x = sampler(student, noise, self.times(False, steps), cond, rng, report)
            clock("denoise")
            frames = to_frames(self.codec.decode(x)).cpu().numpy()
            clock("decode")
        slopes = 2 * steps - 1 if teacher and solver == "heun" else steps
        evaluations = slopes * (2 if teacher else 3 if negative_prompt else 1)
        return Clips(frames, prompts, seeds, self.settings["fps"], evaluations, clock.seconds)

    def edit(
        self,
        task: "Asked | Sequence[Asked]",
        clips: Sequence[np.ndarray] = (),
        prompts: str | Sequence[str] = "",
        *,
        steps: int | None = None,
        guidance: float | None = None,
        seed: int | Sequence[int] = 0,
        teacher: bool = False,
        progress: Callable[[int, int], None] | None = None,
    ) -> Clips:
        """Edit clips, uint8 `(t h w 3)`, without training: what the task knows of them is kept
        exactly, the prompt says what the rest shows ("" leaves it open).

        task: a name ("extend"), a name with options ({"name": "inpaint", "mask": mask}), or several
        to do at once; `vidcm edit --help` lists them. clips: as many as the task takes, of the size
        it asks for. prompts: one result each, with seeds that count up from `seed` or one each; two
        of them are the ends of the task interpolate. The other options are those of a call.
        Raises UsageError for tasks, clips and numbers that do not fit."""
        from vidcm.editing.edit import How, edit

        return edit(self, task, clips, prompts, seed, How(steps, guidance, teacher, progress))

    def numbers(
        self, teacher: bool, steps: int | None, guidance: float | None
    ) -> tuple[int, float]:
        """Steps and guidance as asked, or the checkpoint's own. Raises UsageError when one is out of
        range."""
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
            grid = uniform_grid(steps, by=own.get("shift", 1.0)).tolist()
        else:
            grid = few_steps(steps, {int(k): v for k, v in own.get("times", {}).items()} or None)
        if until < 1:
            grid = [until * t / grid[0] for t in grid]
        return on_path(self.model("teacher" if teacher else "student").path, grid).tolist()


class SampleRngs(SampleRng):
    """The generators of clips by their own seeds: place 0 of each seed."""

    def __init__(self, seeds: Sequence[int], device: torch.device):
        super().__init__(0, [], device)
        self.generators = [g for s in seeds for g in SampleRng(s, [0]).generators]


class Steered:
    """A student moved away from a negative prompt n. Guidance against n instead of the empty prompt
    u is v_n + w (v_c - v_n) = [v_u + w (v_c - v_u)] + (w - 1) (v_u - v_n): what the student learnt
    plus a correction, here taken of its clean latents at guidance 1. Three evaluations a step."""

    def __init__(self, student: Denoiser, negative: Cond, empty: Cond, scale: float):
        self.student, self.path, self.scale = student, student.path, scale
        ones = torch.ones(len(negative), device=negative.tokens.device)
        self.negative, self.empty = replace(negative, guidance=ones), replace(empty, guidance=ones)

    def clean(self, x_t: Tensor, t: Tensor, cond: Cond) -> Tensor:
        away = self.student.clean(x_t, t, self.empty) - self.student.clean(x_t, t, self.negative)
        return self.student.clean(x_t, t, cond) + (self.scale - 1) * away

    def jump(self, x_t: Tensor, t: Tensor, s: Tensor, cond: Cond) -> Tensor:
        there = self.student.jump
        away = there(x_t, t, s, self.empty) - there(x_t, t, s, self.negative)
        return there(x_t, t, s, cond) + (self.scale - 1) * away


def check_prompts(prompts: list[str]) -> list[str]:
    """Refuse what no text tower should be given. Raises UsageError."""
    if not prompts:
        raise UsageError("there is no prompt; give at least one")
    for prompt in prompts:
        if not isinstance(prompt, str):
            raise UsageError(f"a prompt must be text, not {type(prompt).__name__}")
        if not any(c.isalnum() for c in prompt):
            raise UsageError("the prompt is empty of words; say what the clip should show")
        if len(prompt) > MAX_PROMPT:
            raise UsageError(
                f"a prompt of {len(prompt)} characters is too long; use at most {MAX_PROMPT}"
            )
    return prompts


class Clock:
    """Seconds by stage, the device drained at every mark."""

    def __init__(self, device: torch.device):
        self.device, self.seconds, self.at = device, {}, time.perf_counter()

    def __call__(self, stage: str) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        now = time.perf_counter()
        self.seconds[stage] = now - self.at
        self.at = now
