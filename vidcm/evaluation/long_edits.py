"""Edits of long clips in windows, beside the same clips edited in pieces of the trained length.

No true clip is as long, so the frames of one repeat: the first, then all others over and over, or
all but the last where the cycle is to be out of step with the windows.
"""

from dataclasses import dataclass

import numpy as np
from tqdm import tqdm

from vidcm.evaluation.edit_cases import CASES, Case
from vidcm.evaluation.edit_scores import Pair, score_edit
from vidcm.evaluation.eval_set import EvalJob, EvalSet
from vidcm.pipeline import VideoPipeline

VERSION = 1
STEPS = 4  # of a student without phases
NUM_WINDOWS = 4  # along a clip


@dataclass(frozen=True)
class LongEditRow:
    """A task on long clips.

    Attributes:
        task: its name.
        with_prompt: whether the prompt is the clip's caption, or empty.
        short_cycle: whether the frames repeat one earlier than those that a window adds.
    """

    task: str
    with_prompt: bool = True
    short_cycle: bool = False

    @property
    def name(self) -> str:
        return (
            self.task
            + ", no prompt" * (not self.with_prompt)
            + ", shorter cycle" * self.short_cycle
        )


LONG_EDIT_ROWS = (
    LongEditRow("inpaint"),
    LongEditRow("inpaint", short_cycle=True),
    LongEditRow("outpaint"),
    LongEditRow("colorize"),
    LongEditRow("colorize", with_prompt=False),
    LongEditRow("upscale"),
    LongEditRow("interpolate_frames"),
    LongEditRow("variation"),
    LongEditRow("denoise"),
)


def measure_long_edits(job: EvalJob) -> dict:
    """Edit clips of `NUM_WINDOWS` windows in windows and in pieces of the trained length.

    Rows hold for both: `psnr` in dB of the pixels that are filled in; and `step`, the mean step to
    the next frame where pieces join and something is filled in, over that of the true clip. Returns
    the content of the results file; errors as `quality.evaluate_rows`.
    """
    steps, length = job.pipe.settings.student.phases or STEPS, job.eval_set.lpc.num_frames
    protocol = {"version": VERSION, "steps": steps, "piece": length}
    frames = {"frames": 1 + NUM_WINDOWS * (length - 1)}
    results = job.results("long-edits", protocol | frames)
    missing = [row for row in LONG_EDIT_ROWS if not results.has(row.name)]
    for row in tqdm(missing, unit="row", leave=False):
        results.add(row.name, row=_long_edit_metrics(job.pipe, job.eval_set, row, steps))
    return results.content()


def _long_edit_metrics(
    pipe: VideoPipeline, eval_set: EvalSet, row: LongEditRow, steps: int
) -> dict:
    length = eval_set.lpc.num_frames
    frames = 1 + NUM_WINDOWS * (length - 1)
    pieces = {"windows": frames, "pieces": length}
    psnr = dict.fromkeys(pieces, 0.0)
    joins = {method: np.zeros(2) for method in pieces}
    clips = zip(eval_set.frames.numpy(), eval_set.captions, eval_set.seeds, strict=True)
    for clip, caption, seed in clips:
        case = CASES[row.task](repeat_frames(clip, frames, row.short_cycle))
        prompt = caption if row.with_prompt else ""
        for method, piece in pieces.items():
            edited = edit_in_pieces(pipe, case, piece, prompt, steps, seed)
            psnr[method] += (score_edit(case, edited).psnr or 0.0) / eval_set.count
            joins[method] += steps_at_joins(case, edited, length)
    return {m: {"psnr": psnr[m], "step": joins[m][0] / joins[m][1]} for m in pieces}


def repeat_frames(clip: np.ndarray, frames: int, short_cycle: bool) -> np.ndarray:
    """The first frame, then the others over and over up to `frames`.

    Args:
        clip: uint8 `(t h w 3)`.
        frames: number of frames to return.
        short_cycle: leave out the last frame of the clip.
    """
    cycle = len(clip) - 1 - short_cycle
    return clip[[0, *(1 + i % cycle for i in range(frames - 1))]]


def edit_in_pieces(
    pipe: VideoPipeline, case: Case, piece: int, prompt: str, steps: int, seed: int
) -> np.ndarray:
    """Edit a clip in pieces of `piece` frames, the last one perhaps shorter, and join them.

    Pieces of slow-motion edits share the frame at which they meet.

    Returns:
        uint8 `(t h w 3)`.
    """
    (clip,), shared, found = case.clips, _shared_frames(case), []
    given = 1 + (piece - 1) // case.spec["factor"] if shared else piece
    for start in range(0, len(clip) - shared, given - shared):
        part, spec = slice(start, start + given), dict(case.spec)
        if "mask" in spec:
            spec["mask"] = spec["mask"][part]
        edited = pipe.edit(spec, [clip[part]], prompt, num_inference_steps=steps, seed=seed)[0]
        found.append(edited[min(start, shared) :])
    return np.concatenate(found)


def steps_at_joins(case: Case, frames: np.ndarray, piece: int) -> Pair:
    """Mean steps of a result and of the true clip where pieces join.

    Pixels count if either frame of the step is filled in. Where pieces share a frame, the steps to
    it and from it count.
    """
    assert case.truth is not None, "tasks along whole clips have a truth"
    shared = _shared_frames(case)
    at = np.arange(piece - 1, len(frames) - 1, piece - shared)
    at = np.union1d(at, at - shared)
    filled = ~(case.kept[at] & case.kept[at + 1])
    found, true = (
        float(np.abs(c[at + 1].astype(int) - c[at])[filled].mean()) for c in (frames, case.truth)
    )
    return found, true


def _shared_frames(case: Case) -> int:
    """Frames that pieces share: what lies between given frames needs both."""
    return int(case.spec["name"] == "interpolate_frames")
