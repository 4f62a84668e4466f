"""Masks of an inpainting from what a user writes: a box, a colour, a picture or a clip."""

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np

from vidcm.errors import UsageError
from vidcm.media.load import SourceClip, load_clip, size_text
from vidcm.media.pictures import SUFFIXES
from vidcm.media.timing import SLACK_SECONDS

NEAR = 24  # grey levels by which each colour of a pixel may differ from a key colour


def load_mask(text: str, clip: SourceClip, fps: float, start: float = 0.0) -> np.ndarray:
    """Load the mask of an inpainting: True where pixels are to be filled.

    Args:
        text: as `drawn_mask` takes it, or the path of a picture, video or folder of pictures, white
            where to fill.
        clip: the clip that it belongs to.
        fps: frames per second of the clip.
        start: seconds that the clip skips, skipped in the mask too.

    Returns:
        bool `(t h w)` in the size of the clip; t is 1 or the length of the clip.

    Raises:
        UsageError: the text is none of these, or does not fit the clip.
        BadClip: the file cannot be read.
    """
    path = Path(text)
    if text.strip() and path.exists() and not _is_box(text):
        return mask_of_file(path, clip, fps, start, load_clip)
    return drawn_mask(text, clip, fps)


def mask_of_file(
    path: Path,
    clip: SourceClip,
    fps: float,
    start: float,
    load: Callable[[Path, float, int | None, float], SourceClip],
) -> np.ndarray:
    """The mask in a picture, video or folder of pictures; `load`: `load_clip`, or one like it."""
    still = path.suffix.lower() in SUFFIXES
    mask = load(path, fps, len(clip.frames), 0.0 if still else start)
    if mask.frames.shape[1:3] != clip.frames.shape[1:3]:
        raise UsageError(
            f"the mask {path} is {size_text(mask.frames)} and the clip {size_text(clip.frames)}; "
            "draw it in the clip's size"
        )
    if mask.total not in (1, clip.total):
        raise UsageError(
            f"the mask {path} has {mask.total} frames and the clip {clip.total} at {fps:g} a "
            "second; give one frame or as many"
        )
    return mask.frames.mean(-1) > 127


def drawn_mask(text: str, clip: SourceClip, fps: float) -> np.ndarray:
    """The mask that a text describes, without looking for a file.

    Args:
        text: `x,y,width,height` in pixels, or `x,y,width,height,from,to` with seconds; or a key
            colour `#rrggbb`.
        clip: as in `load_mask`.
        fps: as in `load_mask`.

    Raises:
        UsageError: the text is neither, or does not fit the clip.
    """
    if re.fullmatch(r"\s*#?[0-9a-fA-F]{6}\s*", text):
        return _key_mask(text.strip().lstrip("#"), clip)
    if _is_box(text):
        return _box_mask(text, clip, fps)
    raise UsageError(
        f"the mask {text!r} is no file, no x,y,width,height and no colour such as #ff00ff"
    )


def _is_box(text: str) -> bool:
    return "," in text and re.fullmatch(r"[-+\d.\s,]+", text) is not None


def _box_mask(text: str, clip: SourceClip, fps: float) -> np.ndarray:
    parts = [part.strip() for part in text.split(",")]
    try:
        box, span = [int(p) for p in parts[:4]], [float(p) for p in parts[4:]]
    except ValueError:
        box, span = [], []
    if len(box) != 4 or len(span) not in (0, 2):
        raise UsageError(
            f"the mask {text!r} is not a box; give x,y,width,height in whole pixels, or also "
            "from,to in seconds"
        )
    (x, y, width, height), (rows, columns) = box, clip.frames.shape[1:3]
    if min(x, y) < 0 or min(width, height) < 1 or x + width > columns or y + height > rows:
        raise UsageError(
            f"the mask {text} does not lie in the clip's {columns}x{rows} pixels; make x + width "
            "and y + height fit"
        )
    mask = np.zeros((len(clip.frames), rows, columns), bool)
    seconds = np.arange(len(mask)) / fps
    first, last = span or (0.0, np.inf)
    when = (seconds >= first - SLACK_SECONDS) & (seconds <= last + SLACK_SECONDS)
    if not when.any():
        raise UsageError(
            f"the mask {text} is for {first:g} to {last:g} s and the clip lasts from 0 to "
            f"{seconds[-1]:g} s; overlap them"
        )
    mask[when, y : y + height, x : x + width] = True
    return mask


def _key_mask(colour: str, clip: SourceClip) -> np.ndarray:
    key = np.array([int(colour[i : i + 2], 16) for i in (0, 2, 4)])
    spread = int(np.ptp(clip.frames.astype(np.int16), axis=-1).max())
    if spread <= NEAR < np.ptp(key) - NEAR:
        raise UsageError(
            f"the key colour #{colour} needs a clip in colour, and {clip} is grey; give a mask or "
            "a box"
        )
    mask = np.abs(clip.frames - key).max(-1) <= NEAR
    if not mask.any():
        raise UsageError(
            f"no pixel of {clip} is within {NEAR} grey levels of #{colour}; its first is "
            f"#{bytes(clip.frames[0, 0, 0]).hex()}; give the colour of the parts to fill"
        )
    return mask
