"""Shapes of clips (frames, height, width), and which of them a video or picture gets."""

import math
from collections.abc import Sequence

from vidcm.errors import UsageError
from vidcm.media.read import VideoInfo
from vidcm.media.timing import END_SLACK_SECONDS, clip_seconds

Shape = tuple[int, int, int]


def checked_shapes(first: Shape, buckets: Sequence[Sequence[int]], fps: float) -> list[Shape]:
    """All shapes, each checked and different. Raises UsageError."""
    shapes = [first]
    for bucket in buckets:
        if len(bucket) != 3 or min(bucket) < 1 or tuple(bucket) in shapes:
            raise UsageError(
                f"the bucket {list(bucket)} is no further shape; write [num_frames, height, width]"
            )
        clip_seconds(bucket[0], fps)
        shapes.append((bucket[0], bucket[1], bucket[2]))
    return shapes


def nearest_shape(shapes: Sequence[Shape], info: VideoInfo, fps: float) -> Shape:
    """Among the shapes short enough for a video, the nearest in aspect, then longest, then largest.

    Shapes of one frame are for pictures, which last 0 seconds, and for videos that are too short
    for others. A video too short for all gets one of the shortest, and is quarantined when it is
    read.
    """
    fits = [s for s in shapes if clip_seconds(s[0], fps) <= info.last_seconds + END_SLACK_SECONDS]
    fits = [s for s in fits if s[0] > 1] or fits
    shortest = min(s[0] for s in shapes)
    aspect = math.log(info.width / info.height)

    def key(shape: Shape) -> tuple[float, int, int]:
        frames, height, width = shape
        return round(abs(math.log(width / height) - aspect), 6), -frames, -height

    return min(fits or [s for s in shapes if s[0] == shortest], key=key)
