"""Scores of an edit: how true it is, what it keeps, and how it joins and moves.

Seam, flicker and motion are pairs: the mean change in the result where something was filled in, and
the same in the true clip. Their ratio over many clips is right at 1.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from vidcm.editing.operators import luminance
from vidcm.evaluation.edit_cases import NUM_INTERPOLATED, Case
from vidcm.lpc.adherence import Questions
from vidcm.metrics import fidelity

Pair = tuple[float, float]


@dataclass(frozen=True)
class EditScore:
    """Scores of one edit; None for what does not apply.

    Attributes:
        psnr: in dB, over the pixels that are filled in.
        ssim: over the frames that contain such pixels.
        kept: largest error in grey levels of pixels that must stay.
        seam: steps between neighbours in time or space of which one is given and the other filled
            in. Of a loop, the step from its end to its beginning, and the steps beside it. Of an
            interpolation between clips, its longest step, and their mean.
        flicker: second differences along time.
        motion: first differences along time.
        path: of an interpolation between clips, its length over the distance of its ends.
    """

    psnr: float | None
    ssim: float | None
    kept: float | None
    seam: Pair | None
    flicker: Pair | None
    motion: Pair | None
    path: float | None = None


def score_edit(case: Case, frames: np.ndarray) -> EditScore:
    """Score a result or a baseline of a case, uint8 `(t h w 3)`."""
    truth = case.truth
    return EditScore(
        None if truth is None else _psnr(frames, truth, case.kept),
        None if truth is None else _ssim(frames, truth, case.kept),
        _largest_error(frames, case),
        _seam(frames, case),
        _changes(frames, case, 2),
        _changes(frames, case, 1),
        _interpolation_steps(frames)[1] if case.spec["name"] == "interpolate" else None,
    )


def summarize_scores(scores: Sequence[EditScore]) -> dict[str, Any]:
    """Over many edits: the worst of `kept`, ratios of mean changes, means of the others."""
    found: dict[str, Any] = {
        name: _mean(getattr(s, name) for s in scores) for name in ("psnr", "ssim", "path")
    }
    errors = [s.kept for s in scores if s.kept is not None]
    found["kept"] = max(errors) if errors else None
    for name in ("seam", "flicker", "motion"):
        found[name] = _ratio(getattr(s, name) for s in scores)
    return found


def questions_on_filled(questions: Questions, case: Case) -> Questions:
    """A clip's questions, restricted to the pixels that are filled in; none without a true clip."""
    if case.truth is None:
        return {}
    filled, found = ~case.kept.ravel(), {}
    for name, question in questions.items():
        inside = question.positions < len(filled)  # positions are numbered frame by frame
        inside[inside] = filled[question.positions[inside]]
        if inside.any() and (question.pixels[:, inside] != question.pixels[:1, inside]).any():
            positions, pixels = question.positions[inside], question.pixels[:, inside]
            found[name] = replace(question, positions=positions, pixels=pixels)
    return found


def _psnr(frames: np.ndarray, truth: np.ndarray, kept: np.ndarray) -> float:
    clip, true, filled = (torch.tensor(v)[None] for v in (frames, truth, ~kept[..., None]))
    return float(fidelity.psnr(clip, true, mask=filled))


def _ssim(frames: np.ndarray, truth: np.ndarray, kept: np.ndarray) -> float:
    part = (~kept).any((1, 2))
    one, two = (torch.from_numpy(clip[part])[None] for clip in (frames, truth))
    return float(fidelity.ssim(one, two)[0])


def _largest_error(frames: np.ndarray, case: Case) -> float | None:
    """Of what the task must keep: pixels, luminance or block means."""
    match case.spec["name"]:
        case "colorize":
            error = luminance(torch.from_numpy(frames)).numpy().astype(int) - case.clips[0][..., 0]
        case "upscale":
            small, n = case.clips[0], case.spec["factor"]
            blocks = frames.reshape(len(small), small.shape[1], n, small.shape[2], n, 3)
            error = blocks.mean((2, 4)) - small
        case _:
            kept = case.kept[: len(frames)]
            if not kept.any():
                return None
            error = (frames.astype(int) - case.given[: len(frames)])[kept]
    return float(np.abs(error).max())


def _seam(frames: np.ndarray, case: Case) -> Pair | None:
    if case.spec["name"] == "interpolate":
        return _interpolation_steps(frames)[0]
    if case.periodic:
        steps = np.abs(np.diff(_wrapped(frames, case, 1).astype(int), axis=0)).mean((1, 2, 3))
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
    """Mean absolute differences of an order along time, where any of their frames is filled in.

    The reference of a loop around a clip is that clip, of an interpolation its two ends.
    """
    if case.spec["name"] == "interpolate":
        clips = frames.reshape(NUM_INTERPOLATED, -1, *frames.shape[1:]).astype(int)
        changes = np.abs(np.diff(clips, order, 1))
        return float(changes[1:-1].mean()), float(changes[[0, -1]].mean())
    truth = case.clips[0] if case.truth is None else case.truth
    if len(truth) <= order:
        return None
    found = np.abs(np.diff(_wrapped(frames, case, order).astype(int), order, 0))
    true = np.abs(np.diff(truth.astype(int), order, 0))
    if case.periodic:
        return float(found.mean()), float(true.mean())
    filled = np.lib.stride_tricks.sliding_window_view(~case.kept, order + 1, 0).any(-1)
    return float(found[filled].mean()), float(true[filled].mean())


def _wrapped(frames: np.ndarray, case: Case, order: int) -> np.ndarray:
    """A loop followed by its first frames; other clips as they are."""
    return np.concatenate([frames, frames[:order]]) if case.periodic else frames


def _interpolation_steps(frames: np.ndarray) -> tuple[Pair, float]:
    """Longest and mean step from clip to clip, and their sum over the distance of the ends."""
    clips = frames.reshape(NUM_INTERPOLATED, -1).astype(float)
    steps = np.sqrt(np.square(np.diff(clips, axis=0)).mean(1))
    direct = np.sqrt(np.square(clips[-1] - clips[0]).mean())
    return (float(steps.max()), float(steps.mean())), float(steps.sum() / max(direct, 1e-9))


def _mean(values: Iterable[float | None]) -> float | None:
    known = [v for v in values if v is not None]
    return float(np.mean(known)) if known else None


def _ratio(pairs: Iterable[Pair | None]) -> float | None:
    known = [p for p in pairs if p is not None]
    found, true = (sum(p[i] for p in known) for i in (0, 1))
    return found / true if true else None
