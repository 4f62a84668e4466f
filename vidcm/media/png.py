"""Encode and decode png pictures as uint8 arrays."""

from io import BytesIO

import numpy as np
from PIL import Image, UnidentifiedImageError


def encode_png(image: np.ndarray) -> bytes:
    """Bytes of a png of a uint8 image `(h w 3)` (RGB) or `(h w 4)` (RGBA)."""
    file = BytesIO()
    Image.fromarray(np.ascontiguousarray(image)).save(file, "png")
    return file.getvalue()


def decode_png(blob: bytes) -> np.ndarray:
    """Decode a png of any kind.

    Args:
        blob: contents of the file.

    Returns:
        uint8 `(h w 4)` if the png has transparency or a palette, otherwise `(h w 3)`; 16-bit
        samples are cut to their upper 8 bits.

    Raises:
        ValueError: not a png, or a damaged or oversized one.
    """
    try:
        with Image.open(BytesIO(blob), formats=["PNG"]) as image:
            mode = "RGBA" if image.mode == "P" or image.has_transparency_data else "RGB"
            if image.mode.startswith("I"):  # 16-bit grey, which Pillow clips instead of scaling
                image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
            return np.array(image.convert(mode))
    except UnidentifiedImageError:
        raise ValueError("it does not begin as one does") from None
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(str(error)) from error
