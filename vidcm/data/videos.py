"""The videos below a folder."""

import os
from pathlib import Path

from vidcm.errors import UsageError

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


def few(names: list[str]) -> str:
    """The first five of some names, and how many more there are."""
    more = f", ... ({len(names) - 5} more)" if len(names) > 5 else ""
    return ", ".join(repr(name) for name in names[:5]) + more
