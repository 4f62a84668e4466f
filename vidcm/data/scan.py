"""What `vidcm encode` would take of a folder and leave out, without encoding it."""

from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from vidcm.data.buckets import Shape
from vidcm.data.duplicates import REASON, near_duplicates
from vidcm.data.folder_source import FolderSource
from vidcm.data.shape_suggestion import distribution, suggest_shapes
from vidcm.media.media_file import BadClip


@dataclass
class Scan:
    """A report on a folder.

    Attributes:
        clips: Number of clips that would be encoded.
        left_out: Name -> reason of the others.
        bad: Number of those that cannot be read; the others are the choice of filters.
        shapes: Number of planned clips of each shape.
        found: Distribution of aspect ratios and seconds of the videos.
        suggested: Shapes that fit the videos, with the number of videos of each.
    """

    clips: int
    left_out: dict[str, str]
    bad: int
    shapes: dict[Shape, int]
    found: dict[str, dict[str, float]]
    suggested: dict[Shape, int]

    @property
    def reasons(self) -> dict[str, int]:
        """Number of clips left out by reason, most first."""
        return dict(Counter(self.left_out.values()).most_common())


def scan(source: FolderSource, batch_size: int, progress: Callable[[int], object]) -> Scan:
    """Read every clip of a folder and report on them.

    Args:
        source: Of the clips.
        batch_size: Clips in memory at a time.
        progress: Called with a number of clips.
    """
    data = source.data
    names: list[str] = []
    fingerprints: list[str] = []
    left_out: dict[str, str] = {}
    first = 0
    for count in source.counts:
        for start in range(first, first + count, batch_size):
            numbers = range(start, min(start + batch_size, first + count))
            clips = source.read(numbers)
            names += clips.names
            fingerprints += clips.fingerprints
            left_out |= clips.left_out
            progress(len(numbers))
        first += count
    chosen = {kind.reason for kind in source.filters}
    bad = sum(reason not in chosen for reason in left_out.values())
    bits = source.duplicate_bits
    near = {} if bits is None else near_duplicates(fingerprints, bits)
    left_out |= {names[i]: REASON for i in near}
    data.probes.prepare(data.names, data.probes.info)
    infos = []
    for name in data.names:
        with suppress(BadClip):
            infos.append(data.probes.info(name))
    _, height, width = data.shapes[0]
    return Scan(
        clips=len(names) - len(near),
        left_out=left_out,
        bad=bad,
        shapes=dict(zip(source.shapes, source.counts, strict=True)),
        found=distribution(infos) if infos else {},
        suggested=suggest_shapes(infos, data.fps, height * width) if infos else {},
    )
