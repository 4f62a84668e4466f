"""Write clips and pictures in the format of a file name; needs no torch.

All checks happen before the disk is touched (`check_output` alone before a long generation), and
files appear complete or not at all.
"""

import os
import re
import stat
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from vidcm.arguments import integer, real_number
from vidcm.arguments import path as path_of
from vidcm.errors import UsageError, VidcmError
from vidcm.files import replacing
from vidcm.limits import memory
from vidcm.media.encoders import ENCODINGS, encode, find_encoder, page
from vidcm.media.encoders import enlarge as enlarge
from vidcm.media.png import encode_png

FORMATS = (".mp4", ".webm", ".gif", ".png")
LARGEST = 16384  # pixels of a side, the limit of h264
BYTES_WRITTEN = 9  # of memory for each pixel of a picture: enlarged, contiguous, compressed


def check_output(path: str | os.PathLike[str], overwrite: bool = False) -> Path:
    """Check that `write_clip` can write to a path, without writing.

    Args:
        path: file or folder.
        overwrite: allow an existing file, or a folder with nothing but frames.

    Returns:
        The absolute path, with links and `~` resolved.

    Raises:
        UsageError: unknown extension, or something in the way.
        VidcmError: the folder is not writable, or the encoder is missing.
    """
    kind = _kind(path)
    if kind in ENCODINGS:
        find_encoder(kind)
    target = Path(os.path.realpath(os.path.expanduser(path)))
    try:
        mode = os.stat(target).st_mode
        found = sorted(os.listdir(target)) if stat.S_ISDIR(mode) else []
    except (FileNotFoundError, NotADirectoryError):
        mode, found = 0, []
    except OSError as error:
        raise VidcmError(f"cannot write {target}: {error.strerror}") from error
    wanted = "file" if kind else "folder"
    if mode and stat.S_ISDIR(mode) == bool(kind):
        raise UsageError(f"{target} is in the way of the {wanted} to write: give another name")
    if kind and mode and not stat.S_ISREG(mode):
        raise UsageError(f"{target} is a device or pipe, not a file to write: give another name")
    # A folder is replaced with everything in it, so anything but frames is somebody's work.
    if other := [name for name in found if not re.fullmatch(r"frame_\d{4,}\.png", name)]:
        raise UsageError(f"folder {target} holds other files ({other[0]}): give another name")
    if mode and (kind or found) and not overwrite:
        raise UsageError(f"{target} exists; give another name, or overwrite (--overwrite)")
    parent = next(folder for folder in target.parents if os.path.lexists(folder))
    if not parent.is_dir():
        raise UsageError(f"cannot write {target}: {parent} is not a folder")
    try:
        tempfile.TemporaryFile(dir=parent).close()  # permission bits do not tell of mounts or ACLs
    except OSError as error:
        raise VidcmError(
            f"cannot write into {parent}: {error.strerror}; give a folder you may write to"
        ) from error
    return target


def check_form(
    path: str | os.PathLike[str], shape: Sequence[int], fps: float = 8.0, scale: int = 1
) -> int:
    """Check that the format of a path holds a clip, without a clip.

    Args:
        path: file or folder.
        shape: frames, height and width.
        fps: as in `write_clip`.
        scale: as in `write_clip`.

    Returns:
        The scale.

    Raises:
        UsageError: an option is out of range, or the picture too large for the format or memory.
    """
    kind, (frames, height, width) = _kind(path), shape
    fastest = 50 if kind == ".gif" else 1000
    try:
        real_number("fps", fps, 0.01, fastest)
    except UsageError as error:
        raise UsageError(f"{error} in {kind or 'png'} files") from None
    scale = integer("scale", scale, 1, LARGEST)
    if kind in ENCODINGS and max(height, width) * scale > LARGEST:
        raise UsageError(
            f"got {width}x{height} frames and scale {scale}, expected at most {LARGEST} pixels a "
            f"side in {kind}: lower the scale or write png"
        )
    pixels = (frames if kind == ".png" else 1) * height * width * scale**2
    if (need := pixels * BYTES_WRITTEN) > (have := memory()):
        raise UsageError(
            f"a picture of {pixels:.3g} pixels needs about {need / 2**30:.3g} GiB of memory and "
            f"this machine has {have / 2**30:.3g}: lower the scale"
        )
    return scale


def write_clip(
    frames: np.ndarray,
    path: str | os.PathLike[str],
    *,
    fps: float = 8.0,
    overwrite: bool = False,
    scale: int = 1,
    columns: int | None = None,
) -> Path:
    """Write a clip in the format of the extension, atomically and reproducibly.

    - .mp4: h264, index first, plays in any player; .webm: VP9. Both are lossy, 4:2:0 and tagged
      BT.709; an odd width or height gains one column or row, a copy of the last.
    - .gif: loops for ever, frame times in 1/100 s; lossless up to 256 colours, otherwise with one
      dithered palette.
    - .png: lossless sprite sheet; unused cells are zero.
    - a final / or no extension: folder of lossless frame_0000.png, frame_0001.png, ...

    Args:
        frames: uint8 `(t h w c)`; c is 3 (RGB), or 4 (RGBA) for the png formats.
        path: file or folder; missing parents are created.
        fps: frames per second, 0.01 to 1000, in gif to 50 (players slow down faster files). png
            files do not record it.
        overwrite: replace an existing output.
        scale: whole number by which pixels are enlarged, without blur.
        columns: frames in a row of a sprite sheet (default: all).

    Returns:
        The absolute path.

    Raises:
        UsageError: as `check_output`, or an option is out of range.
        ValueError: the array is not a clip.
        VidcmError: as `check_output`, or writing fails.
    """
    kind = _kind(path)
    check_clip(frames, (3,) if kind in ENCODINGS else (3, 4))
    scale = check_form(path, frames.shape[:3], fps, scale)
    if columns is not None:
        columns = integer("columns", columns, 1, LARGEST)
        if kind != ".png":
            raise UsageError(f"got columns {columns} for {path}: only a .png sheet has columns")
    target = check_output(path, overwrite)
    with replacing(target) as temporary:
        if kind in ENCODINGS:
            encode(frames, temporary, kind, fps, scale)
        elif kind == ".png":
            temporary.write_bytes(encode_png(enlarge(page(frames, columns or len(frames)), scale)))
        else:
            temporary.mkdir()
            digits = max(4, len(str(len(frames) - 1)))
            for index, frame in enumerate(frames):
                name = f"frame_{index:0{digits}d}.png"
                (temporary / name).write_bytes(encode_png(enlarge(frame, scale)))
    return target


def write_png(image: np.ndarray, path: str | os.PathLike[str], *, overwrite: bool = False) -> Path:
    """Write a uint8 image `(h w 3)` or `(h w 4)` without loss. Raises as `write_clip`."""
    if _kind(path) != ".png":
        raise UsageError(f"got {path}, expected a name that ends in .png")
    return write_clip(image[None], path, overwrite=overwrite)


def _kind(path: str | os.PathLike[str]) -> str:
    """The extension in lower case, which decides the format; empty for a folder of frames."""
    text = path_of("output", path)
    name = os.path.basename(text.rstrip("/" + os.sep))
    folder = text.endswith(("/", os.sep))
    if name in ("", ".", "..", "~") or "\0" in text or (name.lower() in FORMATS and not folder):
        raise UsageError(f"got output {text!r}, expected the name of a file or folder to write")
    kind = "" if folder else Path(name).suffix.lower()
    if kind and kind not in FORMATS:
        raise UsageError(
            f"got output {text!r}, expected {', '.join(FORMATS)}, or a trailing / for a folder "
            "of png frames"
        )
    return kind


def check_clip(frames: np.ndarray, channels: tuple[int, ...]) -> None:
    """Raise ValueError unless `frames` are uint8 `(t h w c)` with one of these channel counts."""
    if frames.dtype != np.uint8 or frames.ndim != 4 or 0 in frames.shape:
        got = f"{frames.dtype} {frames.shape}"
        raise ValueError(f"got frames {got}, expected uint8 (t h w c), none of them 0")
    if frames.shape[-1] not in channels:
        raise ValueError(f"got {frames.shape[-1]} channels, expected one of {channels} here")


def numbered(path: str | Path, count: int) -> list[str]:
    """File names of `count` clips: the path itself for one, else with -1, -2, ... added."""
    text = path_of("output", path)
    if count == 1:
        return [text]
    folder = text.endswith("/")
    p = Path(text)
    names = [str(p.with_name(f"{p.stem}-{i + 1}{p.suffix}")) for i in range(count)]
    return [n + "/" for n in names] if folder else names
