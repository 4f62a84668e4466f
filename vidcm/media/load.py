"""Clips, pictures and masks from files, in the size and at the rate of a model."""

import math
import re
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from vidcm.errors import UsageError
from vidcm.media.demux import MAX_PIXELS, opened, regular_file
from vidcm.media.read import VideoInfo, probe, read_frames
from vidcm.media.timing import SLACK_SECONDS
from vidcm.media.transforms import resize_crop
from vidcm.media.write import read_png

NEAR = 24  # grey levels by which each colour of a pixel may differ from a key colour


@dataclass(frozen=True)
class Film:
    """frames: uint8 `(t h w 3)` as in the file. total: frames of the whole file at the rate asked
    for. rate: frames a second that a video claims to hold, 0 where it does not say; None for
    pictures."""

    path: Path
    frames: np.ndarray
    total: int
    rate: float | None

    def __str__(self) -> str:
        return str(self.path)


def read_film(path: Path, fps: float, most: int | None, start: float = 0.0) -> Film:
    """A video, a picture (.png) or a folder of pictures, whose frames count as 1 / fps apart.

    fps: at which to take frames. most: how many at most (None: all). start: seconds to leave out.
    Raises UsageError and BadClip."""
    if _is_pictures(path):
        return _pictures(path, fps, most, start)
    info = probe(path)
    last = info.last_seconds
    if start > last + SLACK_SECONDS:
        raise UsageError(f"{path} ends at {last:.2f} s; start before that, not at {start:g} s")
    total = int((last - start) * fps + 1e-3) + 1
    count, held = min(total, most or total), _at_once(info)
    if count > held:
        raise UsageError(
            f"{path}: {count} frames of {info.width}x{info.height} are more than memory should "
            f"hold; take at most {held}, or a smaller video"
        )
    times = start + np.arange(count) / fps
    frames = read_frames(path, times.clip(max=last), max_pixels=MAX_PIXELS).frames
    return Film(path, frames, total, _rate(path))


def at_once(path: Path) -> float:
    """How many frames of a video memory should hold; of pictures any number. Raises BadClip."""
    return math.inf if _is_pictures(path) else _at_once(probe(path))


def _at_once(info: VideoInfo) -> int:
    return MAX_PIXELS // (info.height * info.width)


def _is_pictures(path: Path) -> bool:
    return path.is_dir() or path.suffix.lower() == ".png"


def _rate(path: Path) -> float:
    with opened(regular_file(path), time.monotonic() + 30) as source:
        return float(source.stream.average_rate or source.stream.guessed_rate or 0)


def _pictures(path: Path, fps: float, most: int | None, start: float) -> Film:
    names = sorted(path.glob("*.png")) if path.is_dir() else [path]
    if not names:
        raise UsageError(f"{path} holds no .png pictures; give a folder of frames, or a video")
    chosen = names[int(start * fps + 0.5) :]
    if not chosen:
        raise UsageError(f"{path} has {len(names)} frames; start before {len(names) / fps:.2f} s")
    pictures = [read_png(name)[..., :3] for name in chosen[:most]]
    for name, picture in zip(chosen, pictures, strict=False):
        if picture.shape != pictures[0].shape:
            raise UsageError(
                f"{name} is {picture.shape[1]}x{picture.shape[0]} and the first picture "
                f"{pictures[0].shape[1]}x{pictures[0].shape[0]}; give frames of one size"
            )
    return Film(path, np.stack(pictures), len(chosen), None)


def fit(frames: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """uint8 `(t h w 3)` scaled until it covers `size` (height, width) and cut at the centre; to
    whole multiples and divisors without blur between pixels of one picture element."""
    return resize_crop(torch.from_numpy(np.ascontiguousarray(frames)), size).numpy()


def fit_mask(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """bool `(t h w)` as `fit` does; whatever it touches is masked."""
    return (
        fit(np.where(mask, np.uint8(255), np.uint8(0))[..., None].repeat(3, -1), size)[..., 0] > 0
    )


def read_mask(text: str, film: Film, fps: float, start: float = 0.0) -> np.ndarray:
    """What to fill in, bool `(t h w)` in the size of a film, t 1 or that of the film.

    text: `x,y,width,height`, in pixels, with `,from,to` in seconds if it is not for all of the
    clip; `#rrggbb`, a key colour; or a file: a picture, a video or a folder of pictures, white
    where to fill. Raises UsageError."""
    if re.fullmatch(r"\s*#?[0-9a-fA-F]{6}\s*", text) and not Path(text).exists():
        return _keyed(text.strip().lstrip("#"), film)
    if re.fullmatch(r"[-+\d.\s,]+", text) and "," in text:
        return _boxed(text, film, fps)
    path = Path(text)
    if not path.exists():
        raise UsageError(
            f"the mask {text!r} is no file, no x,y,width,height and no colour such as #ff00ff"
        )
    most = len(film.frames)
    drawn = read_film(path, fps, most, start if path.suffix.lower() != ".png" else 0.0)
    if drawn.frames.shape[1:3] != film.frames.shape[1:3]:
        raise UsageError(
            f"the mask {path} is {_size(drawn.frames)} and the clip {_size(film.frames)}; draw it in "
            "the clip's size"
        )
    if drawn.total not in (1, film.total):
        raise UsageError(
            f"the mask {path} has {drawn.total} frames and the clip {film.total} at {fps:g} a "
            "second; give one frame or as many"
        )
    return drawn.frames.mean(-1) > 127


def _boxed(text: str, film: Film, fps: float) -> np.ndarray:
    parts = [part.strip() for part in text.split(",")]
    try:
        box, span = [int(p) for p in parts[:4]], [float(p) for p in parts[4:]]
    except ValueError:
        box, span = [], []
    if len(box) != 4 or len(span) not in (0, 2):
        raise UsageError(
            f"the mask {text!r} is no box; give x,y,width,height in whole pixels, or also from,to in "
            "seconds"
        )
    (x, y, width, height), (rows, columns) = box, film.frames.shape[1:3]
    if min(x, y) < 0 or min(width, height) < 1 or x + width > columns or y + height > rows:
        raise UsageError(
            f"the mask {text} does not lie in the clip's {columns}x{rows} pixels; make x + width and "
            "y + height fit"
        )
    mask = np.zeros((len(film.frames), rows, columns), bool)
    seconds = np.arange(len(mask)) / fps
    first, last = span or (0.0, np.inf)
    when = (seconds >= first - SLACK_SECONDS) & (seconds <= last + SLACK_SECONDS)
    if not when.any():
        raise UsageError(
            f"the mask {text} is for {first:g} to {last:g} s and the clip lasts from 0 to "
            f"{seconds[-1]:g} s; overlap them"
        )
    mask[when, y : y + height, x : x + width] = True
    return mask


def _keyed(colour: str, film: Film) -> np.ndarray:
    key = np.array([int(colour[i : i + 2], 16) for i in (0, 2, 4)])
    spread = int(np.ptp(film.frames.astype(np.int16), axis=-1).max())
    if spread <= NEAR < np.ptp(key) - NEAR:
        raise UsageError(
            f"the key colour #{colour} needs a clip in colour, and {film} is grey; give a mask or a box"
        )
    mask = np.abs(film.frames - key).max(-1) <= NEAR
    if not mask.any():
        raise UsageError(
            f"no pixel of {film} is within {NEAR} grey levels of #{colour}; its first is "
            f"#{bytes(film.frames[0, 0, 0]).hex()}; give the colour of the parts to fill"
        )
    return mask


def describe(film: Film, clip: np.ndarray, fps: float, more: str = "") -> str | None:
    """What became of a film to fit the model, in words; None when nothing did. more: said of a cut.

    "clip.mp4: 320x240 at 30 fps, resampled to 64x64 at 8 fps, cut to 9 of 40 frames"."""
    before, after = _size(film.frames), _size(clip)
    if film.rate is not None and not np.isclose(film.rate, fps, rtol=1e-3):
        was = f" at {film.rate:.4g} fps" if film.rate else " at no stated rate"
        before, after = before + was, f"{after} at {fps:g} fps"
    changes = [f"{before}, resampled to {after}"] if before != after else []
    if len(clip) < film.total:
        changes.append(f"cut to {len(clip)} of {film.total} frames{more}")
    return f"{film}: {', '.join(changes)}" if changes else None


def _size(frames: np.ndarray) -> str:
    return f"{frames.shape[2]}x{frames.shape[1]}"
