"""Shapes (buckets) that fit the videos that are there."""

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np

from vidcm.data.buckets import Shape, nearest_shape
from vidcm.media.read import VideoInfo
from vidcm.media.timing import END_SLACK_SECONDS

ASPECTS = {"9:16": 9 / 16, "3:4": 3 / 4, "1:1": 1.0, "4:3": 4 / 3, "16:9": 16 / 9, "21:9": 21 / 9}
RARE = 0.05  # share of the videos below which an aspect ratio gets no shape of its own
MULTIPLE = 8  # of height and width
MOST_FRAMES = 81
QUANTILES = (10, 50, 90)


def nearest_aspect(info: VideoInfo) -> str:
    """The usual aspect ratio, width to height, nearest to that of a video."""
    aspect = math.log(info.width / info.height)
    return min(ASPECTS, key=lambda name: abs(math.log(ASPECTS[name]) - aspect))


def distribution(infos: Sequence[VideoInfo]) -> dict[str, dict[str, float]]:
    """How many videos have each usual aspect ratio, and quantiles of their seconds.

    Args:
        infos: of the videos, at least one.
    """
    counts = Counter(map(nearest_aspect, infos))
    seconds = np.percentile([info.last_seconds for info in infos], QUANTILES)
    return {
        "aspects": {name: counts[name] for name in ASPECTS if counts[name]},
        "seconds": {f"p{q}": round(float(s), 3) for q, s in zip(QUANTILES, seconds, strict=True)},
    }


def suggest_shapes(infos: Sequence[VideoInfo], fps: float, area: int) -> dict[Shape, int]:
    """Shapes for videos, and how many of the videos each would get, most first.

    Each usual aspect ratio that is not rare has shapes of about the wanted area, of the frames that
    9 in 10 and that half of its videos are long enough for.

    Args:
        infos: of the videos, at least one.
        fps: frames per second of clips.
        area: pixels of a frame.
    """
    groups: dict[str, list[VideoInfo]] = {}
    for info in infos:
        groups.setdefault(nearest_aspect(info), []).append(info)
    shapes: dict[Shape, None] = {}
    for name, group in groups.items():
        if len(group) < RARE * len(infos):
            continue
        height = max(round(math.sqrt(area / ASPECTS[name]) / MULTIPLE), 1) * MULTIPLE
        width = max(round(math.sqrt(area * ASPECTS[name]) / MULTIPLE), 1) * MULTIPLE
        for seconds in np.percentile([info.last_seconds for info in group], QUANTILES[:2]):
            frames = int((seconds + END_SLACK_SECONDS) * fps) + 1
            shapes[(min((frames - 1) // 4 * 4 + 1, MOST_FRAMES), height, width)] = None
    found = Counter(nearest_shape(list(shapes), info, fps) for info in infos)
    return dict(found.most_common())
