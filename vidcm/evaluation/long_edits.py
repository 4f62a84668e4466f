"""What windows are worth to edits of long clips, beside the same clips edited piece by piece.

No true clip is as long, so the frames of one come round: the first, then all others over and over,
or all but the last where the cycle is to be out of step with windows.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm import tqdm

from vidcm.errors import UsageError
from vidcm.evaluation.edit_cases import CASES, Case
from vidcm.evaluation.edit_scores import Pair, score
from vidcm.evaluation.environment import environment
from vidcm.evaluation.markdown import commit_of, grid
from vidcm.evaluation.protocol import Truth, describe_model, plain
from vidcm.files import write_text

if TYPE_CHECKING:
    from vidcm.pipeline import VideoPipeline

VERSION = 1
STEPS = 4  # of a student without phases
WINDOWS = 4  # along a clip
WAYS = ("windows", "pieces")


@dataclass(frozen=True)
class Row:
    """told: whether the prompt says what the clip shows. short: whether the frames come round one
    earlier than those that a window adds."""

    task: str
    told: bool = True
    short: bool = False

    @property
    def name(self) -> str:
        return self.task + ", no prompt" * (not self.told) + ", shorter cycle" * self.short


ROWS = (
    Row("inpaint"),
    Row("inpaint", short=True),
    Row("outpaint"),
    Row("colorize"),
    Row("colorize", told=False),
    Row("upscale"),
    Row("interpolate_frames"),
    Row("variation"),
    Row("denoise"),
)


def measure_long_edits(
    pipe: "VideoPipeline", truth: Truth, output: Path, *, name: str, overwrite: bool = False
) -> dict:
    """Edit clips of `WINDOWS` windows whole and in pieces of the trained length, and write to
    `output`; returns its content.

    Both ways: psnr, in dB, of what is filled in; step, the mean step to the next frame where pieces
    join and something is filled in, over the truth's there. Raises UsageError when the file
    exists."""
    if output.exists() and not overwrite:
        raise UsageError(f"{output} exists; give another name, or --overwrite")
    steps, length = pipe.settings["student"].get("phases", STEPS), truth.lpc.num_frames
    protocol = {"version": VERSION, "count": truth.count, "seed": truth.seed, "steps": steps}
    results: dict[str, Any] = {
        "protocol": protocol | {"piece": length, "frames": 1 + WINDOWS * (length - 1)},
        "model": describe_model(pipe, name),
        "environment": environment(pipe.device),
        "rows": {},
    }
    for row in tqdm(ROWS, unit="row", leave=False):
        results["rows"][row.name] = plain(_measure(pipe, truth, row, steps))
    write_text(output, json.dumps(results, indent=1) + "\n")
    return results


def _measure(pipe: "VideoPipeline", truth: Truth, row: Row, steps: int) -> dict:
    length = truth.lpc.num_frames
    psnr = {way: 0.0 for way in WAYS}
    joins = {way: np.zeros(2) for way in WAYS}
    for clip, caption, seed in zip(truth.frames.numpy(), truth.captions, truth.seeds, strict=True):
        case = CASES[row.task](come_round(clip, 1 + WINDOWS * (length - 1), row.short))
        asked = {"prompts": caption if row.told else "", "steps": steps, "seed": seed}
        for way, piece in zip(WAYS, (len(case.given), length), strict=True):
            frames = edit_pieces(pipe, case, piece, **asked)
            psnr[way] += (score(case, frames).psnr or 0.0) / truth.count
            joins[way] += joins_of(case, frames, length)
    return {way: {"psnr": psnr[way], "step": joins[way][0] / joins[way][1]} for way in WAYS}


def come_round(clip: np.ndarray, frames: int, short: bool) -> np.ndarray:
    """As many frames, uint8 `(t h w 3)`: the first, then the others over and over; where short,
    without the last."""
    return clip[[0, *(1 + i % (len(clip) - 1 - short) for i in range(frames - 1))]]


def edit_pieces(pipe: "VideoPipeline", case: Case, piece: int, **asked: Any) -> np.ndarray:
    """A case, uint8 `(t h w 3)`, in pieces of so many frames, the last perhaps of fewer, that are
    edited one by one; those of slow clips share the frame at which they meet."""
    (clip,), shared, found = case.clips, _shared(case), []
    given = 1 + (piece - 1) // case.spec["factor"] if shared else piece
    for start in range(0, len(clip) - shared, given - shared):
        part, spec = slice(start, start + given), dict(case.spec)
        if "mask" in spec:
            spec["mask"] = spec["mask"][part]
        made = pipe.edit(spec, [clip[part]], **asked).frames[0]
        found.append(made[min(start, shared) :])
    return np.concatenate(found)


def joins_of(case: Case, frames: np.ndarray, piece: int) -> Pair:
    """Mean steps of a result and of the truth where pieces of so many frames join, as far as one of
    both frames is filled in; where pieces share a frame, to it and from it."""
    assert case.truth is not None, "tasks along whole clips have a truth"
    shared = _shared(case)
    at = np.arange(piece - 1, len(frames) - 1, piece - shared)
    at = np.union1d(at, at - shared)
    filled = ~(case.kept[at] & case.kept[at + 1])
    made, true = (
        float(np.abs(c[at + 1].astype(int) - c[at])[filled].mean()) for c in (frames, case.truth)
    )
    return made, true


def _shared(case: Case) -> int:
    """Frames that pieces share. What lies between given frames needs both."""
    return int(case.spec["name"] == "interpolate_frames")


def table(results: dict) -> str:
    """Markdown: the rows, and how they were measured."""
    protocol, made = results["protocol"], results["environment"]
    commit = commit_of(made)
    head = ["", *(f"PSNR, {way}" for way in WAYS), *(f"step, {way}" for way in WAYS)]
    lines = [
        [name, *(f"{row[w]['psnr']:.1f}" for w in WAYS), *(f"{row[w]['step']:.2f}" for w in WAYS)]
        for name, row in results["rows"].items()
    ]
    added = protocol["piece"] - 1
    return (
        f"{grid(head, lines)}\n\n{protocol['count']} held-out clips of {protocol['frames']} "
        f"frames, seed {protocol['seed']}, full captions; {protocol['steps']} step(s), pieces of "
        f"{protocol['piece']} frames. True clips have {protocol['piece']}, so all but the first "
        f"come round every {added} frames, in a shorter cycle every {added - 1}. Model "
        f"{results['model']['name']}, commit {commit}; {made['cpu']}, {made['threads']} threads, "
        f"torch {made['torch']}.\n"
    )
