"""The videos below a folder, and their captions."""

import logging
import os
from pathlib import Path

from vidcm.data.sidecars import METADATA, read_metadata, read_text
from vidcm.errors import UsageError

log = logging.getLogger(__name__)

VIDEOS = frozenset(
    ".mp4 .m4v .mov .mkv .webm .avi .gif .mpg .mpeg .ts .m2ts .flv .3gp .ogv .wmv .264 .h264 .265"
    " .hevc .ivf .obu .mxf .nut".split()
)


def find_videos(root: Path, follow_symlinks: bool) -> list[str]:
    """Names below root, with / between folders; hidden ones are left out."""
    if not root.is_dir():
        raise UsageError(f"{root} is not a folder, expected a folder of videos")
    names, seen = [], set()
    for folder, below, files in os.walk(root, followlinks=follow_symlinks):
        real = os.path.realpath(folder)
        if real in seen:  # a link to a folder above it
            below.clear()
            continue
        seen.add(real)
        below[:] = sorted(name for name in below if not name.startswith("."))
        for name in files + below:
            path = Path(folder, name)
            video = path.suffix.lower() in VIDEOS and not name.startswith(".")
            inside = Path(os.path.realpath(path)).is_relative_to(root)
            if (video or name in below) and not inside and not follow_symlinks:
                fix = "copy it, or set follow_symlinks=true"
                raise UsageError(f"{path} links out of {root}; {fix}")
            if video:  # a folder or pipe named x.mp4 is quarantined when read
                names.append(path.relative_to(root).as_posix())
    if not names:
        raise UsageError(f"{root} holds no video ({', '.join(sorted(VIDEOS))})")
    return sorted(names)


def match_captions(root: Path, names: list[str], policy: str) -> dict[str, str]:
    """Captions by video name, complete in both directions except as the policy allows."""
    files = [root / name for name in METADATA if (root / name).is_file()]
    if len(files) > 1:
        raise UsageError(f"{root} has {' and '.join(METADATA)}; keep one of them")
    if files:
        found = read_metadata(files[0])
        where = files[0].name
        missing = sorted(found.keys() - names)
        if missing:
            raise UsageError(
                f"{files[0]} names {len(missing)} videos that are not in {root}: {_five(missing)}"
            )
    else:
        beside = {name: (root / name).with_suffix(".txt") for name in names}
        found = {name: read_text(txt).strip() for name, txt in beside.items() if txt.is_file()}
        where = f"a .txt beside it, and there is no {' or '.join(METADATA)}"
    without = [name for name in names if name not in found]
    if without and policy == "error":
        raise UsageError(
            f"{len(without)} of {len(names)} videos in {root} have no caption in {where}: "
            f"{_five(without)}; add them, or set missing_captions (--missing-captions) to 'empty' "
            "or 'skip'"
        )
    if policy == "empty":
        found |= dict.fromkeys(without, "")
    elif without:
        log.warning("%s: left out %d videos without caption", root, len(without))
    blank = [name for name, text in found.items() if not text]
    if blank:
        log.warning("%s: %d captions are empty: %s", root, len(blank), _five(blank))
    return found


def _five(names: list[str]) -> str:
    more = f", ... ({len(names) - 5} more)" if len(names) > 5 else ""
    return ", ".join(repr(name) for name in names[:5]) + more
