"""The sheets of the LPC art, and clips composed of them.

A sheet is 832x1344: 13 x 21 cells of 64 pixels, one row per action and direction.
"""

import os
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from vidcm.errors import UsageError, VidcmError
from vidcm.media.pictures import decode_picture

CELL = 64
ROWS = 21  # five actions x four directions, and the fall
SHEET = (ROWS * CELL, 13 * CELL)


class Sheets:
    """The sheets of the LPC art by their path inside it.

    Args:
        art: folder or tar; None for the path in the environment variable VIDCM_LPC_ART.

    Raises:
        UsageError: there is no such file or folder.
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

    def load(self, names: Sequence[str]) -> Iterator[np.ndarray]:
        """Yield the sheets in order, uint8 `(21, 13, 64, 64, 4)`.

        Raises:
            UsageError: the art is neither a folder nor a tar.
            VidcmError: a sheet is missing, damaged or of another size.
        """
        if self.art.is_dir():
            paths = [self.art / name for name in names]
            blobs = (path.read_bytes() if path.is_file() else None for path in paths)
        else:
            blobs = self._from_tar(names)
        for name, blob in zip(names, blobs, strict=True):
            yield self._decode(name, blob)

    def _from_tar(self, names: Sequence[str]) -> Iterator[bytes | None]:
        try:
            with tarfile.open(self.art) as archive:
                members = {m.name.removeprefix("./"): m for m in archive.getmembers()}
                for name in names:
                    handle = archive.extractfile(members[name]) if name in members else None
                    yield handle.read() if handle else None
        except tarfile.TarError as error:
            raise UsageError(
                f"{self.art} is neither a folder nor a readable tar: {error}"
            ) from None

    def _decode(self, name: str, blob: bytes | None) -> np.ndarray:
        if blob is None:
            raise VidcmError(f"the LPC art at {self.art} lacks the sheet {name}; get it complete")
        try:
            image = decode_picture(blob)
        except ValueError as error:
            raise VidcmError(f"cannot read the sheet {name} in {self.art}: {error}") from None
        if image.shape != (*SHEET, 4):
            raise VidcmError(f"the sheet {name} is {image.shape[1]}x{image.shape[0]}, not 832x1344")
        return image.reshape(ROWS, CELL, 13, CELL, 4).transpose(0, 2, 1, 3, 4)


@dataclass(frozen=True)
class Wardrobe:
    """Every sheet of a vocabulary, resampled to clips.

    Attributes:
        cells: uint8 `(sheets, 21, 4, t, 64, 64)`, colours multiplied by alpha; sheet 0 is empty.
        index: path inside the art -> number of its sheet.
    """

    cells: Tensor
    index: dict[str, int]

    def compose(self, layers: Tensor, rows: Tensor, background: Tensor) -> Tensor:
        """Blend sheets over a background in exact 8-bit arithmetic.

        Args:
            layers: sheet numbers `(b, n)`, bottom first.
            rows: row of the sheets `(b,)`: the action and direction.
            background: uint8 RGB `(b, 3)`.

        Returns:
            frames uint8 `(b, t, 64, 64, 3)`.
        """
        # On a CPU a few clips at a time stay in its cache.
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
