"""`pipeline.json`: clip shapes of a pipeline and the sampling settings of its student and teacher.

Needs no torch, so that commands can answer at once.
"""

import json
import os
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, Self

from vidcm.arguments import integer, real_number
from vidcm.arguments import path as path_of
from vidcm.errors import UsageError, VidcmError
from vidcm.files import on_hub, write_text
from vidcm.registry import check_name, lookup
from vidcm.schema import from_dict

FILE = "pipeline.json"
BUNDLED = Path(__file__).parent / "pretrained"
MAX_STEPS = 1000
MAX_GUIDANCE = 100.0
NEGATIVE_PROMPT_METHODS = ("guidance", "nag")
MAX_FRAMES = 100_000
MAX_CLIPS = 10**9  # of a call; memory bounds it earlier
MAX_SIDE = 2**16
MAX_FPS = 1000.0
MAX_SECONDS = 1e9  # of a video to skip
EDITED_SECONDS = 10.0  # of a clip, if the caller does not say how many frames


@dataclass
class StudentSettings:
    """How a student is sampled.

    Attributes:
        num_inference_steps: Default number of steps.
        guidance_scale: Default scale.
        guidance_range: Scales it was trained with.
        max_inference_steps: Beyond, more steps rarely help.
        sampler: "consistency" or "flow_map".
        lowest_sigma: sigma / alpha of the last step (default: `times.DEFAULT_LOWEST_SIGMA`).
        shift: Resolution shift of evenly spaced times from pure noise on, as public pipelines have
            them; instead of `lowest_sigma`.
        phases: The only number of steps of a phased or progressive student.
        timesteps: Rectified-flow times of those steps, descending.
    """

    num_inference_steps: int
    guidance_scale: float
    guidance_range: tuple[float, float] = (1.0, 1.0)
    max_inference_steps: int = 8
    sampler: str = "consistency"
    lowest_sigma: float | None = None
    shift: float | None = None
    phases: int | None = None
    timesteps: list[float] = field(default_factory=list)


@dataclass
class TeacherSettings:
    """How a teacher is sampled.

    Attributes:
        num_inference_steps: Default number of intervals.
        guidance_scale: Default scale.
        shift: Resolution shift of its times.
        solver: "euler", "heun" or "dpm".
    """

    num_inference_steps: int
    guidance_scale: float
    shift: float = 1.0
    solver: str = "euler"


@dataclass
class PipelineSettings:
    """The content of `pipeline.json`.

    Attributes:
        num_frames: Default frames of a clip.
        height: Default height in pixels.
        width: Default width in pixels.
        fps: Frames per second.
        student: Sampling of the student.
        teacher: Sampling of the teacher.
        trained_shapes: (frames, height, width) of every shape the models were trained on (default:
            the one above).
        prompt_reader: Name of the reader that completes prompts; "" for none.
        known_words: Words of the training captions, separated by spaces; "" if not known.
        boundary_ratio: Rectified-flow time below which another network denoises, in the folders
            `teacher_2` and `student_2`.
        folders: Where a model is, if not in the pipeline folder.
    """

    num_frames: int
    height: int
    width: int
    fps: float
    student: StudentSettings
    teacher: TeacherSettings
    trained_shapes: list[tuple[int, int, int]] = field(default_factory=list)
    prompt_reader: str = ""
    known_words: str = ""
    boundary_ratio: float | None = None
    folders: dict[str, str] = field(default_factory=dict)

    @property
    def size(self) -> tuple[int, int, int]:
        """Default frames, height and width."""
        return self.num_frames, self.height, self.width

    @property
    def shapes(self) -> list[tuple[int, int, int]]:
        """Frames, height and width of every shape the models were trained on."""
        return self.trained_shapes or [self.size]

    def of(self, role: str) -> StudentSettings | TeacherSettings:
        """The settings of "student" or "teacher"."""
        return self.teacher if role == "teacher" else self.student

    def to_dict(self) -> dict[str, Any]:
        """As plain data, without what is unset."""
        data = asdict(self)
        for part in (data["student"], data["teacher"], data):
            for key in [k for k, v in part.items() if v in (None, [], "", {})]:
                del part[key]
        return data

    def save(self, folder: Path) -> None:
        """Write `pipeline.json` into a folder."""
        write_text(folder / FILE, json.dumps(self.to_dict(), indent=1) + "\n")

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read the `pipeline.json` of a folder.

        Raises:
            FileNotFoundError: There is none.
            VidcmError: It cannot be read, a key is missing or unknown, or a value is of no use.
        """
        path = folder / FILE
        try:
            data = json.loads(path.read_text("utf-8"))
            if not isinstance(data, dict):
                raise VidcmError(f"{path} is damaged: expected an object with the key num_frames")
            found = from_dict(cls, data, str(path))
        except (FileNotFoundError, NotADirectoryError):
            raise FileNotFoundError(path) from None
        except (OSError, ValueError, RecursionError) as error:
            raise VidcmError(f"cannot read {path}: {error}") from None
        except UsageError as error:
            raise VidcmError(f"{error}; export it again") from None
        try:
            found.check()
        except UsageError as error:
            raise VidcmError(f"{path}: {error}; export it again") from None
        return found

    def check(self) -> None:
        """Raise UsageError for a number out of range, or times that do not fall."""
        for frames, height, width in [self.size, *self.trained_shapes]:
            integer("num_frames", frames, 1, MAX_FRAMES)
            integer("height", height, 1, MAX_SIDE)
            integer("width", width, 1, MAX_SIDE)
        real_number("fps", self.fps, 0.01, MAX_FPS)
        if self.prompt_reader:
            check_name("prompt_reader", {"name": self.prompt_reader})
        for role, own in (("student", self.student), ("teacher", self.teacher)):
            steps = own.num_inference_steps
            integer(f"{role}.num_inference_steps", steps, 1, MAX_STEPS)
            real_number(f"{role}.guidance_scale", own.guidance_scale, 0, MAX_GUIDANCE)
            if own.shift is not None and not own.shift > 0:
                raise UsageError(f"{role}.shift is {own.shift:g}; use a number above 0")
        if self.boundary_ratio is not None and not 0 < self.boundary_ratio < 1:
            raise UsageError(f"boundary_ratio is {self.boundary_ratio:g}; use a time in (0, 1)")
        student, (low, high) = self.student, self.student.guidance_range
        if not 0 <= low <= high:
            raise UsageError(f"student.guidance_range is {low:g}, {high:g}; use 0 <= low <= high")
        times = student.timesteps
        falling = all(a > b for a, b in pairwise([*times, 0]))
        if times and not (falling and times[0] <= 1 and len(times) == student.phases):
            raise UsageError(
                f"student.timesteps are {times}; use one for each of student.phases, falling from "
                "at most 1 to above 0"
            )


def find_pipeline(name: str | os.PathLike[str]) -> tuple[Path, PipelineSettings]:
    """Find a pipeline folder and read its settings.

    Args:
        name: A bundled model ("lpc-64"), a pipeline folder of vidcm or diffusers, or a name on the
            Hugging Face hub.

    Raises:
        UsageError: There is no such pipeline.
        VidcmError: Its settings are damaged.
    """
    name = path_of("the pipeline", name)
    bundled = sorted(p.parent.name for p in BUNDLED.glob(f"*/{FILE}"))
    folder = BUNDLED / name if name in bundled else Path(name)
    if on_hub(name):
        folder = lookup("folder_format", "hub")(name)
    try:
        return folder, PipelineSettings.load(folder)
    except FileNotFoundError:
        if (folder / "model_index.json").is_file():
            return folder, lookup("folder_format", "pipeline")(folder)
        raise UsageError(
            f"{name or repr('')} is neither a bundled model ({', '.join(bundled) or 'none'}) nor a "
            f"pipeline folder with a {FILE}; vidcm export makes one from runs"
        ) from None
