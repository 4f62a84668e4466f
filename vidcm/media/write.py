"""Pixels as the model sees them, as files hold them, and the writers between the two.

`frames` are uint8 RGB, channels last: `(b t h w c)` as a batch, `(t h w c)` as one clip.
`video` is float in [-1, 1], channels second: `(b c t h w)`. `to_video` and `to_frames` are the
only conversion. Writers refuse bad requests before they touch the disk (`check_output` does so
alone, before a long generation), and put files in place whole or not at all.
"""

import os
import re
import stat
import tempfile
from pathlib import Path

import numpy as np

from vidcm.errors import UsageError, VidcmError
from vidcm.files import replacing
from vidcm.media.encoders import ENCODINGS, encode, find_encoder, page
from vidcm.media.encoders import enlarge as enlarge
from vidcm.media.png import decode_png, encode_png

FORMATS = (".mp4", ".webm", ".gif", ".png")
LARGEST = 16384  # pixels a side, h264's limit


def check_output(path: str | os.PathLike[str], overwrite: bool = False) -> Path:
    """The absolute path `write_clip` would write to, with links and `~` resolved; writes nothing.

    Raises UsageError for an unknown extension, something in the way (with `overwrite`: something
    other than a file, or than a folder of nothing but frames), and VidcmError for a folder that
    cannot be written to or an encoder that is missing.
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
    # A folder is replaced as a whole, so anything but our own frames in it is somebody's work.
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


def write_clip(
    frames: np.ndarray,
    path: str | os.PathLike[str],
    *,
    fps: float = 8.0,
    overwrite: bool = False,
    scale: int = 1,
    columns: int | None = None,
) -> Path:
    """Write uint8 frames `(t h w c)` in the format that the extension names; returns its full path.

    .mp4   h264, index first, plays in any player; .webm is VP9. Both are lossy, 4:2:0 and tagged
           BT.709; an odd width or height gains one column or row, a copy of the last one.
    .gif   loops for ever, at most 50 fps (players slow faster ones down to 10), frame times in
           1/100 s; lossless up to 256 colours, else one palette for the clip, dithered.
    .png   lossless sprite sheet in rows of `columns` frames (default: all in one row), unused
           cells zero.
    path/  or no extension: a folder of lossless frame_0000.png, frame_0001.png, ...

    c is 3 (RGB), or 4 (RGBA) for the two png forms. `fps` is in frames per second; png files do
    not record it. `scale` enlarges by whole numbers without blur. Missing parents are made.
    Raises UsageError and VidcmError as `check_output` does, UsageError for options out of range,
    ValueError for an array that is no clip, and VidcmError when writing fails; then, and on an
    interrupt, no file is left behind and an older output is as it was.
    """
    kind = _kind(path)
    check_clip(frames, (3,) if kind in ENCODINGS else (3, 4))
    fastest = 50 if kind == ".gif" else 1000
    if not 0.01 <= fps <= fastest:
        raise UsageError(f"got fps {fps}, expected 0.01 to {fastest} in {kind or 'png'} files")
    check_positive("scale", scale)
    if kind in ENCODINGS and max(frames.shape[1:3]) * scale > LARGEST:
        raise UsageError(
            f"got {frames.shape[2]}x{frames.shape[1]} frames and scale {scale}, expected at most "
            f"{LARGEST} pixels a side in {kind}: lower the scale or write png"
        )
    if columns is not None:
        check_positive("columns", columns)
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
    """Write a uint8 image `(h w c)`, c 3 (RGB) or 4 (RGBA), without loss; errors as write_clip."""
    if _kind(path) != ".png":
        raise UsageError(f"got {path}, expected a name that ends in .png")
    return write_clip(image[None], path, overwrite=overwrite)


def read_png(path: str | os.PathLike[str]) -> np.ndarray:
    """The png file at `path` as uint8 `(h w 3)`, or `(h w 4)` when it has alpha or a palette.

    Raises UsageError when there is no such file, VidcmError when it is not a png.
    """
    try:
        return decode_png(Path(path).read_bytes())
    except FileNotFoundError as error:
        raise UsageError(f"no file {path}: expected a png image") from error
    except (OSError, ValueError) as error:
        raise VidcmError(f"cannot read {path} as a png image: {error}") from error


def _kind(path: str | os.PathLike[str]) -> str:
    """The extension that decides the format, in lower case; empty for a folder of frames."""
    given = os.fspath(path)
    name = os.path.basename(given.rstrip("/" + os.sep))
    folder = given.endswith(("/", os.sep))
    if name in ("", ".", "..", "~") or "\0" in given or (name.lower() in FORMATS and not folder):
        raise UsageError(f"got output {given!r}, expected the name of a file or folder to write")
    kind = "" if folder else Path(name).suffix.lower()
    if kind and kind not in FORMATS:
        raise UsageError(
            f"got output {given!r}, expected {', '.join(FORMATS)}, or a trailing / for a folder "
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
    """The file names of `count` clips: the path itself for one."""
    text = str(path)
    if count == 1:
        return [text]
    folder = text.endswith("/")
    p = Path(text)
    names = [str(p.with_name(f"{p.stem}-{i + 1}{p.suffix}")) for i in range(count)]
    return [n + "/" for n in names] if folder else names


def check_positive(name: str, value: int) -> None:
    """Refuse an option below one."""
    if not isinstance(value, int) or value < 1:
        raise UsageError(f"got {name} {value}, expected a whole number from 1")
