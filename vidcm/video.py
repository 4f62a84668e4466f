"""Pixels as the model sees them, as files hold them, and the writers between the two.

`frames` are uint8 RGB, channels last: `(b t h w c)` as a batch, `(t h w c)` as one clip.
`video` is float in [-1, 1], channels second: `(b c t h w)`. `to_video` and `to_frames` are the
only conversion. Writers refuse bad requests before they touch the disk (`check_output` does so
alone, before a long generation), and put files in place whole or not at all.
"""

import os
import re
import secrets
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from fractions import Fraction
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor

from vidcm.errors import UsageError, VidcmError

if TYPE_CHECKING:
    import av

FORMATS = (".mp4", ".webm", ".gif", ".png")
LARGEST = 16384  # pixels a side, h264's limit


class _Codec(NamedTuple):
    encoder: str
    pixels: str
    options: dict[str, str]
    container: dict[str, str]


_CODECS = {
    ".mp4": _Codec("libx264", "yuv420p", {"crf": "17"}, {"movflags": "+faststart"}),
    ".webm": _Codec("libvpx-vp9", "yuv420p", {"crf": "20", "b:v": "0", "cpu-used": "2"}, {}),
    ".gif": _Codec("gif", "pal8", {}, {"loop": "0"}),
}


def to_video(frames: Tensor) -> Tensor:
    """uint8 frames `(b t h w c)` to a float32 video `(b c t h w)` in [-1, 1]."""
    if frames.dtype != torch.uint8 or frames.ndim != 5:
        raise ValueError(f"got {frames.dtype} {tuple(frames.shape)}, expected uint8 (b t h w c)")
    return frames.permute(0, 4, 1, 2, 3).float().div(127.5).sub(1).contiguous()


def to_frames(video: Tensor) -> Tensor:
    """A float video `(b c t h w)` to uint8 frames `(b t h w c)`; the exact inverse of `to_video`.

    Values outside [-1, 1] are clamped, the rest rounded half to even. Raises VidcmError when a
    value is not finite.
    """
    if not video.is_floating_point() or video.ndim != 5:
        raise ValueError(f"got {video.dtype} {tuple(video.shape)}, expected float (b c t h w)")
    video = video.detach().float()
    if bad := int((~torch.isfinite(video)).sum()):
        raise VidcmError(
            f"{bad} of {video.numel()} video values are not finite: the model or the codec "
            "overflowed; run it in bfloat16 or float32"
        )
    pixels = video.clamp(-1, 1).add(1).mul(127.5).round().to(torch.uint8)
    return pixels.permute(0, 2, 3, 4, 1).contiguous()


def check_output(path: str | os.PathLike[str], overwrite: bool = False) -> Path:
    """The absolute path `write_clip` would write to, with links and `~` resolved; writes nothing.

    Raises UsageError for an unknown extension, something in the way (with `overwrite`: something
    other than a file, or than a folder of nothing but frames), and VidcmError for a folder that
    cannot be written to or an encoder that is missing.
    """
    kind = _kind(path)
    _find_encoder(kind)
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
    check_clip(frames, (3,) if kind in _CODECS else (3, 4))
    fastest = 50 if kind == ".gif" else 1000
    if not 0.01 <= fps <= fastest:
        raise UsageError(f"got fps {fps}, expected 0.01 to {fastest} in {kind or 'png'} files")
    check_positive("scale", scale)
    if kind in _CODECS and max(frames.shape[1:3]) * scale > LARGEST:
        raise UsageError(
            f"got {frames.shape[2]}x{frames.shape[1]} frames and scale {scale}, expected at most "
            f"{LARGEST} pixels a side in {kind}: lower the scale or write png"
        )
    if columns is not None:
        check_positive("columns", columns)
        if kind != ".png":
            raise UsageError(f"got columns {columns} for {path}: only a .png sheet has columns")
    target = check_output(path, overwrite)
    with _in_place(target) as temporary:
        if kind in _CODECS:
            _encode(frames, temporary, kind, fps, scale)
        elif kind == ".png":
            temporary.write_bytes(_png(enlarge(page(frames, columns or len(frames)), scale)))
        else:
            temporary.mkdir()
            digits = max(4, len(str(len(frames) - 1)))
            for index, frame in enumerate(frames):
                name = f"frame_{index:0{digits}d}.png"
                (temporary / name).write_bytes(_png(enlarge(frame, scale)))
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
    import av
    from av.error import FFmpegError

    try:
        # From memory: ffmpeg takes `%d` or a colon in a file name for a pattern or a protocol.
        with av.open(BytesIO(Path(path).read_bytes()), "r", format="png_pipe") as source:
            frame = next(source.decode(video=0))
    except FileNotFoundError as error:
        raise UsageError(f"no file {path}: expected a png image") from error
    except (OSError, FFmpegError, StopIteration) as error:
        raise VidcmError(f"cannot read {path} as a png image: {error}") from error
    alpha = frame.format.has_palette or any(part.is_alpha for part in frame.format.components)
    return frame.to_ndarray(format="rgba" if alpha else "rgb24")


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


def _find_encoder(kind: str) -> None:
    import av

    encoder = _CODECS[kind].encoder if kind in _CODECS else "png"
    try:
        av.Codec(encoder, "w")
    except ValueError as error:
        raise VidcmError(
            f"this build of PyAV cannot write {kind or 'png'} (no encoder {encoder}): "
            "install av from PyPI or give another extension"
        ) from error


def check_clip(frames: np.ndarray, channels: tuple[int, ...]) -> None:
    """Raise ValueError unless `frames` are uint8 `(t h w c)` with one of these channel counts."""
    if frames.dtype != np.uint8 or frames.ndim != 4 or 0 in frames.shape:
        got = f"{frames.dtype} {frames.shape}"
        raise ValueError(f"got frames {got}, expected uint8 (t h w c), none of them 0")
    if frames.shape[-1] not in channels:
        raise ValueError(f"got {frames.shape[-1]} channels, expected one of {channels} here")


def check_positive(name: str, value: int) -> None:
    """Refuse an option below one."""
    if not isinstance(value, int) or value < 1:
        raise UsageError(f"got {name} {value}, expected a whole number from 1")


@contextmanager
def _in_place(target: Path) -> Iterator[Path]:
    """A free name beside `target`; what is there becomes `target` if the block ends well."""
    from av.error import FFmpegError

    missing = [folder for folder in target.parents if not folder.exists()]
    temporary = target.parent / f".vidcm-{secrets.token_hex(6)}.tmp"
    aside = temporary.with_suffix(".old")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        if target.is_dir():  # a folder cannot be renamed over one that holds frames
            target.rename(aside)
        temporary.replace(target)
    except BaseException as error:
        if aside.exists() and not target.exists():
            aside.rename(target)
        _remove(temporary)
        for folder in missing:
            with suppress(OSError):
                folder.rmdir()
        if isinstance(error, OSError | FFmpegError):
            raise VidcmError(f"cannot write {target}: {error.strerror or error}") from error
        raise
    finally:
        if target.exists():  # else what was there could not be put back: never delete it
            _remove(aside)


def _remove(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def _encode(frames: np.ndarray, path: Path, kind: str, fps: float, scale: int) -> None:
    import av

    codec = _CODECS[kind]
    # Every ratio in use (24000/1001, 29.97, 12.5) is met exactly; a float's own is not a ratio.
    rate = Fraction(float(fps)).limit_denominator(1001)
    pictures = _indexed(frames, scale) if kind == ".gif" else _subsampled(frames, scale)
    # `path` is absolute, so no part of a name can pass for one of ffmpeg's protocols.
    with av.open(str(path), "w", format=kind[1:], options=codec.container) as out:
        stream = cast("av.VideoStream", out.add_stream(codec.encoder, rate, codec.options))
        context = stream.codec_context
        even = 1 if kind == ".gif" else 2
        context.height, context.width = (-(-n * scale // even) * even for n in frames.shape[1:3])
        context.pix_fmt = codec.pixels
        if kind != ".gif":
            context.colorspace = context.color_primaries = context.color_trc = 1  # BT.709
            context.color_range = 1  # 16..235
        for index, picture in enumerate(pictures):
            picture.pts, picture.duration, picture.time_base = index, 1, 1 / rate
            out.mux(stream.encode(picture))
        out.mux(stream.encode(None))


def _subsampled(frames: np.ndarray, scale: int) -> Iterator["av.VideoFrame"]:
    """Frames in yuv420p, BT.709 in 16..235, both sides even."""
    import av
    from av.video.reformatter import ColorRange, Colorspace, Interpolation

    for frame in frames:
        image = enlarge(frame, scale)
        odd = [(0, side % 2) for side in image.shape[:2]]
        image = np.pad(image, [*odd, (0, 0)], mode="edge")
        # AREA gives a 2x2 block the mean of its colours; others bleed colour across pixel edges.
        yield av.VideoFrame.from_ndarray(image, format="rgb24").reformat(
            format="yuv420p",
            dst_colorspace=Colorspace.ITU709,
            dst_color_range=ColorRange.MPEG,
            interpolation=Interpolation.AREA,
        )


def _indexed(frames: np.ndarray, scale: int) -> Iterator["av.VideoFrame"]:
    """Frames with one palette: the colours themselves up to 256, else ffmpeg's best 256."""
    import av
    from av.filter import Graph

    colours = np.empty(0, np.uint32)
    for frame in frames:
        colours = np.union1d(colours, _packed(frame))
        if len(colours) > 256:
            break
    else:
        palette = np.zeros((256, 4), np.uint8)
        palette[: len(colours)] = colours.astype(">u4").view(np.uint8).reshape(-1, 4)
        for frame in frames:
            indices = np.searchsorted(colours, _packed(frame)).astype(np.uint8)
            indices = enlarge(indices[..., None], scale)[..., 0]
            picture = (indices, palette)  # documented, but not in the types of PyAV
            yield av.VideoFrame.from_ndarray(picture, format="pal8")  # pyright: ignore
        return
    graph = Graph()
    height, width = (n * scale for n in frames.shape[1:3])
    source = graph.add_buffer(
        width=width,
        height=height,
        format=av.VideoFormat("rgb24", width, height),
        time_base=Fraction(1),
    )
    split = graph.add("split")
    choose = graph.add("palettegen", "reserve_transparent=0")
    use = graph.add("paletteuse", "dither=sierra2_4a")
    sink = graph.add("buffersink")
    source.link_to(split)
    split.link_to(choose, 0, 0)
    split.link_to(use, 1, 0)
    choose.link_to(use, 0, 1)
    use.link_to(sink)
    graph.configure()
    for index, frame in enumerate(frames):
        picture = av.VideoFrame.from_ndarray(enlarge(frame, scale), format="rgb24")
        picture.pts, picture.time_base = index, Fraction(1)
        graph.push(picture)
    graph.push(None)
    for _ in frames:
        yield graph.vpull()


def _packed(frame: np.ndarray) -> np.ndarray:
    """Opaque 0xAARRGGBB of each pixel of `(h w 3)`."""
    red, green, blue = (frame[..., channel].astype(np.uint32) for channel in range(3))
    return 0xFF000000 | red << 16 | green << 8 | blue


def _png(image: np.ndarray) -> bytes:
    import av

    pixels = "rgba" if image.shape[-1] == 4 else "rgb24"
    context = av.CodecContext.create("png", "w")
    context.height, context.width, context.pix_fmt = *image.shape[:2], pixels
    context.time_base = Fraction(1)
    frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format=pixels)
    return b"".join(bytes(packet) for packet in [*context.encode(frame), *context.encode(None)])


def enlarge(image: np.ndarray, scale: int) -> np.ndarray:
    """Every pixel of `(h w c)` as scale x scale pixels."""
    return image.repeat(scale, 0).repeat(scale, 1) if scale > 1 else image


def page(frames: np.ndarray, columns: int) -> np.ndarray:
    """`(t h w c)` as one image, read like a page; unused cells zero."""
    t, h, w, c = frames.shape
    rows = -(-t // columns)
    cells = np.zeros((rows * columns, h, w, c), np.uint8)
    cells[:t] = frames
    return cells.reshape(rows, columns, h, w, c).swapaxes(1, 2).reshape(rows * h, columns * w, c)
