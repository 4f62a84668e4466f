"""Encode frames as mp4, webm and gif, through PyAV; `vidcm.media.write` checks and places files."""

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, cast

import numpy as np

from vidcm.errors import VidcmError

if TYPE_CHECKING:
    import av


class Encoding(NamedTuple):
    """Encoder, its pixel format and options, and the options of the container."""

    encoder: str
    pixels: str
    options: dict[str, str]
    container: dict[str, str]


# The same frames give the same bytes, on one machine or another:
# - mbtree=0: with AVX-512, x264's macroblock tree handles 8 macroblocks at a time and, where 8 do
#   not divide the columns (64 pixels are 4), adds what lies in memory after a row to its costs.
# - threads: x264's output depends on their number, which by default is that of the cores. They
#   share out frames, since PyAV's default of slices makes files larger.
# - fflags: without bitexact, Matroska draws the identifiers of segment and track at random.
X264 = {"crf": "17", "mbtree": "0", "threads": "4", "thread_type": "frame"}
VP9 = {"crf": "20", "b:v": "0", "cpu-used": "2", "threads": "4"}
BITEXACT = {"fflags": "+bitexact"}
ENCODINGS = {
    ".mp4": Encoding("libx264", "yuv420p", X264, BITEXACT | {"movflags": "+faststart"}),
    ".webm": Encoding("libvpx-vp9", "yuv420p", VP9, BITEXACT),
    ".gif": Encoding("gif", "pal8", {}, {"loop": "0"}),
}


def find_encoder(kind: str) -> None:
    """Raise VidcmError if this build of PyAV cannot write `kind`, one of ENCODINGS."""
    import av

    encoder = ENCODINGS[kind].encoder
    try:
        av.Codec(encoder, "w")
    except ValueError as error:
        raise VidcmError(
            f"this build of PyAV cannot write {kind} (no encoder {encoder}): install av from PyPI "
            "or give another extension"
        ) from error


def encode(frames: np.ndarray, path: Path, kind: str, fps: float, scale: int) -> None:
    """Encode a clip into a file.

    Args:
        frames: uint8 `(t h w 3)`.
        path: absolute path of the new file.
        kind: key of ENCODINGS.
        fps: frames per second.
        scale: whole number by which pixels are enlarged.

    Raises:
        OSError: the file cannot be written.
    """
    import av
    from av.error import FFmpegError

    encoding = ENCODINGS[kind]
    # Rates in use (24000/1001, 29.97, 12.5) become the exact ratio, which a float is not.
    rate = Fraction(float(fps)).limit_denominator(1001)
    pictures = _indexed(frames, scale) if kind == ".gif" else _subsampled(frames, scale)
    try:
        # The path is absolute, so that no name can be taken for a protocol of ffmpeg.
        with av.open(str(path), "w", format=kind[1:], options=encoding.container) as out:
            stream = cast(
                "av.VideoStream", out.add_stream(encoding.encoder, rate, encoding.options)
            )
            context = stream.codec_context
            even = 1 if kind == ".gif" else 2
            context.height, context.width = (
                -(-n * scale // even) * even for n in frames.shape[1:3]
            )
            context.pix_fmt = encoding.pixels
            if kind != ".gif":
                context.colorspace = context.color_primaries = context.color_trc = 1  # BT.709
                context.color_range = 1  # 16..235
            for index, picture in enumerate(pictures):
                picture.pts, picture.duration, picture.time_base = index, 1, 1 / rate
                out.mux(stream.encode(picture))
            out.mux(stream.encode(None))
    except FFmpegError as error:
        raise OSError(error.errno, error.strerror) from error


def _subsampled(frames: np.ndarray, scale: int) -> Iterator["av.VideoFrame"]:
    """Frames in yuv420p, BT.709 in 16..235, both sides even."""
    import av
    from av.video.reformatter import ColorRange, Colorspace, Interpolation

    for frame in frames:
        image = enlarge(frame, scale)
        odd = [(0, side % 2) for side in image.shape[:2]]
        image = np.pad(image, [*odd, (0, 0)], mode="edge")
        # AREA gives a 2x2 block the mean of its colours; others blend colours across pixel edges.
        yield av.VideoFrame.from_ndarray(image, format="rgb24").reformat(
            format="yuv420p",
            dst_colorspace=Colorspace.ITU709,
            dst_color_range=ColorRange.MPEG,
            interpolation=Interpolation.AREA,
        )


def _indexed(frames: np.ndarray, scale: int) -> Iterator["av.VideoFrame"]:
    """Frames with one palette: the exact colours up to 256, else the 256 that ffmpeg chooses."""
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


def enlarge(image: np.ndarray, scale: int) -> np.ndarray:
    """Repeat every pixel of `(h w c)` as scale x scale pixels."""
    return image.repeat(scale, 0).repeat(scale, 1) if scale > 1 else image


def page(frames: np.ndarray, columns: int) -> np.ndarray:
    """Frames `(t h w c)` as one image in rows of `columns` frames; unused cells are zero."""
    t, h, w, c = frames.shape
    rows = -(-t // columns)
    cells = np.zeros((rows * columns, h, w, c), np.uint8)
    cells[:t] = frames
    return cells.reshape(rows, columns, h, w, c).swapaxes(1, 2).reshape(rows * h, columns * w, c)
