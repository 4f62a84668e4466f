"""Times of the frames of a clip, in seconds, since the frame rates of headers are unreliable.

A video is as long as it is shown: a frame stays until the next one, and the last frame for
`hold_seconds`. Every time from 0 to that end, the end included, has a frame. So 9 frames at 8 a
second, which are 1 s apart from first to last, fit a video that is shown for 1 s.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from vidcm.errors import UsageError
from vidcm.media.sizes import check_frames

if TYPE_CHECKING:
    import torch

SLACK_SECONDS = 1e-6  # timestamps are whole ticks; sums of 1/fps are not
END_SLACK_SECONDS = 2e-3  # at the end, time and duration are each rounded, in Matroska to 1 ms


def hold_seconds(duration: float, interval: float) -> float:
    """Seconds for which the last frame of a video is shown.

    Args:
        duration: of the frame or its packet in seconds, 0 if the file does not say.
        interval: seconds since the frame before it, 0 if there is none.

    Returns:
        The duration, otherwise the interval; not less than half the interval, so that the last
        frame reaches as far as the nearest of two frames does.
    """
    return max(duration if duration > 0 else interval, interval / 2)


def clip_seconds(num_frames: int, fps: float) -> float:
    """Seconds from the first to the last frame of a clip. Raises UsageError if fps <= 0."""
    if not (np.isfinite(fps) and fps > 0):
        raise UsageError(f"fps is {fps}, expected a number above 0 such as 16")
    return (check_frames(num_frames) - 1) / fps


def frame_times(num_frames: int, fps: float, start: float = 0.0) -> np.ndarray:
    """Times of the frames of a clip: float64 `(t,)`, seconds from the first frame of the video."""
    clip_seconds(num_frames, fps)
    return start + np.arange(num_frames, dtype=np.float64) / fps


def nearest(stamps: np.ndarray, times: np.ndarray, duration: float = 0.0) -> np.ndarray:
    """Index of the frame nearest to each time, the earlier of two equally near.

    Args:
        stamps: times of the frames `(n,)` in seconds, strictly increasing.
        times: `(t,)` in seconds, not decreasing.
        duration: of the last frame in seconds, 0 if unknown.

    Returns:
        `(t,)`; before the last frame, the error is at most half the interval between two.

    Raises:
        ValueError: a time is later than the end of the last frame.
    """
    hold = hold_seconds(duration, stamps[-1] - stamps[-2] if len(stamps) > 1 else 0.0)
    if len(times) and times[-1] > stamps[-1] + hold + END_SLACK_SECONDS:
        raise ValueError(f"wanted {times[-1]:.3f} s, the last frame is at {stamps[-1]:.3f} s")
    right = np.searchsorted(stamps, times).clip(max=len(stamps) - 1)
    left = (right - 1).clip(min=0)
    return np.where(times - stamps[left] <= stamps[right] - times + SLACK_SECONDS, left, right)


def random_start(last_seconds: float, num_frames: int, fps: float, rng: torch.Generator) -> float:
    """A uniformly drawn start at which a clip ends by `last_seconds`; 0 if there is none."""
    import torch

    draw = torch.rand((), generator=rng, dtype=torch.float64).item()
    return draw * max(0.0, last_seconds - clip_seconds(num_frames, fps))
