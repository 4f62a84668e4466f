"""How much moves: few-step students lose motion before they lose anything else."""

from dataclasses import dataclass

import numpy as np
from torch import Tensor

VERSION = 1


def motion(frames: Tensor) -> np.ndarray:
    """Mean absolute difference between neighbouring frames of each clip, in grey levels.

    Args:
        frames: uint8 `(b t h w c)`.

    Returns:
        float64 `(b,)` in 0..255; 0 for clips of one frame.
    """
    if frames.shape[1] < 2:
        return np.zeros(len(frames))
    return np.array([float(clip.int().diff(dim=0).abs().double().mean()) for clip in frames])


@dataclass(frozen=True)
class MotionRatio:
    """Generated motion over true motion.

    Attributes:
        per_clip: ratio of each clip, nan where the true clip stands still.
        overall: ratio of the means, nan when no true clip moves. Unlike the mean of the ratios,
            clips that hardly move do not dominate it.
        still: number of true clips that stand still.
    """

    per_clip: np.ndarray
    overall: float
    still: int


def motion_ratio(generated: np.ndarray, true: np.ndarray) -> MotionRatio:
    """Ratio of two results of `motion` for clips in the same order.

    1 is right; below 1 is frozen; above 1 is restless (flicker counts as motion).
    """
    moves = true > 0
    per_clip = np.divide(generated, true, out=np.full(len(true), np.nan), where=moves)
    overall = float(generated.mean() / true.mean()) if moves.any() else float("nan")
    return MotionRatio(per_clip, overall, int((~moves).sum()))
