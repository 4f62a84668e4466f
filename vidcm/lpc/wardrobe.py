"""The sheets of the LPC art, and clips composed of them.

A sheet is 832x1344: 13 x 21 cells of 64 pixels, one row per action and direction.
"""

import os
import tarfile
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from vidcm.errors import UsageError, VidcmError
from vidcm.media.png import decode_png

CELL = 64
ROWS = 21  # five actions x four directions, and the fall
SHEET = (ROWS * CELL, 13 * CELL)


class Sheets:
    """Reads sheets from a folder or tar by their path inside it, as uint8 `(21, 13, 64, 64, 4)`.

    Args:
        art: The folder or tar; None for the one that the environment names in VIDCM_LPC_ART.

    Raises:
        UsageError: There is no such file or folder.
    """

    def __init__(self, art: str | Path | None):
        found = art or os.environ.get("VIDCM_LPC_ART")
        if not found or not Path(found).exists():
            source = "data.art or --art" if art else "VIDCM_LPC_ART"
            problem = f"is not at {found}, where {source} says" if found else "is needed"
            raise UsageError(
                f"the LPC art {problem}; set data.art or VIDCM_LPC_ART to the folder or tar of "
                "layers (docs/data.md says where to get it)"
            )
        self.art = Path(found)

    @cached_property
    def _tar(self) -> tuple[tarfile.TarFile, dict[str, tarfile.TarInfo]]:
        try:
            archive = tarfile.open(self.art)
            return archive, {m.name.removeprefix("./"): m for m in archive.getmembers()}
        except tarfile.TarError as error:
            raise UsageError(
                f"{self.art} is neither a folder nor a readable tar: {error}"
            ) from None

    def __getitem__(self, name: str) -> np.ndarray:
        if self.art.is_dir():
            path = self.art / name
            blob = path.read_bytes() if path.is_file() else None
        else:
            archive, members = self._tar
            handle = archive.extractfile(members[name]) if name in members else None
            blob = handle.read() if handle else None
        if blob is None:
            raise VidcmError(f"the LPC art at {self.art} lacks the sheet {name}; get it complete")
        try:
            image = decode_png(blob)
        except ValueError as error:
            raise VidcmError(f"cannot read the sheet {name} in {self.art}: {error}") from None
        if image.shape != (*SHEET, 4):
            raise VidcmError(f"the sheet {name} is {image.shape[1]}x{image.shape[0]}, not 832x1344")
        return image.reshape(ROWS, CELL, 13, CELL, 4).transpose(0, 2, 1, 3, 4)


@dataclass(frozen=True)
class Wardrobe:
    """Every sheet of a vocabulary, resampled to clips: `cells` uint8 `(sheets, 21, 4, t, 64, 64)`,
    premultiplied; sheet 0 is empty. `index` maps a path inside the art to its sheet."""

    cells: Tensor
    index: dict[str, int]

    def compose(self, layers: Tensor, rows: Tensor, background: Tensor) -> Tensor:
        """Blend `layers (b, n)` (sheet numbers, bottom first) at `rows (b,)` over `background
        (b, 3)` uint8 -> frames uint8 `(b, t, 64, 64, 3)`; exact 8-bit arithmetic."""
        # A few clips at a time stay in a CPU's cache; a GPU takes the batch whole.
        chunk = len(layers) if self.cells.is_cuda else 2
        parts = zip(layers.split(chunk), rows.split(chunk), background.split(chunk), strict=True)
        return torch.cat([self._compose(*part) for part in parts])

    def _compose(self, layers: Tensor, rows: Tensor, background: Tensor) -> Tensor:
        out = background.to(torch.int32).view(-1, 3, 1, 1, 1)
        for layer in layers.unbind(1):
            if not layer.is_cuda and not layer.any():
                continue
            drawn = self.cells[layer, rows].to(torch.int32)
            out = out * (255 - drawn[:, 3:])
            # Divided by 255 and rounded: exact up to 255 * 255, and twice as fast as a division.
            out += 128
            out += out >> 8
            out >>= 8
            out += drawn[:, :3]
        out = out.expand(len(layers), 3, *self.cells.shape[3:])
        return rearrange(out.to(torch.uint8), "b c t h w -> b t h w c").contiguous()


def premultiply(cells: np.ndarray) -> np.ndarray:
    """uint8 `(r, t, h, w, 4)` -> `(r, 4, t, h, w)` with colours times alpha."""
    cells = np.ascontiguousarray(cells.transpose(0, 4, 1, 2, 3))
    alpha = cells[:, 3:].astype(np.uint16)
    cells[:, :3] = (cells[:, :3] * alpha + 127) // 255
    return cells
