"""Decode the frames of a video nearest to some times, with a one-word reason for every failure.

Frames are chosen by timestamps, since headers lie about frame counts and rates. Second 0 is the
first frame that a player would show. Frames are as players show them: upright, of square pixels,
progressive, in the range of SDR, and without transparency. Memory holds the chosen frames and the
buffers of the decoder.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Sequence
from typing import NamedTuple

import av
import numpy as np
from av.error import FFmpegError

from vidcm.errors import UsageError
from vidcm.media import hdr
from vidcm.media.colour import to_rgb
from vidcm.media.demux import MAX_PIXELS, Source, Timestamps, check_pixels, opened
from vidcm.media.geometry import square, square_size, upright
from vidcm.media.interlace import progressive
from vidcm.media.media_file import BadClip, media_file, why
from vidcm.media.timed import nearest_streaming, timed
from vidcm.media.transforms import resize_crop

__all__ = ["MAX_PIXELS", "BadClip", "Frames", "VideoInfo", "probe", "read_frames"]

log = logging.getLogger(__name__)

SEEK_SECONDS = 2.0  # decoding less than this is cheaper and more reliable than seeking


class Frames(NamedTuple):
    """Decoded frames.

    Attributes:
        frames: uint8 RGB `(t h w c)`.
        seconds: float64 `(t,)`, their times from the first frame of the file.
    """

    frames: np.ndarray
    seconds: np.ndarray


class VideoInfo(NamedTuple):
    """Size and length of a video as it is shown.

    Attributes:
        height: in square pixels, after rotation.
        width: likewise.
        last_seconds: the end of the last frame, which is the last time that can be read.
        hold_seconds: how long the last frame is shown, the last part of `last_seconds`.
        hdr: whether it is HDR, which is tone-mapped when it is read.
    """

    height: int
    width: int
    last_seconds: float
    hold_seconds: float = 0.0
    hdr: bool = False


def read_frames(
    path: str | os.PathLike[str],
    times: Sequence[float] | np.ndarray,
    *,
    deadline: float = 30.0,
    max_pixels: int = MAX_PIXELS,
    size: tuple[int, int] | None = None,
    place: tuple[float, float] | None = None,
) -> Frames:
    """Read the frames of a video that are nearest to some times.

    Args:
        path: the file.
        times: seconds from the first frame, not decreasing.
        deadline: seconds after which decoding stops between two packets; `ReaderProcess` also
            stops decoders that hang.
        max_pixels: limit of frames x height x width of what is returned.
        size: height and width that each frame is scaled and cropped to when it is decoded, so
            that memory holds one frame of the video; None for its own.
        place: of the crop, as in `resize_crop`.

    Raises:
        BadClip: the file cannot be read at these times.
        UsageError: wrong arguments.
    """
    wanted = np.asarray(times, dtype=np.float64)
    rising = wanted.ndim == 1 and len(wanted) > 0 and np.isfinite(wanted).all()
    if not rising or wanted[0] < 0 or (np.diff(wanted) < 0).any():
        got = f"{wanted.ravel()[:9].tolist()} (shape {wanted.shape})"
        raise UsageError(f"times are {got}, expected a list of seconds from 0 on that never fall")
    media, stop = media_file(path), time.monotonic() + deadline
    for may_seek in (True, False):
        with opened(media, stop) as source:
            codec = source.stream.codec_context
            kept = 0 if size else len(wanted)  # a large frame of a video does not stay
            check_pixels(media.name, codec.height, codec.width, kept, max_pixels)
            found = _read(source, wanted, max_pixels, Fit(size, place), may_seek)
        if found is not None:
            return found
    raise BadClip(media.name, "decode-error", "it can neither be searched nor read from the start")


def probe(path: str | os.PathLike[str], *, deadline: float = 30.0) -> VideoInfo:
    """Size and length of a video, from its last packets if it can be seeked, else from all.

    Raises:
        BadClip: the file cannot be read.
    """
    media, stop = media_file(path), time.monotonic() + deadline
    with opened(media, stop) as source:
        first = source.first_frame()
        stamps = Timestamps(source, first)
        size = square_size(first.height, first.width, source.stream.sample_aspect_ratio)
        height, width = upright(media.name, first, np.empty((*size, 0))).shape[:2]
        check_pixels(media.name, height, width, 1, MAX_PIXELS)
        last, hold, end = 0.0, 0.0, source.stream.duration
        if stamps.stamp and end:
            try:
                source.seek(stamps.origin + end)
                last, hold = stamps.of_last(source.packets())
            except FFmpegError as error:
                log.debug("%s: cannot seek to its end (%s)", media.name, why(error))
    if not last > 0:  # nothing near the claimed end, as in a truncated file: scan it all
        with opened(media, stop) as source:
            last, hold = stamps.of_last(source.packets())
    return VideoInfo(height, width, last + hold, hold, first.color_trc in (hdr.PQ, hdr.HLG))


class Fit(NamedTuple):
    """The size that frames are scaled and cropped to, and the place of the crop."""

    size: tuple[int, int] | None
    place: tuple[float, float] | None

    def __call__(self, frames: np.ndarray) -> np.ndarray:
        """uint8 `(t h w 3)` in that size."""
        return frames if self.size is None else resize_crop(frames, self.size, self.place)


def _read(
    source: Source, times: np.ndarray, max_pixels: int, fit: Fit, may_seek: bool
) -> Frames | None:
    """The frames, or None if the seek failed or landed after the first time."""
    frames = source.frames()
    first = next(frames, None)
    if first is None:
        raise source.short("it has no frame")
    stamps = Timestamps(source, first)
    following = timed(stamps, first, frames)
    if may_seek and stamps.stamp and times[0] > SEEK_SECONDS:
        try:
            target = stamps.origin + int(times[0] / stamps.tick)
            source.seek(target)
            frames = source.frames()
            first = next(frames, None)
        except (FFmpegError, BadClip) as error:
            log.debug("%s: cannot seek to %s s (%s)", source.file, times[0], error)
            return None
        if first is None or stamps.of_frame(first) > times[0]:
            return None
        following = timed(stamps, first, frames)
    pixels: np.ndarray | None = None
    shape: tuple[int, ...] = ()
    seconds, chosen = np.empty(len(times)), None
    chosen_frames = nearest_streaming(source, progressive(source.file, following), times)
    for i, (now, frame, _) in enumerate(chosen_frames):
        seconds[i] = now
        if pixels is not None and frame is chosen:
            pixels[i] = pixels[i - 1]
            continue
        image = _rgb(source, frame, max(fit.size or (0,)))
        fitted = fit(image[None])[0]
        if pixels is None:
            check_pixels(source.file, fitted.shape[0], fitted.shape[1], len(times), max_pixels)
            pixels, shape = np.empty((len(times), *fitted.shape), np.uint8), image.shape
        if image.shape != shape:
            raise BadClip(source.file, "decode-error", f"the frame size changes at {now:.3f} s")
        pixels[i], chosen = fitted, frame
    assert pixels is not None
    return Frames(pixels, seconds)


def _rgb(source: Source, frame: av.VideoFrame, side: int) -> np.ndarray:
    """The picture of a frame as it is shown, uint8 `(h w 3)`; `side` as in `to_rgb`."""
    file, aspect = source.file, source.stream.sample_aspect_ratio
    if frame.is_corrupt:
        raise BadClip(file, "decode-error", f"a damaged frame at {frame.time or 0:.3f} s")
    check_pixels(file, *square_size(frame.height, frame.width, aspect), 1, MAX_PIXELS)
    try:
        pixels = to_rgb(frame, side)
    except (FFmpegError, ValueError) as error:
        detail = f"no RGB from {frame.format.name} ({why(error)})"
        raise BadClip(file, "decode-error", detail) from None
    return upright(file, frame, square(pixels, aspect))


def decoder_versions() -> dict[str, str]:
    """Versions of PyAV (`av`) and of FFmpeg's libraries, on which decoded frames may depend."""
    libraries = ("libavcodec", "libavfilter", "libavformat", "libavutil", "libswscale")
    found = {name: ".".join(map(str, av.library_versions[name])) for name in libraries}
    return {"av": av.__version__, **found}
