"""Files that are edited: read, fitted to the model, and the mask of an inpainting with them.

Needs no torch.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from vidcm.editing.scene import (
    OutputSpec,
    Task,
    follows_input,
    frames_per_input,
    input_size,
    max_input_frames,
    resolve_output,
)
from vidcm.media.fit import fit, fit_mask
from vidcm.media.load import SourceClip, describe_fit
from vidcm.registry import build
from vidcm.settings import EDITED_SECONDS

Specs = Mapping[str, Mapping[str, Any]]  # of tasks, by name
ReadMask = Callable[[SourceClip, float], np.ndarray]  # of a clip and its rate: bool `(t h w)`


class ClipReader(Protocol):
    """What reads files: the module `media.load`, or a `media.worker.ReaderProcess`."""

    def load_clip(
        self, path: Path, fps: float, max_frames: int | None = None, start: float = 0.0
    ) -> SourceClip: ...

    def load_every_frame(
        self, path: Path, fps: float, max_frames: int | None = None, start: float = 0.0
    ) -> SourceClip: ...

    def frames_in_memory(self, path: Path) -> float: ...


@dataclass(frozen=True)
class EditInputs:
    """Inputs as the tasks take them.

    Attributes:
        specs: The tasks, the mask of an inpainting in its place.
        clips: Fitted to the model.
        preview: The same with the mask painted over.
        notes: Sentences about the fitting.
        timed: Number of frames of a result that keeps the timing of the first clip.
        fps: Frames per second of the result.
    """

    specs: Specs
    clips: list[np.ndarray]
    preview: list[np.ndarray]
    notes: list[str]
    timed: int
    fps: float


def stand_in_tasks(specs: Specs) -> dict[str, Task]:
    """Tasks by name, for checks before any file is read; that of a mask has an empty one.

    Raises:
        UsageError: An unknown name or option, or a value out of range.
    """
    blank = {"mask": [[0]]}
    return {
        name: build("task", {**spec, **(blank if "mask" in spec else {})})
        for name, spec in specs.items()
    }


def read_inputs(
    specs: Specs,
    tasks: Mapping[str, Task],
    spec: OutputSpec,
    fps: float,
    paths: Sequence[Path],
    reader: ClipReader,
    read_mask: ReadMask,
    *,
    frames: int | None = None,
    start: float = 0.0,
    advice: str = "",
) -> EditInputs:
    """Read the inputs and fit them to the model.

    Args:
        specs: Tasks, by name.
        tasks: The same of `stand_in_tasks`.
        spec: What the model generates by itself.
        fps: Frames per second of the model.
        paths: Files or folders.
        reader: What reads them.
        read_mask: What reads the mask of an inpainting.
        frames: Of the result; None for as many as the tasks ask for.
        start: Seconds to skip.
        advice: Appended to the note that a clip was cut.

    Raises:
        UsageError: A file does not fit the tasks.
        BadClip: It cannot be read.
    """
    factor, size, model_fps = frames_per_input(tasks), input_size(tasks, spec), fps
    fps, load = fps / factor, reader.load_every_frame if factor > 1 else reader.load_clip
    bound = math.inf
    if not follows_input(tasks):
        spec = resolve_output(tasks, [], spec, frames)
    elif frames is not None:
        spec = replace(spec, frames=frames)
    else:
        seconds = round(EDITED_SECONDS * model_fps)
        spec = replace(spec, frames=max(spec.frames, min(seconds, spec.max_frames)))
        bound = reader.frames_in_memory(paths[0])
    most = max_input_frames(tasks, spec)
    most = most if most is None else int(min(most, bound))
    films = [load(path, fps, most, start) for path in paths]
    if factor > 1:
        fps = films[0].rate or fps
    clips = [fit(film.frames, size) for film in films]
    preview = [clip.copy() for clip in clips]
    cut = advice if frames is None and follows_input(tasks) else ""
    pairs = zip(films, clips, strict=True)
    notes = [describe_fit(film, clip, fps, cut) for film, clip in pairs]
    made = {name: dict(one) for name, one in specs.items()}
    if "inpaint" in made:
        mask = fit_mask(read_mask(films[0], fps), size)
        made["inpaint"]["mask"] = mask
        preview[0][np.broadcast_to(mask, preview[0].shape[:3])] = 48
        notes.append(_filled(mask))
    if "outpaint" in made:
        x, y, width, height = made["outpaint"]["place"]
        notes.append(
            f"the input is at x {x} to {x + width}, y {y} to {y + height} of the model's "
            f"{spec.width}x{spec.height} pixels"
        )
    if not math.isclose(fps * factor, model_fps, rel_tol=1e-3):
        notes.append(
            f"the result has {fps * factor:.4g} frames a second, {factor} times the input's; the "
            f"model was trained at {model_fps:g}"
        )
    timed = (len(clips[0]) - 1) * factor + 1 if clips else 0
    return EditInputs(made, clips, preview, [n for n in notes if n], timed, fps * factor)


def _filled(mask: np.ndarray) -> str | None:
    """A sentence about the box that a mask `(t h w)` fills, in the model's pixels."""
    _, rows, columns = mask.nonzero()
    if not len(rows):
        return None
    return (
        f"filled x {columns.min()} to {columns.max() + 1}, y {rows.min()} to {rows.max() + 1} of "
        f"the model's {mask.shape[2]}x{mask.shape[1]} pixels"
    )
