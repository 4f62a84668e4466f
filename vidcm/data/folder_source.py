"""The videos of a folder as clips to encode."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from vidcm.data.filters import SHORT_SHOTS, Filter
from vidcm.data.folder import VideoFolder
from vidcm.data.source import Clips
from vidcm.media.media_file import BadClip
from vidcm.media.read import decoder_versions
from vidcm.media.shots import Shot


class FolderSource:
    """The videos of a folder as a source of `encode_cache`.

    Args:
        data: The folder.
        windows: Clips of a video that do not overlap, at most; None for all that fit. For more than
            one every video is probed.
        filters: What leaves clips out.
        rank: Of this process. Ranks on one machine share what they find out about videos, and each
            begins with its own part of them.
        world: Number of processes.
        progress: Called with a number of videos that were looked into.
    """

    def __init__(
        self,
        data: VideoFolder,
        windows: int | None = 1,
        filters: Sequence[Filter] = (),
        rank: int = 0,
        world: int = 1,
        progress: Callable[[int], object] = lambda count: None,
    ):
        self.data, self.filters = data, filters
        bits = (kind.duplicate_bits for kind in filters)
        self.duplicate_bits = next((number for number in bits if number is not None), None)
        self.shapes = [shape for shape, _ in data.buckets]
        videos = [i for _, some in data.buckets for i in some]
        first = len(videos) * rank // world
        data.probes.prepare(
            [*videos[first:], *videos[:first]], lambda i: self._starts(i, windows), progress
        )
        counts: list[int] = []
        self.clips: list[tuple[int, float]] = []
        self._unusable: dict[int, str] = {}  # videos of which no clip is read, and why
        for _, some in data.buckets:
            before = len(self.clips)
            for i in some:
                self.clips += [(i, start) for start in self._planned(i, windows)]
            counts.append(len(self.clips) - before)
        facts = {"data": "folder", "fps": data.fps, "listing": self._listing()}
        facts["decoder"] = decoder_versions()
        if filters:
            facts["filters"] = {kind.name: kind.threshold for kind in filters}
        self.facts: Mapping[str, Any] = facts
        self.counts: Sequence[int] = counts

    def _starts(self, i: int, windows: int | None) -> list[float]:
        """Starts of the clips of a video. Raises BadClip."""
        return self.data.starts(i, windows, self._shots(i))

    def _shots(self, i: int) -> list[Shot] | None:
        """Spans within which the clips of a video lie, None for anywhere. Raises BadClip."""
        name, probes = self.data.names[i], self.data.probes
        if name in probes.pictures:
            return None
        found = (kind.shots(probes, name, self.data.seconds(i)) for kind in self.filters)
        return next((shots for shots in found if shots is not None), None)

    def _planned(self, i: int, windows: int | None) -> list[float]:
        """Starts of the clips of a video, one of them for a video that is left out."""
        try:
            starts = self._starts(i, windows)
        except BadClip as bad:
            if self.filters:  # its beginning may be readable, and is not known to be good
                self.data.leave_out(self.data.names[i], bad)
                self._unusable[i] = bad.reason
            return [0.0]  # otherwise reading it says why it is left out
        if not starts:
            self._unusable[i] = SHORT_SHOTS
        return starts or [0.0]

    def _listing(self) -> str:
        """sha256 of what is encoded: names, sizes, starts, shapes and captions."""
        listing, data = hashlib.sha256(), self.data
        for i, start in self.clips:
            size = data.root.version(data.names[i]).partition(" ")[0]
            clip = (data.names[i], size, start, data.shape(i), data.captions(i))
            listing.update(repr(clip).encode())
        return listing.hexdigest()

    def read(self, numbers: range) -> Clips:
        """As in `Source`."""
        shape = self.data.shape(self.clips[numbers.start][0])
        found = Clips(torch.empty((0, *shape, 3), dtype=torch.uint8), [], [], {})
        kept = []
        for i, start in (self.clips[n] for n in numbers):
            name = self.data.names[i] + (f" at {start:.3f} s" if start else "")
            if i in self._unusable:
                found.left_out[name] = self._unusable[i]
                continue
            try:
                frames = self.data.clip(i, start=start)
            except BadClip as bad:
                found.left_out[name] = bad.reason
                continue
            pixels = frames.numpy()
            reason = next((f.reason for f in self.filters if f.rejects(pixels)), None)
            if reason is not None:
                found.left_out[name] = reason
                continue
            kept.append(frames)
            found.names.append(name)
            found.captions.append(self.data.captions(i))
            prints = (kind.fingerprint(pixels) for kind in self.filters)
            found.fingerprints += [text for text in prints if text is not None]
        if kept:
            found.frames = torch.stack(kept)
        return found
