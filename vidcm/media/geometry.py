"""Frames as they are shown: square pixels, upright."""

from __future__ import annotations

from fractions import Fraction

import av
import numpy as np
from PIL import Image

from vidcm.media.media_file import BadClip

# Encoders write 640:639 for a width rounded to 426; scaling that by a pixel would only blur.
NEARLY_SQUARE = Fraction(1, 100)


def square_size(height: int, width: int, aspect: Fraction | None) -> tuple[int, int]:
    """Height and width with square pixels; one of them grows and none shrinks.

    Args:
        height: stored rows.
        width: stored columns.
        aspect: width of a stored pixel over its height (sample aspect ratio); None, and values
            within 1 % of 1, mean square ones.
    """
    if not aspect or aspect <= 0 or abs(aspect - 1) < NEARLY_SQUARE:
        return height, width
    if aspect > 1:
        return height, round(width * aspect)
    return round(height / aspect), width


def square(pixels: np.ndarray, aspect: Fraction | None) -> np.ndarray:
    """Scale uint8 `(h w 3)` to square pixels, see `square_size`."""
    height, width = square_size(pixels.shape[0], pixels.shape[1], aspect)
    if (height, width) == pixels.shape[:2]:
        return pixels
    image = Image.fromarray(np.ascontiguousarray(pixels))
    return np.asarray(image.resize((width, height), Image.Resampling.BILINEAR))


def upright(file: str, frame: av.VideoFrame, pixels: np.ndarray) -> np.ndarray:
    """Apply the display matrix of `frame` (quarter turns and mirrorings) to `(h w c)` pixels.

    Raises:
        BadClip: the matrix is no such turn.
    """
    try:
        data = frame.side_data.get("DISPLAYMATRIX")
    except ValueError:  # PyAV refuses all side data of a frame that has a kind it does not know
        return _turned(file, pixels, frame.rotation)
    if data is None:
        return pixels
    # x' = a x + c y, y' = b x + d y with y downwards, ISO/IEC 14496-12 section 8.3.2
    a, b, c, d = (int(np.sign(np.frombuffer(bytes(data), "<i4")[i])) for i in (0, 1, 3, 4))
    if not (a or b or c or d):  # an empty matrix
        return pixels
    if bool(a and d) == bool(b and c) or bool(a) != bool(d) or bool(b) != bool(c):
        raise _tilted(file)
    if b:
        pixels, a, d = pixels.swapaxes(0, 1), c, b
    return pixels[:: d or 1, :: a or 1]


def _turned(file: str, pixels: np.ndarray, degrees: int) -> np.ndarray:
    """Turn pixels counterclockwise; a mirroring is not known here."""
    turns, rest = divmod(degrees, 90)
    if rest:
        raise _tilted(file)
    return np.rot90(pixels, turns)


def _tilted(file: str) -> BadClip:
    return BadClip(file, "unreadable", "its display matrix is not made of quarter turns")
