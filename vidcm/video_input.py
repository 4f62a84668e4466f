"""The Python API: files to clips for `VideoPipeline.edit`."""

import os
from pathlib import Path

import numpy as np

from vidcm.arguments import SYNONYMS, checked_names, real_number
from vidcm.arguments import path as path_of
from vidcm.errors import UsageError
from vidcm.inputs import check_size
from vidcm.limits import check_memory
from vidcm.media.fit import fit
from vidcm.media.load import load_clip
from vidcm.pipeline import VideoPipeline
from vidcm.settings import MAX_FPS, MAX_SECONDS


@checked_names(SYNONYMS | {"pipeline": "pipe"})
def load_video(
    path: str | os.PathLike[str],
    pipe: VideoPipeline,
    *,
    num_frames: int | None = None,
    height: int | None = None,
    width: int | None = None,
    fps: float | None = None,
    start: float = 0.0,
) -> np.ndarray:
    """Read a video, a picture or a folder of pictures as a clip for `pipe.edit`.

    Args:
        path: The file or folder.
        pipe: The pipeline whose frame rate and size the clip gets, scaled and cut at the centre.
        num_frames: At most so many (default: all).
        height: Of the clip (default: the pipeline's); tasks as upscale take smaller clips.
        width: Of the clip (default: the pipeline's).
        fps: Frames per second to take (default: the pipeline's).
        start: Seconds to leave out at the beginning.

    Returns:
        uint8 `(t, h, w, 3)`.

    Raises:
        UsageError: There is no such file, it has no frame after `start`, or a number is out of
            range.
        BadClip: It cannot be read.
    """
    if not isinstance(pipe, VideoPipeline):
        raise UsageError(f"pipe is a {type(pipe).__name__}; give the VideoPipeline to edit with")
    own = pipe.settings
    num_frames, height, width = check_size(num_frames, height, width)
    rate = own.fps if fps is None else real_number("fps", fps, 0.01, MAX_FPS)
    start = real_number("start", start, 0, MAX_SECONDS)
    source = load_clip(Path(path_of("path", path)), rate, num_frames, start)
    check_memory(1, len(source.frames), height or own.height, width or own.width)
    return fit(source.frames, (height or own.height, width or own.width))
