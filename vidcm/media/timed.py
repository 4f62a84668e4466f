"""Decoded frames with their seconds, and the choice of those nearest to some times."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import av
import numpy as np

from vidcm.media.demux import Source, Timestamps
from vidcm.media.media_file import BadClip
from vidcm.media.timing import END_SLACK_SECONDS, SLACK_SECONDS, hold_seconds


class TimedFrame(NamedTuple):
    """A frame, its second, and its duration in seconds (0 if the file does not say)."""

    seconds: float
    frame: av.VideoFrame
    duration: float


def timed(
    stamps: Timestamps, first: av.VideoFrame, rest: Iterator[av.VideoFrame]
) -> Iterator[TimedFrame]:
    """Frames with their seconds, which strictly increase."""
    last = stamps.of_frame(first)
    yield TimedFrame(last, first, stamps.duration(first))
    for frame in rest:
        now = stamps.of_frame(frame)
        if now < last:
            detail = f"timestamps fall from {last:.3f} to {now:.3f} s"
            raise BadClip(stamps.file, "decode-error", detail)
        if now > last:  # of frames with the same timestamp a player shows one
            yield TimedFrame(now, frame, stamps.duration(frame))
        last = now


def nearest_streaming(
    source: Source, frames: Iterator[TimedFrame], times: np.ndarray
) -> Iterator[TimedFrame]:
    """`timing.nearest` on a stream: one item per time, two frames in memory."""
    last, interval = next(frames), 0.0
    i = int(np.searchsorted(times, last.seconds, side="right"))
    yield from [last] * i
    while i < len(times):  # no frame is decoded that no time needs: it may be damaged
        following = next(frames, None)
        if following is None:
            break
        middle = (last.seconds + following.seconds) / 2 + SLACK_SECONDS / 2
        while i < len(times) and times[i] <= following.seconds:
            yield last if times[i] <= middle else following
            i += 1
        interval = following.seconds - last.seconds
        last = following
    end = last.seconds + hold_seconds(last.duration, interval)
    for wanted in times[i:]:
        if wanted > end + END_SLACK_SECONDS:
            detail = f"wanted {wanted:.3f} s, the last frame is shown until {end:.3f} s"
            raise source.short(detail)
        yield last
