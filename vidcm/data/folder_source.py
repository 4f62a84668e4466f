"""The videos of a folder as clips to encode."""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from vidcm.data.encoding import Clips
from vidcm.data.folder import VideoFolder
from vidcm.media.read import BadClip


class FolderSource:
    """The videos of a folder as a source of `encode_cache`.

    Args:
        data: The folder.
        windows: Clips of a video that do not overlap, at most; None for all that fit. For more than
            one every video is probed.
    """

    def __init__(self, data: VideoFolder, windows: int | None = 1):
        self.data = data
        self.shapes = [shape for shape, _ in data.buckets]
        counts: list[int] = []
        self.clips: list[tuple[int, float]] = []
        for _, videos in data.buckets:
            before = len(self.clips)
            for i in videos:
                try:
                    starts = data.starts(i, windows)
                except BadClip:
                    starts = [0.0]  # reading it says why it is left out
                self.clips += [(i, start) for start in starts]
            counts.append(len(self.clips) - before)
        listing = hashlib.sha256()
        for i, start in self.clips:
            name = data.names[i]
            file = data.root / name
            size = file.stat().st_size if file.is_file() else None
            listing.update(repr((name, size, start, data.shape(i), data.captions(i))).encode())
        facts = {"data": "folder", "fps": data.fps, "listing": listing.hexdigest()}
        self.facts: Mapping[str, Any] = facts
        self.counts: Sequence[int] = counts

    def read(self, numbers: range) -> Clips:
        """As in `Source`."""
        shape = self.data.shape(self.clips[numbers.start][0])
        found = Clips(torch.empty((0, *shape, 3), dtype=torch.uint8), [], [], {})
        frames = []
        for i, start in (self.clips[n] for n in numbers):
            name = self.data.names[i] + (f" at {start:.3f} s" if start else "")
            try:
                frames.append(self.data.clip(i, start=start))
            except BadClip as bad:
                found.left_out[name] = bad.reason
                continue
            found.names.append(name)
            found.captions.append(self.data.captions(i))
        if frames:
            found.frames = torch.stack(frames)
        return found
