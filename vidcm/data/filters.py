"""Filters of clips: what they look for, and what they say when they leave a clip out.

Each is a class with one threshold and a line in the registry; `--filter name=threshold` of `encode`
makes one. What is left out follows from the videos and the thresholds alone.
"""

from importlib import import_module
from typing import Any

import numpy as np

from vidcm.data.duplicates import REASON as NEAR_DUPLICATE
from vidcm.data.probes import Probes
from vidcm.errors import UsageError
from vidcm.media.shots import Shot

LUMINANCE = np.array([0.2126, 0.7152, 0.0722], np.float32)  # weights of BT.709
DARK = 32  # FFmpeg's filter blackframe: pixels darker than this are black
SHORT_SHOTS = "short-shots"  # of a video, none is as long as a clip
OCR_SIDE = 320  # the shorter side that the text detector scales a frame to, in its option
LARGEST_LINE = 0.5  # of a frame: in blurred frames the detector takes all of the picture for text
HASHED_FRAMES = 3  # of a clip: the first, the middle and the last


class Filter:
    """A filter that lets everything pass; each one replaces what it needs.

    Attributes:
        name: In the registry and in the index of the cache.
        reason: Why a clip is left out, in one word.
        threshold: Its only option.
        duplicate_bits: As in `Source`, if it gives clips a fingerprint.
    """

    name = ""
    reason = ""
    threshold: float = 0.0
    duplicate_bits: int | None = None

    def shots(self, probes: Probes, video: str, clip_seconds: float) -> list[Shot] | None:
        """Spans of a video within which its clips lie; None for anywhere."""
        return None

    def rejects(self, frames: np.ndarray) -> bool:
        """Whether a clip, uint8 `(t h w c)`, is left out."""
        return False

    def fingerprint(self, frames: np.ndarray) -> str | None:
        """What later decides about a clip beside all others; None for nothing."""
        return None


class ShotCuts(Filter):
    """No clip crosses a cut: windows are placed within shots, those too short are left out.

    Args:
        threshold: of PySceneDetect's `ContentDetector`, 0 to 255: change of hue, saturation and
            brightness from one frame to the next.
    """

    name, reason = "shot_cuts", SHORT_SHOTS

    def __init__(self, threshold: float = 27.0) -> None:
        self.threshold = _within(threshold, 0, 255, self.name)

    def shots(self, probes: Probes, video: str, clip_seconds: float) -> list[Shot] | None:
        return probes.shots(video, self.threshold, clip_seconds)


class Still(Filter):
    """Leaves out clips in which nothing moves. Pictures stay.

    Args:
        threshold: mean change of a pixel from one frame of the clip to the next, as a share of 255;
            clips below it are left out. as `noise` of FFmpeg's freezedetect.
    """

    name = reason = "still"

    def __init__(self, threshold: float = 0.001) -> None:
        self.threshold = _within(threshold, 0, 1, self.name)

    def rejects(self, frames: np.ndarray) -> bool:
        if len(frames) < 2:
            return False
        pairs = zip(frames[:-1], frames[1:], strict=True)
        changes = [np.abs(b.astype(np.int16) - a).mean() / 255 for a, b in pairs]
        return bool(np.mean(changes) < self.threshold)


class Black(Filter):
    """Leaves out clips with a black frame.

    Args:
        threshold: share of dark pixels, of a luminance below 32 of 255, from which on a frame is
            black. FFmpeg's filter blackframe has the same (`amount`).
    """

    name = reason = "black"

    def __init__(self, threshold: float = 0.98) -> None:
        self.threshold = _within(threshold, 0, 1, self.name)

    def rejects(self, frames: np.ndarray) -> bool:
        return any((frame @ LUMINANCE < DARK).mean() >= self.threshold for frame in frames)


class NearDuplicates(Filter):
    """Of clips that look alike, keeps the first in the order of their names and seconds.

    Perceptual hashes (pHash) of the first, middle and last frame, of 64 bits each, are compared, so
    other sizes, qualities and containers of one clip are alike.

    Args:
        threshold: number of these 192 bits that may differ.
    """

    name, reason = "near_duplicates", NEAR_DUPLICATE

    def __init__(self, threshold: float = 6) -> None:
        self.threshold = _within(threshold, 0, 64, self.name)
        self.duplicate_bits = int(self.threshold)
        try:
            from imagehash import phash
        except ImportError:
            fix = "pip install -e '.[filter]'"
            raise UsageError(
                f"the filter {self.name} needs the package imagehash, not installed; {fix}"
            ) from None
        self._phash: Any = phash

    def fingerprint(self, frames: np.ndarray) -> str | None:
        from PIL import Image

        chosen = np.linspace(0, len(frames) - 1, HASHED_FRAMES).round().astype(int)
        return "".join(str(self._phash(Image.fromarray(frames[k]))) for k in chosen)


class TextOverlays(Filter):
    """Leaves out clips with large text over the picture, such as titles and subtitles.

    The detection network of PP-OCR looks for lines of text in the first, middle and last frame, at
    the size of the clip: what is too small to be read there is not found.

    Args:
        threshold: share of a frame that lines of text cover, from which on a clip is left out.
    """

    name, reason = "text_overlays", "text-overlay"

    def __init__(self, threshold: float = 0.05) -> None:
        self.threshold = _within(threshold, 0, 1, self.name)
        try:
            rapidocr = import_module("rapidocr")
        except ImportError:
            fix = "pip install -e '.[ocr]'"
            raise UsageError(
                f"the filter {self.name} needs the package rapidocr, not installed; {fix}"
            ) from None
        options = {
            "Global.log_level": "critical",
            "Det.limit_side_len": OCR_SIDE,
            "EngineConfig.onnxruntime.intra_op_num_threads": 1,
        }
        self._detect: Any = rapidocr.RapidOCR(params=options)

    def rejects(self, frames: np.ndarray) -> bool:
        return any(self._covered(frames[k]) >= self.threshold for k in _spread(len(frames)))

    def _covered(self, frame: np.ndarray) -> float:
        """The share of a frame that lines of text cover."""
        from PIL import Image, ImageDraw

        bgr = np.ascontiguousarray(frame[..., ::-1])
        boxes = self._detect(bgr, use_det=True, use_cls=False, use_rec=False).boxes
        text = Image.new("L", (frame.shape[1], frame.shape[0]))
        for corners in () if boxes is None else boxes:
            line = Image.new("L", text.size)
            ImageDraw.Draw(line).polygon([(float(x), float(y)) for x, y in corners], fill=1)
            if np.asarray(line).mean() <= LARGEST_LINE:
                text.paste(1, mask=line.point(lambda value: 255 * value))
        return float(np.asarray(text).mean())


def _spread(count: int) -> list[int]:
    """The first, the middle and the last of so many frames, each once."""
    return sorted({0, round((count - 1) / 2), count - 1})


def _within(value: float, low: float, high: float, name: str) -> float:
    if not low <= value <= high:
        raise UsageError(f"the filter {name} has threshold {value:g}, expected {low} to {high}")
    return value
