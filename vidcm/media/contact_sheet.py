"""Contact sheets: clips side by side in one picture, to look at."""

import os
import textwrap
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from vidcm.media.write import check_clip, check_positive, enlarge, page, write_png

BACKGROUND = 32  # grey level of gutters and labels
GUTTER = 4  # pixels between clips and between rows, before scaling


def contact_sheet(
    rows: Sequence[Sequence[np.ndarray]],
    labels: Sequence[str] | None,
    path: str | os.PathLike[str],
    scale: int = 2,
    *,
    overwrite: bool = False,
) -> Path:
    """Write clips as one .png to look at: each row holds clips, each clip its frames in a line.

    Clips are uint8 `(t h w 3)` and may differ in size and length; a gutter parts them. `labels`,
    one for each row, are printed above the rows in ASCII (another character becomes a box) and
    wrapped. `scale` enlarges everything. Errors as write_clip.
    """
    if not rows or not all(rows) or (labels is not None and len(labels) != len(rows)):
        lengths = [len(row) for row in rows]
        named = "no" if labels is None else len(labels)
        raise ValueError(
            f"got rows of {lengths} clips and {named} labels, expected at least one row, a clip "
            "in every row and a label for each row"
        )
    check_positive("scale", scale)
    bands = []
    for row, label in zip(rows, labels or [""] * len(rows), strict=True):
        for clip in row:
            check_clip(clip, (3,))
        band = _line_up([page(clip, len(clip)) for clip in row], axis=1, gap=GUTTER)
        zoom = max(1, row[0].shape[1] // 64)
        wrapped = textwrap.wrap(label, max(16, band.shape[1] // (6 * zoom)))
        bands.append(_line_up([*(_print(line, zoom) for line in wrapped), band], axis=0))
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


# A letter is five columns from the left, a byte each, lowest bit on top: " " to "~", then a box.
_FONT = bytes.fromhex(
    "000000000000005f00000007000700147f147f14242a7f2a12631308646336495522500004030000001c224100"
    "0041221c0014083e081408083e080800503000000808080808006060000060100804033e5149453e00427f4000"
    "62514949462141454b311814127f1027454545393c4a49493001710905033649494936064949291e0036360000"
    "005636000008142241001414141414004122140802015109063e415d551e7e0909097e7f494949363e41414122"
    "7f4141413e7f494949417f090909013e4149497a7f0808087f00417f41002040413f017f081422417f40404040"
    "7f020c027f7f0204087f3e4141413e7f090909063e4151215e7f09192946464949493101017f01013f4040403f"
    "0f3040300f7f2018207f63140814630304780403615149454300007f4141030408106041417f00000402010204"
    "4040404040000102040020545454787f444444383844444400384444447f3854545418087e0909000c5252523e"
    "7f0404047800447d40002040443d007f1028440000417f40007c047804787c0404047838444444387c14141408"
    "081414147c7c080404004854545424043f4444003c4040407c1c2040201c3c4030403c44281028440c5050503c"
    "4464544c44000836414100007f0000414136080008040408087f4141417f"
)


def _print(line: str, zoom: int) -> np.ndarray:
    """A line of text in light grey as an image `(8 zoom, 6 zoom len(line), 3)`."""
    letters = [ord(char) - 32 if " " <= char <= "~" else 95 for char in line]
    columns = np.pad(np.frombuffer(_FONT, np.uint8).reshape(96, 5), ((0, 0), (0, 1)))[letters]
    ink = np.unpackbits(columns.reshape(-1, 1), axis=1, bitorder="little").T
    return enlarge(np.where(ink[..., None], 224, BACKGROUND).repeat(3, 2).astype(np.uint8), zoom)
