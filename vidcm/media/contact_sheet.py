"""Contact sheets: clips side by side in one picture."""

import os
import textwrap
from collections.abc import Sequence
from math import ceil
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from vidcm.arguments import integer
from vidcm.media.write import LARGEST, check_clip, enlarge, page, write_png

BACKGROUND = 32  # grey level of gutters and labels
INK = 224  # grey level of letters
GUTTER = 4  # pixels between clips and between rows, before scaling
FONT = 12  # pixels of letters, before scaling, for clips up to 127 pixels wide


def contact_sheet(
    rows: Sequence[Sequence[np.ndarray]],
    labels: Sequence[str] | None,
    path: str | os.PathLike[str],
    scale: int = 2,
    *,
    overwrite: bool = False,
) -> Path:
    """Write clips as one .png: each row holds clips, each clip its frames in a line.

    Args:
        rows: clips uint8 `(t h w 3)` of any size and length; a gutter separates them.
        labels: a text for each row, printed above it and wrapped.
        path: name of the .png file.
        scale: whole number by which everything is enlarged.
        overwrite: replace an existing file.

    Returns:
        The full path.

    Raises:
        UsageError, VidcmError: as `write_clip`.
        ValueError: rows and labels do not match, or an array is not a clip.
    """
    if not rows or not all(rows) or (labels is not None and len(labels) != len(rows)):
        lengths = [len(row) for row in rows]
        named = "no" if labels is None else len(labels)
        raise ValueError(
            f"got rows of {lengths} clips and {named} labels, expected at least one row, a clip "
            "in every row and a label for each row"
        )
    scale = integer("scale", scale, 1, LARGEST)
    bands = []
    for row, label in zip(rows, labels or [""] * len(rows), strict=True):
        for clip in row:
            check_clip(clip, (3,))
        band = _line_up([page(clip, len(clip)) for clip in row], axis=1, gap=GUTTER)
        zoom = max(1, row[0].shape[1] // 64)
        bands.append(_line_up([_label(label, band.shape[1], zoom), band], axis=0))
    sheet = enlarge(_line_up(bands, axis=0, gap=GUTTER), scale)
    return write_png(sheet, path, overwrite=overwrite)


def _line_up(images: Sequence[np.ndarray], axis: int, gap: int = 0) -> np.ndarray:
    """`(h w 3)` images in a line, downwards (axis 0) or across (1), on the background."""
    shape = [0, 0, 3]
    shape[axis] = sum(image.shape[axis] for image in images) + gap * (len(images) - 1)
    shape[1 - axis] = max(image.shape[1 - axis] for image in images)
    canvas = np.full(shape, BACKGROUND, np.uint8)
    start = 0
    for image in images:
        part = canvas[start:] if axis == 0 else canvas[:, start:]
        part[: image.shape[0], : image.shape[1]] = image
        start += image.shape[axis] + gap
    return canvas


def _label(text: str, width: int, zoom: int) -> np.ndarray:
    """Text in light grey, wrapped to about `width` pixels: `(h w 3)`, 0 high if there is none."""
    font = ImageFont.load_default(FONT * zoom)
    letter = font.getlength("n")
    lines = textwrap.wrap(text, max(16, int(width / letter)))
    right = max((ceil(font.getlength(line)) for line in lines), default=1)
    pitch = ceil(font.getbbox("|")[3]) + 1
    image = Image.new("RGB", (right, pitch * len(lines)), (BACKGROUND,) * 3)
    for i, line in enumerate(lines):
        ImageDraw.Draw(image).text((0, pitch * i), line, (INK,) * 3, font)
    return np.array(image).reshape(pitch * len(lines), right, 3)
