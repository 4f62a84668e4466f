"""Edits to look at: every task before and after, as one sheet and as small animated pictures."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from tqdm import tqdm

from vidcm.errors import VidcmError
from vidcm.evaluation.edit_cases import BLANK, NAMES, WAY, Case, cases_of
from vidcm.evaluation.edits import make
from vidcm.evaluation.protocol import Truth
from vidcm.files import replacing
from vidcm.media.contact_sheet import contact_sheet
from vidcm.media.write import check_output, write_clip

if TYPE_CHECKING:
    from vidcm.pipeline import VideoPipeline

ROW = "student-4"
LARGEST = 100_000  # bytes of an example
GUTTER = 4  # pixels between before and after
HOLD = 4  # times that the last frame of an example is shown: what does not loop ends visibly


def write_edit_sheet(
    pipe: "VideoPipeline",
    truth: Truth,
    path: Path,
    *,
    tasks: Sequence[str] = NAMES,
    overwrite: bool = False,
) -> Path:
    """Every task on the first true clip: what is given, and what is made of it."""
    rows, labels = [[truth.frames[0].numpy()]], [f"{truth.captions[0]} (truth)"]
    for task, case, made in _made(pipe, truth, tasks):
        rows.append([_thinned(case, clip) for clip in (case.given, made)])
        labels.append(f"{task}: given, and made by {ROW}")
    return contact_sheet(rows, labels, path, scale=1, overwrite=overwrite)


def check_examples(folder: Path, tasks: Sequence[str], overwrite: bool = False) -> list[Path]:
    """The pictures that `write_examples` would write. Raises as `check_output` does."""
    return [check_output(folder / f"{task}.gif", overwrite) for task in tasks]


def write_examples(
    pipe: "VideoPipeline",
    truth: Truth,
    folder: Path,
    *,
    tasks: Sequence[str] = NAMES,
    overwrite: bool = False,
) -> list[Path]:
    """`folder/<task>.gif` for every task: what is given beside what is made, at most LARGEST bytes.

    Raises UsageError for one that exists, VidcmError for one that cannot be made so small."""
    targets = check_examples(folder, tasks, overwrite)
    for target, (_, case, made) in zip(targets, _made(pipe, truth, tasks), strict=True):
        _write_small(_beside(case, made), target, pipe.settings["fps"])
    return targets


def _made(
    pipe: "VideoPipeline", truth: Truth, tasks: Sequence[str]
) -> Iterator[tuple[str, Case, np.ndarray]]:
    """Each task's case of the first true clip, and what is made of it."""
    for task in tqdm(tasks, desc="examples", unit="task", leave=False):
        case = cases_of(task, truth.frames.numpy(), truth.captions)[0]
        yield task, case, make(pipe, case, ROW, truth.captions[0], truth.seeds[0])


def _thinned(case: Case, clip: np.ndarray) -> np.ndarray:
    """Of a way between clips the middle frame of each."""
    if case.spec["name"] != "interpolate":
        return clip
    count = len(clip) // WAY
    return clip[count // 2 :: count]


def _beside(case: Case, made: np.ndarray) -> np.ndarray:
    """One clip, `(t h w 3)`: before and after; of a way between clips its ends and middle."""
    if case.spec["name"] == "interpolate":
        clips = list(made.reshape(WAY, -1, *made.shape[1:])[:: WAY // 2])
    else:
        clips = [case.given, made]
    gap = np.full((len(clips[0]), clips[0].shape[1], GUTTER, 3), BLANK // 2, np.uint8)
    parts = [part for clip in clips for part in (gap, clip)][1:]
    joined = np.concatenate(parts, 2)
    return joined if case.ring else np.concatenate([joined, joined[-1:].repeat(HOLD, 0)])


def _write_small(frames: np.ndarray, path: Path, fps: float) -> None:
    with replacing(path) as part:
        for scale in (3, 2, 1):
            write_clip(frames, part, fps=fps, scale=scale, overwrite=True)
            if part.stat().st_size <= LARGEST:
                return
        raise VidcmError(
            f"{path} would be larger than {LARGEST} bytes; leave out its task with --tasks"
        )
