"""Anybody's clips: a folder of videos, captions in one file or beside each video."""

import logging
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path

import torch

from vidcm.data.batch import Batch
from vidcm.data.buckets import Shape, checked_shapes, nearest_shape
from vidcm.data.captions import match_captions
from vidcm.data.media_root import media_root
from vidcm.data.order import Order, one_shape
from vidcm.data.probes import Probes
from vidcm.data.videos import HOW, few, list_media
from vidcm.errors import UsageError, VidcmError
from vidcm.media.media_file import FILE_REASONS
from vidcm.media.pictures import read_picture
from vidcm.media.read import BadClip, Frames
from vidcm.media.shots import Shot
from vidcm.media.timing import END_SLACK_SECONDS, clip_seconds, frame_times, random_start
from vidcm.media.transforms import resize_crop
from vidcm.media.worker import ReaderPool, ReaderProcess
from vidcm.rng import mix

log = logging.getLogger(__name__)

MIN_START_SECONDS = 0.1  # a clip that does not fit from here on begins with the file


class VideoFolder:
    """Clips of the videos below a folder or in tars, each with one or several captions.

    Captions come from `metadata.jsonl`, `.csv` or `.parquet` in `root` (columns `file_name` and
    `text` or `caption`), otherwise from a `.txt` or `.json` beside each video. Pictures are clips
    of one frame, if there is a shape of one frame; otherwise they are left out. What cannot be read
    is put on the list `quarantine` (file name -> reason), and another takes its place.

    Args:
        root: the folder, a tar, or a URL that fsspec reads, such as s3://bucket/folder.
        num_frames: frames per clip, 4k+1.
        size: height and width of clips, in pixels.
        buckets: further shapes (num_frames, height, width). A video gets the shape nearest in
            aspect ratio among those it is long enough for, then the longest; those of one frame
            are for pictures, and for videos too short for others.
        batch_size: positions of a training step, which have the same shape.
        fps: frames per second of clips, whatever the rate of the video.
        missing_captions: policy for videos without a caption: "error", "empty" (an empty caption,
            which is unconditional) or "skip".
        deadline: seconds to decode one clip.
        max_bad_fraction: share of videos, 0 to 1, that may be quarantined; the next one raises.
        follow_symlinks: also take links that lead out of `root`.
        cache_gb: bound of the local copies of remote files, in GB.

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
        deadline: float = 30.0,
        max_bad_fraction: float = 0.01,
        follow_symlinks: bool = False,
        cache_gb: float = 20.0,
    ) -> None:
        clip_seconds(num_frames, fps)
        if len(size) != 2 or min(size) < 1:
            raise UsageError(f"size is {size}, expected (height, width), each at least 1")
        if missing_captions not in ("error", "empty", "skip"):
            raise UsageError(
                f"missing_captions is {missing_captions!r}, expected 'error', 'empty' or 'skip'"
            )
        if not 0 <= max_bad_fraction <= 1:
            raise UsageError(f"max_bad_fraction is {max_bad_fraction}, expected 0 to 1")
        self.root, self.fps = media_root(root, follow_symlinks, cache_gb), fps
        self.shapes = checked_shapes((num_frames, size[0], size[1]), buckets, fps)
        self.max_bad_fraction = max_bad_fraction
        self.quarantine: dict[str, str] = {}
        self._readers = ReaderPool(deadline=deadline)
        self._shape_of: dict[int, Shape] = {}
        one_frame = any(shape[0] == 1 for shape in self.shapes)
        media = list_media(self.root, one_frame)
        self._pictures = frozenset(media.pictures if one_frame else ())
        left_out = [] if one_frame else media.pictures
        if left_out:
            found = f"{len(left_out)} pictures ({few(left_out)})"
            log.warning("%s: left out %s; %s", self.root, found, HOW)
        names = sorted([*media.videos, *self._pictures])
        self.probes = Probes(self.root, self._pictures, self._readers)
        self._captions = match_captions(self.root, names, media.texts, left_out, missing_captions)
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

    def _sorted(self) -> list[tuple[Shape, list[int]]]:
        """Shapes with the indices of their clips."""
        if len(self.shapes) == 1:
            return [(self.shapes[0], list(range(len(self))))]
        self.probes.prepare(self.names, self.probes.info)
        found: dict[Shape, list[int]] = {}
        for i, name in enumerate(self.names):
            shape = self.shapes[0]
            try:
                shape = nearest_shape(self.shapes, self.probes.info(name), self.fps)
            except BadClip as bad:
                self.leave_out(name, bad)
            found.setdefault(shape, []).append(i)
        self._shape_of = {i: shape for shape, clips in found.items() for i in clips}
        return sorted(found.items())

    def shape(self, i: int) -> Shape:
        """Frames, height and width of clip i."""
        return self._shape_of.get(i, self.shapes[0])

    def captions(self, i: int) -> list[str]:
        """Captions of clip i, [""] if it has none."""
        return self._captions[self.names[i]]

    def starts(
        self, i: int, most: int | None = 1, shots: Sequence[Shot] | None = None
    ) -> list[float]:
        """Starts of clips of video i that do not overlap, in seconds.

        Args:
            i: index of the video.
            most: so many at most, spread over the video; None for all that fit.
            shots: within which they lie; otherwise the whole video, and at least one.

        Raises:
            BadClip: the video cannot be read.
        """
        name = self.names[i]
        if name in self._pictures or (most == 1 and shots is None):
            return [0.0]
        num_frames = self.shape(i)[0]
        if shots is None:
            info = self.probes.info(name)
            # windows do not repeat the last frame
            shots = [Shot(0.0, max(info.last_seconds - info.hold_seconds, self.seconds(i)))]
        step = num_frames / self.fps
        found = []
        for shot in shots:
            room = shot.last - shot.first - self.seconds(i) + END_SLACK_SECONDS
            found += [shot.first + k * step for k in range(int(room / step) + 1 if room > 0 else 0)]
        kept = len(found) if most is None else min(most, len(found))
        return [found[k * len(found) // kept] for k in range(kept)]

    def seconds(self, i: int) -> float:
        """Seconds from the first to the last frame of clip i."""
        return clip_seconds(self.shape(i)[0], self.fps)

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
        num_frames, *size = self.shape(i)
        if (reason := self.quarantine.get(name)) in FILE_REASONS:
            raise BadClip(f"{self.root}/{name}", str(reason), "quarantined before")
        try:
            with self.root.local(name) as path:
                if name in self._pictures:
                    return self._picture(i, path, rng)
                if rng is None:
                    times = frame_times(num_frames, self.fps, start)
                    found = self.reader.read(path, times, (size[0], size[1]))
                else:
                    found = self._read_at_random(i, path, rng)
        except BadClip as bad:
            self.leave_out(name, bad)
            raise
        return torch.from_numpy(found.frames)

    def _picture(self, i: int, path: Path, rng: torch.Generator | None) -> torch.Tensor:
        """The clip of one frame that a picture is, its crop drawn if there is a generator."""
        _, height, width = self.shape(i)
        frames = read_picture(path)[None]
        place = None
        if rng is not None:
            down, across = torch.rand(2, generator=rng, dtype=torch.float64).tolist()
            place = (down, across)
        return torch.from_numpy(resize_crop(frames, (height, width), place))

    def _read_at_random(self, i: int, path: Path, rng: torch.Generator) -> Frames:
        """Frames from a random start, drawn anew where the file ends before its header says."""
        num_frames, height, width = self.shape(i)
        info = self.probes.info(self.names[i])
        last, last_frame = info.last_seconds, info.last_seconds - info.hold_seconds
        while True:
            start = random_start(last, num_frames, self.fps, rng)
            down, across = torch.rand(2, generator=rng, dtype=torch.float64).tolist()
            times = frame_times(num_frames, self.fps, start).clip(max=last_frame)
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

    def leave_out(self, name: str, bad: BadClip) -> None:
        """Put a video on the list of those that cannot be read. Raises VidcmError if it is long."""
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
