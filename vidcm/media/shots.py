"""Shots of a video by PySceneDetect: where they begin and end, at every frame and by its time."""

from __future__ import annotations

import math
import os
import time
from typing import NamedTuple

from vidcm.errors import UsageError
from vidcm.media.demux import Timestamps, opened
from vidcm.media.media_file import BadClip, media_file
from vidcm.media.timed import timed

PIXELS = 256 * 144  # of the frames that are compared; PySceneDetect shrinks them likewise
NOMINAL_RATE = 25.0  # the detector counts frames; their times are ours


class Shot(NamedTuple):
    """Seconds of the first and the last frame of a shot."""

    first: float
    last: float


def find_shots(
    path: str | os.PathLike[str], threshold: float, *, deadline: float = 30.0
) -> list[Shot]:
    """The shots of a video: PySceneDetect's `ContentDetector` on every frame.

    A cut is where hue, saturation and brightness change by more than the threshold on average, from
    one frame to the next. Fades and dissolves are no cuts.

    Args:
        path: the file.
        threshold: of the change, 0 to 255; PySceneDetect's own default is 27.
        deadline: seconds for all of it.

    Raises:
        BadClip: the file cannot be read to its end.
        UsageError: the package is not installed.
    """
    try:
        from scenedetect import FrameTimecode
        from scenedetect.detectors import ContentDetector
    except ImportError:
        raise UsageError(
            "the filter shot_cuts needs the package scenedetect, not installed; "
            "pip install -e '.[filter]'"
        ) from None
    detector = ContentDetector(threshold, min_scene_len=1)
    media, stop = media_file(path), time.monotonic() + deadline
    with opened(media, stop) as source:
        first = source.first_frame()
        frames = timed(Timestamps(source, first), first, source.frames())
        shots: list[Shot] = []
        for number, (now, frame, _) in enumerate(frames):
            if frame.is_corrupt:
                raise BadClip(media.name, "decode-error", f"a damaged frame at {now:.3f} s")
            shrink = max(math.sqrt(frame.height * frame.width / PIXELS), 1.0)
            height, width = (max(round(n / shrink), 1) for n in (frame.height, frame.width))
            image = frame.to_ndarray(format="bgr24", width=width, height=height)
            cut = detector.process_frame(FrameTimecode(number, NOMINAL_RATE), image)
            if cut or not shots:
                shots.append(Shot(now, now))
            else:
                shots[-1] = Shot(shots[-1].first, now)
    return shots
