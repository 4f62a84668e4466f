"""Which frames of a video make a clip: times in seconds, never indices of a claimed frame rate."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from vidcm.errors import UsageError
from vidcm.media.sizes import check_frames

if TYPE_CHECKING:
    import torch

SLACK_SECONDS = 1e-6  # timestamps are whole ticks; sums of 1/fps are not


def clip_seconds(num_frames: int, fps: float) -> float:
    """Seconds from the first to the last frame of a clip. Raises UsageError if fps <= 0."""
    if not (np.isfinite(fps) and fps > 0):
        raise UsageError(f"fps is {fps}, expected a number above 0 such as 16")
    return (check_frames(num_frames) - 1) / fps


def frame_times(num_frames: int, fps: float, start: float = 0.0) -> np.ndarray:
    """Wanted times of a clip: `(t,)` float64 seconds from the video's first frame."""
    clip_seconds(num_frames, fps)
    return start + np.arange(num_frames, dtype=np.float64) / fps


def nearest(stamps: np.ndarray, times: np.ndarray) -> np.ndarray:
    """Index into `stamps` of the frame nearest to each time, the earlier one of a tie.

    stamps: `(n,)` seconds, strictly increasing; times: `(t,)` seconds, not decreasing. So the
    error is at most half a source frame. The last frame reaches half its interval further;
    raises ValueError if a time lies beyond that.
    """
    half = (stamps[-1] - stamps[-2]) / 2 if len(stamps) > 1 else 0.0
    if len(times) and times[-1] > stamps[-1] + half + SLACK_SECONDS:
        raise ValueError(f"wanted {times[-1]:.3f} s, the last frame is at {stamps[-1]:.3f} s")
    right = np.searchsorted(stamps, times).clip(max=len(stamps) - 1)
    left = (right - 1).clip(min=0)
    return np.where(times - stamps[left] <= stamps[right] - times + SLACK_SECONDS, left, right)


def random_start(last_seconds: float, num_frames: int, fps: float, rng: torch.Generator) -> float:
    """A start second drawn evenly from all that let the clip fit (0 if none does)."""
    import torch

    draw = torch.rand((), generator=rng, dtype=torch.float64).item()
    return draw * max(0.0, last_seconds - clip_seconds(num_frames, fps))
