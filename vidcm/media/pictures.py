"""Pictures of any kind that Pillow reads, as uint8 arrays."""

import struct
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from vidcm.media.media_file import BadClip, media_file
from vidcm.media.transforms import composite

SUFFIXES = frozenset(
    ".png .jpg .jpeg .jpe .jfif .webp .bmp .dib .tif .tiff .ppm .pgm .pbm .pnm .tga .avif .jp2"
    " .j2k .qoi".split()
)
# By contents, since names lie. Not those that Pillow gives to other programs, as eps.
FORMATS = "PNG JPEG MPO WEBP BMP DIB TIFF PPM AVIF JPEG2000 QOI TGA".split()
ORIENTATION = 0x0112  # of EXIF: from 5 on, height and width change places
ERRORS = (OSError, SyntaxError, ValueError, struct.error, Image.DecompressionBombError)


def is_pictures(path: Path) -> bool:
    """Whether a path is taken as a picture or a folder of pictures, rather than a video."""
    return path.is_dir() or path.suffix.lower() in SUFFIXES


def decode_picture(blob: bytes) -> np.ndarray:
    """Decode a picture, turned upright as its EXIF says.

    Args:
        blob: contents of the file.

    Returns:
        uint8 `(h w 4)` if the picture has transparency or a palette, otherwise `(h w 3)`; 16-bit
        samples are cut to their upper 8 bits. Colour profiles are not applied.

    Raises:
        ValueError: not a picture, or a damaged or oversized one, or several in one file.
    """
    try:
        with _opened(BytesIO(blob)) as image:
            # The further pictures of an MPO are previews or the other eye's view of the first.
            if (count := getattr(image, "n_frames", 1)) > 1 and image.format != "MPO":
                raise ValueError(f"it holds {count} pictures; save them as a video, or each alone")
            mode = "RGBA" if image.mode == "P" or image.has_transparency_data else "RGB"
            upright = ImageOps.exif_transpose(image)
            if image.mode.startswith("I;16") or (
                image.mode == "I" and image.format in ("PNG", "PPM")
            ):  # 16-bit grey, which Pillow clips instead of scaling
                upright = Image.fromarray((np.asarray(upright) >> 8).astype(np.uint8))
            elif image.mode in ("I", "F"):
                raise ValueError("its samples have 32 bits; save it with 8 or 16")
            return np.array(upright.convert(mode))
    except ERRORS as error:
        raise ValueError(str(error)) from error


def picture_size(path: Path) -> tuple[int, int]:
    """Height and width of a picture, upright, by its header. Raises BadClip."""
    file = media_file(path)
    try:
        with _opened(file.path if file.whole else BytesIO(file.read())) as image:
            turned = image.getexif().get(ORIENTATION, 1) >= 5
            return (image.width, image.height) if turned else (image.height, image.width)
    except ERRORS as error:
        raise BadClip(file.name, "unreadable", f"not read as a picture: {error}") from None


def check_header(path: Path, count: int, max_pixels: int) -> None:
    """Raise BadClip if `count` pictures of this one's size have too many pixels together.

    Nothing is decoded (`picture_size` does decode some kinds, to find their orientation).
    """
    file = media_file(path)
    try:
        with _opened(file.path if file.whole else BytesIO(file.read())) as image:
            width, height = image.size
    except Image.DecompressionBombError:
        detail = "its header claims more pixels than memory should hold; make it smaller"
        raise BadClip(file.name, "too-large", detail) from None
    except ERRORS as error:
        raise BadClip(file.name, "unreadable", f"not read as a picture: {error}") from None
    if count * height * width > max_pixels:
        size = f"{count} picture(s) of {width}x{height}, at most {max_pixels} pixels"
        raise BadClip(file.name, "too-large", f"{size}; make them smaller")


def _opened(file: str | BytesIO) -> Image.Image:
    Image.init()
    try:
        return Image.open(file, formats=[f for f in FORMATS if f in Image.OPEN])
    except UnidentifiedImageError:
        raise ValueError("it does not begin as one does") from None


def read_picture(path: Path) -> np.ndarray:
    """Read a picture as uint8 `(h w 3)`, on `BACKGROUND` where it is transparent.

    Raises:
        BadClip: missing, unreadable, or not a picture.
    """
    file = media_file(path)
    try:
        picture = decode_picture(file.read())
        return composite(picture) if picture.shape[-1] == 4 else picture
    except (OSError, ValueError) as error:
        raise BadClip(file.name, "unreadable", f"not read as a picture: {error}") from None
