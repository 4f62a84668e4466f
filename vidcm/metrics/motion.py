"""How much moves: few-step students lose motion before they lose anything else."""

from dataclasses import dataclass

import numpy as np
from torch import Tensor

VERSION = 1


def motion(frames: Tensor) -> np.ndarray:
    """Mean absolute difference between neighbouring frames, in grey levels (0..255): uint8
    `(b t h w c)` -> float64 `(b,)`; 0 for clips of one frame."""
    if frames.shape[1] < 2:
        return np.zeros(len(frames))
    return np.array([float(clip.int().diff(dim=0).abs().double().mean()) for clip in frames])


@dataclass(frozen=True)
class MotionRatio:
    """per_clip: generated over true motion, nan where the truth stands still. overall: the ratio
    of the means (nan when no true clip moves); unlike the mean of ratios it is not ruled by clips
    that hardly move. still: how many true clips stand still."""

    per_clip: np.ndarray
    overall: float
    still: int


def motion_ratio(generated: np.ndarray, true: np.ndarray) -> MotionRatio:
    """The ratio of two `motion(...)` of clips in the same order. 1 is right; below, frozen; above,
    restless (flicker counts as motion)."""
    moves = true > 0
    per_clip = np.divide(generated, true, out=np.full(len(true), np.nan), where=moves)
    overall = float(generated.mean() / true.mean()) if moves.any() else float("nan")
    return MotionRatio(per_clip, overall, int((~moves).sum()))
