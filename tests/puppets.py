"""A puppet theatre: the LPC task over drawn-on-the-spot sheets and a small vocabulary, no art."""

import zlib
from collections.abc import Iterator, Sequence
from copy import deepcopy
from pathlib import Path

import numpy as np

from vidcm.lpc.combinations import vocabulary
from vidcm.lpc.dataset import CELL, LPC, ROWS

KEEP = {
    "skin": ["light", "dark", "orc"],
    "hair": ["plain", "mohawk", "xlong"],
    "hair_color": ["black", "blonde", "pink"],
    "torso": ["brown_shirt", "plate", "red_dress"],
    "legs": ["red_pants", "steel_greaves"],
    "feet": ["barefoot", "gold_boots"],
}
BANDS = {"body": (14, 52), "hair": (10, 18), "torso": (26, 38), "legs": (38, 46), "feet": (46, 52)}


class Puppets:
    """Sheets in which every layer is a moving rectangle, coloured by the file's name."""

    def load(self, names: Sequence[str]) -> Iterator[np.ndarray]:
        return map(self.draw, names)

    def draw(self, name: str) -> np.ndarray:
        kind, *_, style, _ = name.split("/")
        top, bottom = BANDS[kind]
        left, right = 25, 39
        if kind == "hair":
            left, bottom = (
                (28, 24) if style == "xlong" else (31, 18) if style == "mohawk" else (25, 18)
            )
        if "dress" in name:
            bottom = 46  # hides the legs
        color = zlib.crc32(name.split("/")[-1].encode()).to_bytes(4, "big")[:3]
        sheet = np.zeros((ROWS, 13, CELL, CELL, 4), np.uint8)
        for row in range(ROWS):
            for frame in range(13):
                x = (row * 7 + frame * (1 + row % 4)) % 19 - 9
                y = (frame * (1 + row // 4)) % 7 - 3
                sheet[row, frame, top + y : bottom + y, left + x : right + x] = (*color, 255)
        return sheet


def small(lpc: LPC) -> LPC:
    """The same with a few values of each attribute, so that its sheets load fast."""
    lpc.words = deepcopy(vocabulary()["attributes"])
    for name, values in KEEP.items():
        lpc.words[name] = {v: lpc.words[name][v] for v in values}
    return lpc


def theatre(folder: Path) -> LPC:
    """The task over puppets; `folder` stands for the art and may be empty."""
    lpc = small(LPC(folder, num_frames=5))
    lpc.sheets = Puppets()
    return lpc
