"""Anybody's clips: a folder of videos, captions in one file or beside each video."""

import logging
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path

import torch

from vidcm.data.batch import Batch
from vidcm.data.captions import match_captions
from vidcm.data.order import Order, one_shape
from vidcm.data.videos import find_videos
from vidcm.errors import UsageError, VidcmError
from vidcm.media.demux import FILE_REASONS
from vidcm.media.read import BadClip, Frames, VideoInfo
from vidcm.media.timing import SLACK_SECONDS, clip_seconds, frame_times, random_start
from vidcm.media.worker import ReaderPool, ReaderProcess
from vidcm.rng import mix

log = logging.getLogger(__name__)

MIN_START_SECONDS = 0.1  # a clip that does not fit from here on begins with the file


class VideoFolder:
    """Clips of the videos below a folder, each with one or several captions.

    Captions come from `root/metadata.jsonl` or `root/metadata.csv` (columns `file_name` and `text`
    or `caption`), otherwise from a `.txt` beside each video. A video that cannot be read is put on
    the list `quarantine` (file name -> reason), and another takes its place.

    Args:
        root: the folder.
        num_frames: frames per clip, 4k+1.
        size: height and width of clips, in pixels.
        buckets: further shapes (num_frames, height, width). A video gets the shape nearest in
            aspect ratio among those it is long enough for, then the longest.
        batch_size: positions of a training step, which have the same shape.
        fps: frames per second of clips, whatever the rate of the video.
        missing_captions: policy for videos without a caption: "error", "empty" (an empty caption,
            which is unconditional) or "skip".
        backend: decoder, "av" or "decord".
        deadline: seconds to decode one clip.
        max_bad_fraction: share of videos, 0 to 1, that may be quarantined; the next one raises.
        follow_symlinks: also take links that lead out of `root`.

    Raises:
        UsageError: options, folder and caption files do not fit together.
        VidcmError: too many videos are quarantined.
    """

    def __init__(
        self,
        root: str | Path,
        *,
        num_frames: int,
        size: tuple[int, int],
        buckets: Sequence[Sequence[int]] = (),
        batch_size: int = 1,
        fps: float = 16.0,
        missing_captions: str = "error",
        backend: str = "av",
        deadline: float = 30.0,
        max_bad_fraction: float = 0.01,
        follow_symlinks: bool = False,
    ) -> None:
        clip_seconds(num_frames, fps)
        if len(size) != 2 or min(size) < 1:
            raise UsageError(f"size is {size}, expected (height, width), each at least 1")
        if missing_captions not in ("error", "empty", "skip"):
            raise UsageError(
                f"missing_captions is {missing_captions!r}, expected 'error', 'empty' or 'skip'"
            )
        if backend not in ("av", "decord"):
            raise UsageError(f"backend is {backend!r}, expected 'av' or 'decord'")
        if not 0 <= max_bad_fraction <= 1:
            raise UsageError(f"max_bad_fraction is {max_bad_fraction}, expected 0 to 1")
        self.root, self.fps = Path(root).resolve(), fps
        self.shapes = _shapes((num_frames, size[0], size[1]), buckets, fps)
        self.max_bad_fraction = max_bad_fraction
        self.quarantine: dict[str, str] = {}
        self._readers = ReaderPool(backend=backend, deadline=deadline)
        self._last_seconds: dict[int, float] = {}
        self._shape_of: dict[int, tuple[int, int, int]] = {}
        names = find_videos(self.root, follow_symlinks)
        self._captions = match_captions(self.root, names, missing_captions)
        self.names = sorted(self._captions)
        if not self.names:
            raise UsageError(f"{self.root} holds no video with a caption; see missing_captions")
        self.buckets = self._sorted()
        self.order = Order([len(clips) for _, clips in self.buckets], batch_size)

    def __len__(self) -> int:
        return len(self.names)

    @property
    def reader(self) -> ReaderProcess:
        """The reader of the calling thread."""
        return self._readers.own

    def _sorted(self) -> list[tuple[tuple[int, int, int], list[int]]]:
        """Shapes with the indices of their clips."""
        if len(self.shapes) == 1:
            return [(self.shapes[0], list(range(len(self))))]
        found: dict[tuple[int, int, int], list[int]] = {}
        for i, name in enumerate(self.names):
            shape = self.shapes[0]
            try:
                info = self.reader.probe(self.root / name)
                self._last_seconds[i] = info.last_seconds
                shape = _nearest(self.shapes, info, self.fps)
            except BadClip as bad:
                self._quarantine(name, bad)
            found.setdefault(shape, []).append(i)
        self._shape_of = {i: shape for shape, clips in found.items() for i in clips}
        return sorted(found.items())

    def shape(self, i: int) -> tuple[int, int, int]:
        """Frames, height and width of clip i."""
        return self._shape_of.get(i, self.shapes[0])

    def captions(self, i: int) -> list[str]:
        """Captions of clip i, [""] if it has none."""
        return self._captions[self.names[i]]

    def starts(self, i: int, most: int | None = 1) -> list[float]:
        """Starts of clips of video i that do not overlap, in seconds.

        Args:
            i: index of the video.
            most: so many at most, spread over the video; None for all that fit.

        Raises:
            BadClip: the video cannot be read.
        """
        if most == 1:
            return [0.0]
        num_frames = self.shape(i)[0]
        room = self._length(i) - clip_seconds(num_frames, self.fps) + SLACK_SECONDS
        count = max(int(room / (num_frames / self.fps)) + 1, 1)
        kept = count if most is None else min(most, count)
        return [k * count // kept * num_frames / self.fps for k in range(kept)]

    def _length(self, i: int) -> float:
        """Time of the last frame of video i, probed once."""
        if i not in self._last_seconds:
            self._last_seconds[i] = self.reader.probe(self.root / self.names[i]).last_seconds
        return self._last_seconds[i]

    def clip(self, i: int, rng: torch.Generator | None = None, start: float = 0.0) -> torch.Tensor:
        """Frames of clip i.

        Args:
            i: index of the clip.
            rng: draws start and crop; without it, the clip has the centre.
            start: first second of the clip, without `rng`.

        Returns:
            uint8 `(t h w c)`.

        Raises:
            BadClip: the clip is or gets quarantined.
            VidcmError: too many are.
        """
        name = self.names[i]
        path = str(self.root / name)
        num_frames, *size = self.shape(i)
        if (reason := self.quarantine.get(name)) in FILE_REASONS:
            raise BadClip(path, str(reason), "quarantined before")
        try:
            if rng is None:
                times = frame_times(num_frames, self.fps, start)
                found = self.reader.read(path, times, (size[0], size[1]))
            else:
                found = self._read_at_random(i, path, rng)
        except BadClip as bad:
            self._quarantine(name, bad)
            raise
        return torch.from_numpy(found.frames)

    def _read_at_random(self, i: int, path: str, rng: torch.Generator) -> Frames:
        """Frames from a random start, drawn anew where the file ends before its header says."""
        num_frames, height, width = self.shape(i)
        last = self._length(i)
        while True:
            start = random_start(last, num_frames, self.fps, rng)
            down, across = torch.rand(2, generator=rng, dtype=torch.float64).tolist()
            times = frame_times(num_frames, self.fps, start)
            try:
                return self.reader.read(path, times, (height, width), (down, across))
            except BadClip as bad:
                if start == 0 or bad.reason not in ("too-short", "truncated"):
                    raise
            # Not remembered, so that a clip depends on its file and `rng` alone.
            last = start + clip_seconds(num_frames, self.fps) if start > MIN_START_SECONDS else 0.0

    @property
    def size(self) -> int:
        return len(self)

    def batch(self, seed: int, positions: Iterable[int]) -> Batch:
        """Clips at positions of the endless sequence of shuffled epochs, start and crop random.

        A clip with several captions gets one of them at random.

        A bad clip is replaced by the next readable one of its epoch and shape, whatever was read
        before, so that a resumed run sees the same clips.

        Raises:
            UsageError: the positions belong to steps of different shapes.
            VidcmError: no clip of the shape is readable, or too many are quarantined.
        """
        frames, captions = [], []
        positions = list(positions)
        shape = one_shape({self.order.at(seed, position)[0] for position in positions})
        clips = self.buckets[shape][1]
        for position in positions:
            for skip in range(len(clips)):
                own = (seed, position, skip) if skip else (seed, position)
                rng = torch.Generator().manual_seed(mix(*own))
                i = clips[self.order.at(seed, position, skip)[1]]
                with suppress(BadClip):
                    frames.append(self.clip(i, rng))
                    choices = self.captions(i)
                    captions.append(choices[mix(seed, position, 1) % len(choices)])
                    break
            else:
                raise VidcmError(f"no clip of {self.buckets[shape][0]} in {self.root} can be read")
        return Batch(captions, frames=torch.stack(frames))

    def _quarantine(self, name: str, bad: BadClip) -> None:
        self.quarantine[name] = bad.reason
        log.warning("left out %s", bad)
        bad_fraction = len(self.quarantine) / len(self)
        if bad_fraction > self.max_bad_fraction:
            counts = Counter(self.quarantine.values()).most_common()
            reasons = ", ".join(f"{reason} {count}" for reason, count in counts)
            raise VidcmError(
                f"{len(self.quarantine)} of {len(self)} clips in {self.root} are bad: {reasons} "
                f"(last: {bad}); repair or remove them, or raise max_bad_fraction "
                f"(--max-bad-fraction), which is {self.max_bad_fraction:g}"
            ) from None


def _shapes(
    first: tuple[int, int, int], buckets: Sequence[Sequence[int]], fps: float
) -> list[tuple[int, int, int]]:
    """All shapes, each checked and different."""
    shapes = [first]
    for bucket in buckets:
        if len(bucket) != 3 or min(bucket) < 1 or tuple(bucket) in shapes:
            raise UsageError(
                f"the bucket {list(bucket)} is no further shape; write [num_frames, height, width]"
            )
        clip_seconds(bucket[0], fps)
        shapes.append((bucket[0], bucket[1], bucket[2]))
    return shapes


def _nearest(
    shapes: Sequence[tuple[int, int, int]], info: VideoInfo, fps: float
) -> tuple[int, int, int]:
    """Among the shapes short enough for a video, the nearest in aspect, then longest, then largest.

    A video too short for all of them gets one of the shortest, and is quarantined when it is read.
    """
    fits = [s for s in shapes if clip_seconds(s[0], fps) <= info.last_seconds + SLACK_SECONDS]
    shortest = min(s[0] for s in shapes)
    aspect = math.log(info.width / info.height)

    def key(shape: tuple[int, int, int]) -> tuple[float, int, int]:
        frames, height, width = shape
        return round(abs(math.log(width / height) - aspect), 6), -frames, -height

    return min(fits or [s for s in shapes if s[0] == shortest], key=key)
