"""Clips and pictures from files, in the size and at the rate of a model.

Imports no torch, so that commands can refuse a file at once.
"""

import math
import time
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path

import numpy as np

from vidcm.errors import UsageError
from vidcm.media.demux import MAX_FRAME_PIXELS, MAX_PIXELS, Timestamps, check_pixels, opened
from vidcm.media.frame_files import frame_files, warn_of_gaps
from vidcm.media.media_file import media_file
from vidcm.media.pictures import check_header, is_pictures, read_picture
from vidcm.media.read import VideoInfo, probe, read_frames
from vidcm.media.timing import END_SLACK_SECONDS, SLACK_SECONDS

SCAN_SECONDS = 120.0  # for a pass over the frames of a video that keeps none of them


@dataclass(frozen=True)
class SourceClip:
    """Frames of a file, before they are fitted to a model.

    Attributes:
        path: the file or folder.
        frames: uint8 `(t h w 3)` in the size of the file.
        total: number of frames of the whole file at the rate of `frames`.
        rate: frames per second of a video by its header, 0 if it has none; None for pictures.
        hdr: whether it was HDR, before it was tone-mapped.
    """

    path: Path
    frames: np.ndarray
    total: int
    rate: float | None
    hdr: bool = False

    def __str__(self) -> str:
        return str(self.path)


def load_clip(
    path: Path,
    fps: float,
    max_frames: int | None = None,
    start: float = 0.0,
    max_pixels: int = MAX_PIXELS,
) -> SourceClip:
    """Load a video, a picture or a folder of pictures, which count as 1 / fps apart.

    Args:
        path: file or folder.
        fps: frames per second to load.
        max_frames: limit (None: all frames).
        start: seconds to skip.
        max_pixels: limit of all frames together.

    Raises:
        UsageError: nothing at `start`, more frames than memory should hold, or pictures of
            different sizes.
        BadClip: the file cannot be read.
    """
    if is_pictures(path):
        return _load_pictures(path, fps, max_frames, start, max_pixels)
    info = _probe_from(path, start)
    last = info.last_seconds - info.hold_seconds
    total = _frames_from(info, start, fps)
    count = min(total, max_frames or total)
    _check_memory(path, info, count, max_pixels)
    times = start + np.arange(count) / fps
    frames = read_frames(path, times.clip(max=last), max_pixels=max_pixels).frames
    return SourceClip(path, frames, total, _rate(path), info.hdr)


def load_every_frame(
    path: Path,
    fps: float,
    max_frames: int | None = None,
    start: float = 0.0,
    max_pixels: int = MAX_PIXELS,
) -> SourceClip:
    """Load a clip as `load_clip`, but a video at its own rate: each of its frames, once.

    Args:
        path: file or folder.
        fps: frames per second of pictures.
        max_frames: limit (None: all frames).
        start: seconds to skip.
        max_pixels: limit of all frames together.

    Returns:
        The clip; its `rate` is that of its frames.

    Raises:
        UsageError: as `load_clip`, or the frames are not evenly spaced in time.
        BadClip: the file cannot be read.
    """
    if is_pictures(path):
        return _load_pictures(path, fps, max_frames, start, max_pixels)
    info = _probe_from(path, start)
    seconds = _seconds_from(path, start, max_frames)
    _check_memory(path, info, len(seconds), max_pixels)
    rate = _even_rate(path, seconds, _rate(path) or fps)
    frames = read_frames(path, seconds, max_pixels=max_pixels).frames
    return SourceClip(
        path, frames, max(_frames_from(info, start, rate), len(seconds)), rate, info.hdr
    )


def _seconds_from(path: Path, start: float, count: int | None) -> np.ndarray:
    """Times of the first frames from a second on: float64 `(t,)`, strictly increasing."""
    with opened(media_file(path), time.monotonic() + SCAN_SECONDS) as source:
        first = source.first_frame()
        stamps = Timestamps(source, first)
        found = (stamps.of_frame(frame) for frame in chain([first], source.frames()))
        late = (second for second in found if second >= start - SLACK_SECONDS)
        return np.unique(np.fromiter(islice(late, count), np.float64))


def _even_rate(path: Path, seconds: np.ndarray, stated: float) -> float:
    """Frames per second of evenly spaced frames: as stated, unless their times say otherwise."""
    if len(seconds) < 2:
        return stated
    steps = np.diff(seconds)
    usual = float(np.median(steps))
    if (abs(steps - usual) > usual / 2).any():
        raise UsageError(
            f"the frames of {path} are {steps.min():.3g} to {steps.max():.3g} s apart, and here "
            "they must be evenly spaced; write it at one rate (ffmpeg -i in.mp4 -r 8 out.mp4)"
        )
    measured = len(steps) / float(seconds[-1] - seconds[0])
    return stated if abs(stated / measured - 1) < 0.01 else measured


def _frames_from(info: VideoInfo, start: float, fps: float) -> int:
    """Frames of a video from a second on, the last one held for its duration."""
    last = info.last_seconds - info.hold_seconds
    count = math.ceil((info.last_seconds - END_SLACK_SECONDS - start) * fps)
    return max(int((last - start) * fps + 1e-3) + 1, count)


def _check_memory(path: Path, info: VideoInfo, count: int, max_pixels: int) -> None:
    if count > (limit := max_pixels // (info.height * info.width)):
        raise UsageError(
            f"{path}: {count} frames of {info.width}x{info.height} are more than memory should "
            f"hold; take at most {limit}, or a smaller video"
        )


def check_source(path: Path, fps: float, start: float = 0.0) -> None:
    """Refuse a file that `load_clip` cannot read, by its header and first frame. Raises as it."""
    if is_pictures(path):
        read_picture(_pictures_from(path, fps, start)[0])
    else:
        _probe_from(path, start)


def check_frame_size(path: Path, max_pixels: int = MAX_FRAME_PIXELS) -> None:
    """Refuse a picture, or a video with frames, of too many pixels, by the header alone.

    Args:
        path: file.
        max_pixels: limit of one frame; `MAX_FRAME_PIXELS` is one too.

    Raises:
        BadClip: `too-large`, or it cannot be opened.
    """
    if is_pictures(path):
        return check_header(path, 1, min(max_pixels, MAX_FRAME_PIXELS))
    with opened(media_file(path), time.monotonic() + SCAN_SECONDS) as source:
        codec = source.stream.codec_context
        check_pixels(source.media.name, codec.height, codec.width, 1, max_pixels)


def _probe_from(path: Path, start: float) -> VideoInfo:
    info = probe(path)
    last = info.last_seconds - info.hold_seconds
    if start > max(info.last_seconds - END_SLACK_SECONDS, last + SLACK_SECONDS):
        raise UsageError(
            f"{path} ends at {info.last_seconds:.2f} s; start before that, not at {start:g} s"
        )
    return info


def frames_in_memory(path: Path, max_pixels: int = MAX_PIXELS) -> float:
    """Number of frames of a video that have so many pixels together; infinite for pictures.

    Raises:
        BadClip: the file cannot be read.
    """
    if is_pictures(path):
        return math.inf
    info = probe(path)
    return max_pixels // (info.height * info.width)


def _rate(path: Path) -> float:
    with opened(media_file(path), time.monotonic() + 30) as source:
        return float(source.stream.average_rate or source.stream.guessed_rate or 0)


def _pictures_from(path: Path, fps: float, start: float) -> list[Path]:
    """The pictures of a folder, or the only one, from second `start` on."""
    names = frame_files(path) if path.is_dir() else [path]
    first = start * fps + 0.5
    if first >= len(names):
        raise UsageError(f"{path} has {len(names)} frames; start before {len(names) / fps:.2f} s")
    return names[int(first) :]


def _load_pictures(
    path: Path, fps: float, max_frames: int | None, start: float, max_pixels: int
) -> SourceClip:
    chosen = _pictures_from(path, fps, start)
    check_header(chosen[0], len(chosen[:max_frames]), max_pixels)
    if path.is_dir():
        warn_of_gaps(path, chosen[:max_frames])
    pictures = [read_picture(name) for name in chosen[:max_frames]]
    for name, picture in zip(chosen, pictures, strict=False):
        if picture.shape != pictures[0].shape:
            raise UsageError(
                f"{name} is {picture.shape[1]}x{picture.shape[0]} and the first picture "
                f"{pictures[0].shape[1]}x{pictures[0].shape[0]}; give frames of one size"
            )
    return SourceClip(path, np.stack(pictures), len(chosen), None)


def describe_fit(
    source: SourceClip, fitted: np.ndarray, fps: float, advice: str = ""
) -> str | None:
    """Describe how a clip was changed to fit a model.

    Args:
        source: the loaded clip.
        fitted: the fitted clip `(t h w 3)`.
        fps: its frames per second.
        advice: appended if frames were cut.

    Returns:
        A text such as "clip.mp4: 320x240 at 30 fps, resampled to 64x64 at 8 fps, cut to 9 of 40
        frames"; None without changes.
    """
    before, after = size_text(source.frames), size_text(fitted)
    if source.rate is not None and not np.isclose(source.rate, fps, rtol=1e-3):
        was = f" at {source.rate:.4g} fps" if source.rate else " at no stated rate"
        before, after = before + was, f"{after} at {fps:g} fps"
    changes = [f"{before}, resampled to {after}"] if before != after else []
    if source.hdr:
        changes.append("HDR tone-mapped to SDR")
    if len(fitted) < source.total:
        changes.append(f"cut to {len(fitted)} of {source.total} frames{advice}")
    return f"{source}: {', '.join(changes)}" if changes else None


def size_text(frames: np.ndarray) -> str:
    """Width and height of frames `(t h w ...)`, as 64x48."""
    return f"{frames.shape[2]}x{frames.shape[1]}"
