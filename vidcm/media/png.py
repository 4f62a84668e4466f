"""Encode png pictures."""

from io import BytesIO

import numpy as np
from PIL import Image


def encode_png(image: np.ndarray) -> bytes:
    """Bytes of a png of a uint8 image `(h w 3)` (RGB) or `(h w 4)` (RGBA)."""
    file = BytesIO()
    Image.fromarray(np.ascontiguousarray(image)).save(file, "png")
    return file.getvalue()
