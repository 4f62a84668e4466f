"""Pictures of edits: every task before and after, as one sheet and as small animations."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from vidcm.errors import VidcmError
from vidcm.evaluation.edit_cases import BLANK, NAMES, NUM_INTERPOLATED, Case, cases_of
from vidcm.evaluation.edits import run_edit
from vidcm.evaluation.eval_set import EvalSet
from vidcm.evaluation.rows import Row
from vidcm.files import replacing
from vidcm.media.contact_sheet import contact_sheet
from vidcm.media.write import check_output, write_clip
from vidcm.pipeline import VideoPipeline

ROW = Row("student", 4)
MAX_BYTES = 100_000  # of an example
GUTTER = 4  # pixels between before and after
HOLD = 4  # repeats of an example's last frame, so that the end of a clip that is no loop is visible


def write_edit_sheet(
    pipe: VideoPipeline,
    eval_set: EvalSet,
    path: Path,
    *,
    tasks: Sequence[str] = NAMES,
    overwrite: bool = False,
) -> Path:
    """Write every task on the first true clip: its input beside the result of `ROW`."""
    rows, labels = [[eval_set.frames[0].numpy()]], [f"{eval_set.captions[0]} (truth)"]
    for task, case, result in _edited(pipe, eval_set, tasks):
        rows.append([_thumbnail_frames(case, clip) for clip in (case.given, result)])
        labels.append(f"{task}: input, and result of {ROW}")
    return contact_sheet(rows, labels, path, scale=1, overwrite=overwrite)


def check_examples(folder: Path, tasks: Sequence[str], overwrite: bool = False) -> list[Path]:
    """Paths that `write_examples` would write. Raises as `check_output` does."""
    return [check_output(folder / f"{task}.gif", overwrite) for task in tasks]


def write_examples(
    pipe: VideoPipeline,
    eval_set: EvalSet,
    folder: Path,
    *,
    tasks: Sequence[str] = NAMES,
    overwrite: bool = False,
) -> list[Path]:
    """Write `folder/<task>.gif` for every task, the input beside the result, at most `MAX_BYTES`.

    Raises:
        UsageError: a file exists.
        VidcmError: a clip does not fit into `MAX_BYTES`.
    """
    targets = check_examples(folder, tasks, overwrite)
    for target, (_, case, result) in zip(targets, _edited(pipe, eval_set, tasks), strict=True):
        _write_small(_side_by_side(case, result), target, pipe.settings.fps)
    return targets


def _edited(
    pipe: VideoPipeline, eval_set: EvalSet, tasks: Sequence[str]
) -> Iterator[tuple[str, Case, np.ndarray]]:
    """Each task's case of the first true clip, and its result."""
    for task in tqdm(tasks, desc="examples", unit="task", leave=False):
        case = cases_of(task, eval_set.frames.numpy(), eval_set.captions)[0]
        yield task, case, run_edit(pipe, case, ROW, eval_set.captions[0], eval_set.seeds[0])


def _thumbnail_frames(case: Case, clip: np.ndarray) -> np.ndarray:
    """Of an interpolation between clips the middle frame of each; other clips as they are."""
    if case.spec["name"] != "interpolate":
        return clip
    count = len(clip) // NUM_INTERPOLATED
    return clip[count // 2 :: count]


def _side_by_side(case: Case, result: np.ndarray) -> np.ndarray:
    """One clip `(t h w 3)`: input and result, or an interpolation's ends and middle."""
    if case.spec["name"] == "interpolate":
        clips = list(
            result.reshape(NUM_INTERPOLATED, -1, *result.shape[1:])[:: NUM_INTERPOLATED // 2]
        )
    else:
        clips = [case.given, result]
    gap = np.full((len(clips[0]), clips[0].shape[1], GUTTER, 3), BLANK // 2, np.uint8)
    parts = [part for clip in clips for part in (gap, clip)][1:]
    joined = np.concatenate(parts, 2)
    return joined if case.periodic else np.concatenate([joined, joined[-1:].repeat(HOLD, 0)])


def _write_small(frames: np.ndarray, path: Path, fps: float) -> None:
    with replacing(path) as part:
        for scale in (3, 2, 1):
            write_clip(frames, part, fps=fps, scale=scale, overwrite=True)
            if part.stat().st_size <= MAX_BYTES:
                return
        raise VidcmError(
            f"{path} would be larger than {MAX_BYTES} bytes; leave out its task with --tasks"
        )
