"""Frames to RGB as players show them: colour matrix, dynamic range, transparency."""

from __future__ import annotations

import av
import numpy as np
from av.video.reformatter import Colorspace, Interpolation

from vidcm.media import hdr
from vidcm.media.transforms import composite

HD_HEIGHT = 720  # from here on, players take the matrix of BT.709 where a file names none
UNSPECIFIED = 2  # matrix coefficients, Rec. ITU-T H.273 table 4


def to_rgb(frame: av.VideoFrame, side: int = 0) -> np.ndarray:
    """Convert a progressive frame to RGB of SDR, transparent parts on `BACKGROUND`.

    Args:
        frame: of any format.
        side: pixels; a frame of HDR, whose conversion takes long, is first reduced by a whole
            number so that it stays at least twice as high and wide. 0: it keeps its size.

    Returns:
        uint8 `(h w 3)`.
    """
    matrix = _matrix(frame)
    if hdr.needs_conversion(frame):
        n = max(1, min(frame.height, frame.width) // (2 * side)) if side else 1
        codes = frame.to_ndarray(
            format="rgb48le",
            width=frame.width // n,
            height=frame.height // n,
            interpolation=Interpolation.AREA if n > 1 else None,
            src_colorspace=matrix,
        )
        pixels = hdr.to_sdr(codes, frame.color_trc, frame.color_primaries)
        if not _has_alpha(frame):
            return pixels
        size = {"width": pixels.shape[1], "height": pixels.shape[0]}
        return composite(np.dstack([pixels, frame.to_ndarray(format="rgba", **size)[..., 3]]))
    if _has_alpha(frame):
        return composite(frame.to_ndarray(format="rgba", src_colorspace=matrix))
    return frame.to_ndarray(format="rgb24", src_colorspace=matrix)


def _matrix(frame: av.VideoFrame) -> Colorspace | None:
    """The colour matrix that a frame does not name; None to take FFmpeg's reading."""
    if frame.colorspace != UNSPECIFIED or frame.format.is_rgb:
        return None
    if hdr.needs_conversion(frame):
        return Colorspace.BT2020
    return Colorspace.ITU709 if frame.height >= HD_HEIGHT else None


def _has_alpha(frame: av.VideoFrame) -> bool:
    return frame.format.has_palette or any(part.is_alpha for part in frame.format.components)
