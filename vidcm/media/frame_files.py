"""A folder of pictures as the frames of a clip, in the order of the numbers in their names."""

import logging
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from vidcm.errors import UsageError
from vidcm.media.pictures import SUFFIXES

log = logging.getLogger(__name__)


def frame_files(folder: Path) -> list[Path]:
    """The pictures of a folder, frame 2 before frame 10; hidden files are left out.

    Names may differ in their numbers alone.

    Args:
        folder: the folder.

    Raises:
        UsageError: no pictures, names of several kinds, or several pictures of one number.
    """
    found = sorted(
        p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES and not p.name.startswith(".")
    )
    if not found:
        raise UsageError(
            f"{folder} holds no pictures (.png, .jpg, .webp, .tif, ...); give a folder of frames, "
            "or a video"
        )
    kinds = Counter(re.sub(r"\d+", "#", path.stem) for path in found)
    if len(kinds) > 1:
        examples = {re.sub(r"\d+", "#", path.stem): path.name for path in reversed(found)}
        named = ", ".join(f"{count} as {examples[kind]}" for kind, count in kinds.most_common(5))
        raise UsageError(
            f"{folder} holds pictures with names of {len(kinds)} kinds ({named}), whose order is "
            "not known; give a folder of one clip's frames, numbered"
        )
    ordered = sorted(found, key=_numbers)
    for one, two in zip(ordered, ordered[1:], strict=False):
        if _numbers(one) == _numbers(two):
            raise UsageError(f"{one} and {two.name} have the same number; keep one of them")
    return ordered


def _numbers(path: Path) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", path.stem)))


def warn_of_gaps(folder: Path, ordered: Sequence[Path]) -> None:
    """Log missing numbers among the frames of a folder, and names that count in several places."""
    places = [set(column) for column in zip(*map(_numbers, ordered), strict=True)]
    counting = [i for i, values in enumerate(places) if len(values) > 1]
    if len(counting) > 1:
        log.warning(
            "%s: names count in %d places; taken from %s, %s to %s",
            folder,
            len(counting),
            *(ordered[i].name for i in (0, 1, -1)),
        )
    if len(counting) != 1:
        return
    numbers = [_numbers(path)[counting[0]] for path in ordered]
    steps = [b - a for a, b in zip(numbers, numbers[1:], strict=False)]
    usual = min(steps)
    gaps = [i for i, step in enumerate(steps) if step > usual]
    if gaps:
        named = ", ".join(f"{ordered[i].name} to {ordered[i + 1].name}" for i in gaps[:5])
        more = f", ... ({len(gaps) - 5} more)" if len(gaps) > 5 else ""
        log.warning(
            "%s: numbers are missing in %d places: %s%s; the frames beside them follow each other",
            folder,
            len(gaps),
            named,
            more,
        )
