"""What is measured of an edit: how true it is, what it keeps, and how it joins and moves.

Seam, flicker and motion are pairs: the mean change in the result where something was filled in, and
the same in the truth. Their ratio over many clips is right at 1.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from vidcm.editing.operators import luminance
from vidcm.evaluation.edit_cases import WAY, Case
from vidcm.lpc import adherence
from vidcm.metrics import fidelity

Pair = tuple[float, float]


@dataclass(frozen=True)
class Score:
    """Of one edit; None for what does not apply.

    psnr: in dB, of what is filled in. ssim: of the frames that hold any of it. kept: the largest
    error in grey levels of what must stay. seam: steps between neighbours in time or space of which
    one is given and the other filled in; of a loop the step from its end to its beginning, over
    those beside it; of a way between clips its longest step, over their mean. flicker, motion:
    second and first differences along time. path: of a way, its length over the distance between
    its ends."""

    psnr: float | None
    ssim: float | None
    kept: float | None
    seam: Pair | None
    flicker: Pair | None
    motion: Pair | None
    path: float | None = None


def score(case: Case, frames: np.ndarray) -> Score:
    """frames: uint8 `(t h w 3)`, a result of the case or one of its baselines."""
    truth = case.truth
    return Score(
        None if truth is None else _psnr(frames, truth, case.kept),
        None if truth is None else _ssim(frames, truth, case.kept),
        _off(frames, case),
        _seam(frames, case),
        _changes(frames, case, 2),
        _changes(frames, case, 1),
        _way(frames)[1] if case.spec["name"] == "interpolate" else None,
    )


def summary(scores: Sequence[Score]) -> dict[str, Any]:
    """Of many edits of a kind: the worst of `kept`, ratios of the mean changes, else means."""
    found: dict[str, Any] = {
        name: _mean(getattr(s, name) for s in scores) for name in ("psnr", "ssim", "path")
    }
    off = [s.kept for s in scores if s.kept is not None]
    found["kept"] = max(off) if off else None
    for name in ("seam", "flicker", "motion"):
        found[name] = _ratio(getattr(s, name) for s in scores)
    return found


def about_filled(exam: adherence.Exam, case: Case) -> adherence.Exam:
    """The questions of a true clip's exam about what is filled in of it; none without a truth."""
    if case.truth is None:
        return {}
    free, asked = ~case.kept.ravel(), {}
    for name, question in exam.items():
        here = question.where < len(free)  # places are numbered frame by frame
        here[here] = free[question.where[here]]
        if here.any() and (question.shown[:, here] != question.shown[:1, here]).any():
            asked[name] = replace(
                question, where=question.where[here], shown=question.shown[:, here]
            )
    return asked


def _psnr(frames: np.ndarray, truth: np.ndarray, kept: np.ndarray) -> float:
    clip, true, filled = (torch.tensor(v)[None] for v in (frames, truth, ~kept[..., None]))
    return float(fidelity.psnr(clip, true, mask=filled))


def _ssim(frames: np.ndarray, truth: np.ndarray, kept: np.ndarray) -> float:
    part = (~kept).any((1, 2))
    one, two = (torch.from_numpy(clip[part])[None] for clip in (frames, truth))
    return float(fidelity.ssim(one, two)[0])


def _off(frames: np.ndarray, case: Case) -> float | None:
    match case.spec["name"]:
        case "colorize":
            off = luminance(torch.from_numpy(frames)).numpy().astype(int) - case.clips[0][..., 0]
        case "upscale":
            small, n = case.clips[0], case.spec["factor"]
            blocks = frames.reshape(len(small), small.shape[1], n, small.shape[2], n, 3)
            off = blocks.mean((2, 4)) - small
        case _:
            kept = case.kept[: len(frames)]
            if not kept.any():
                return None
            off = (frames.astype(int) - case.given[: len(frames)])[kept]
    return float(np.abs(off).max())


def _seam(frames: np.ndarray, case: Case) -> Pair | None:
    if case.spec["name"] == "interpolate":
        return _way(frames)[0]
    if case.ring:
        steps = np.abs(np.diff(_closed(frames, case, 1).astype(int), axis=0)).mean((1, 2, 3))
        return float(steps[-1]), float((steps[0] + steps[-2]) / 2)
    if case.truth is None or not case.kept.any():
        return None
    pair = np.zeros(2)
    for axis in range(3):
        edge = np.diff(case.kept, axis=axis)
        clips = (frames, case.truth)
        pair += [np.abs(np.diff(c.astype(int), axis=axis))[edge].sum() for c in clips]
    return float(pair[0]), float(pair[1])


def _changes(frames: np.ndarray, case: Case, order: int) -> Pair | None:
    """Mean absolute differences of an order along time, where any frame they reach is filled in.
    Of a loop round a clip those of the clip are right, of a way those of its ends."""
    if case.spec["name"] == "interpolate":
        clips = np.abs(np.diff(frames.reshape(WAY, -1, *frames.shape[1:]).astype(int), order, 1))
        return float(clips[1:-1].mean()), float(clips[[0, -1]].mean())
    truth = case.clips[0] if case.truth is None else case.truth
    if len(truth) <= order:
        return None
    made = np.abs(np.diff(_closed(frames, case, order).astype(int), order, 0))
    true = np.abs(np.diff(truth.astype(int), order, 0))
    if case.ring:
        return float(made.mean()), float(true.mean())
    reached = np.lib.stride_tricks.sliding_window_view(~case.kept, order + 1, 0).any(-1)
    return float(made[reached].mean()), float(true[reached].mean())


def _closed(frames: np.ndarray, case: Case, order: int) -> np.ndarray:
    """A loop, and its beginning again."""
    return np.concatenate([frames, frames[:order]]) if case.ring else frames


def _way(frames: np.ndarray) -> tuple[Pair, float]:
    """Longest and mean step of a way of clips, and its length over the distance of its ends."""
    clips = frames.reshape(WAY, -1).astype(float)
    steps = np.sqrt(np.square(np.diff(clips, axis=0)).mean(1))
    direct = np.sqrt(np.square(clips[-1] - clips[0]).mean())
    return (float(steps.max()), float(steps.mean())), float(steps.sum() / max(direct, 1e-9))


def _mean(values: Iterable[float | None]) -> float | None:
    known = [v for v in values if v is not None]
    return float(np.mean(known)) if known else None


def _ratio(pairs: Iterable[Pair | None]) -> float | None:
    known = [p for p in pairs if p is not None]
    made, true = (sum(p[i] for p in known) for i in (0, 1))
    return made / true if true else None
