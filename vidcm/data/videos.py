"""The videos and pictures below a folder, and what is left out of them."""

import logging
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from vidcm.errors import UsageError
from vidcm.media.pictures import SUFFIXES as PICTURES

log = logging.getLogger(__name__)

VIDEOS = frozenset(
    ".mp4 .m4v .mov .qt .f4v .3gp .3g2 .mkv .webm .avi .gif .apng .mpg .mpeg .mpe .m1v .m2v .vob"
    " .ts .mts .m2ts .flv .ogv .ogg .asf .wmv .264 .h264 .265 .hevc .ivf .obu .mxf .nut".split()
)
# Of media that are not read, so that they are not left out without a word.
OTHERS = frozenset(
    ".dv .mjpeg .mjpg .y4m .yuv .rm .rmvb .swf .wtv .amv .r3d .braw .heic .heif .jxl .exr .dpx .psd"
    " .svg .dng .cr2 .cr3 .nef .arw".split()
)
HOW = "clips of one frame take them: a bucket [1, height, width] (--bucket 1xHxW), or num_frames 1"
OGG_VIDEO = (b"theora", b"OVP80", b"BBCD")  # the codecs by the first bytes of their streams


@dataclass(frozen=True)
class Media:
    """Names below a folder, with / between folders, sorted.

    Attributes:
        videos: to be read.
        pictures: to be read if clips of one frame are wanted.
        others: number of files that are not read, by their kind.
    """

    videos: list[str]
    pictures: list[str]
    others: Counter[str]


def list_media(root: Path, follow_symlinks: bool, pictures: bool = False) -> Media:
    """The media below a folder; hidden ones are left out. Logs those of a kind that is not read.

    Args:
        root: the folder.
        follow_symlinks: also take links that lead out of it.
        pictures: whether pictures will be read too.

    Raises:
        UsageError: there is nothing to read, or a link leads out of the folder.
    """
    if not root.is_dir():
        raise UsageError(f"{root} is not a folder, expected a folder of videos")
    media, seen = Media([], [], Counter()), set()
    for folder, below, files in os.walk(root, followlinks=follow_symlinks):
        real = os.path.realpath(folder)
        if real in seen:  # a link to a folder above it
            below.clear()
            continue
        seen.add(real)
        below[:] = sorted(name for name in below if not name.startswith("."))
        for name in files + below:
            path, kind = Path(folder, name), kind_of(Path(folder, name))
            taken = kind == "video" or (kind == "picture" and pictures)
            if (taken or name in below) and not follow_symlinks:
                _refuse_outside(path, root)
            if kind in ("video", "picture"):
                names = media.videos if kind == "video" else media.pictures
                names.append(path.relative_to(root).as_posix())
            elif kind:
                media.others[kind] += 1
    media.videos.sort()
    media.pictures.sort()
    if media.others:
        found = ", ".join(f"{count} {kind}" for kind, count in sorted(media.others.items()))
        log.warning("%s: left out %s, which are not read; convert them to mp4 or png", root, found)
    if not media.videos and not (pictures and media.pictures):
        also = f"; of its {len(media.pictures)} pictures, {HOW}" if media.pictures else ""
        raise UsageError(f"{root} holds no video ({', '.join(sorted(VIDEOS))}){also}")
    return media


def kind_of(path: Path) -> str:
    """What a file is by its name: "video", "picture", "", or a kind of media that is not read.

    A folder or pipe may be named as a video: it is quarantined when it is read.
    """
    suffix = path.suffix.lower()
    if path.name.startswith("."):
        return ""
    if suffix in VIDEOS:
        return "video" if suffix != ".ogg" or _starts_with(path, *OGG_VIDEO) else ""
    if suffix in PICTURES and path.is_file():
        animated = suffix == ".webp" and _starts_with(path, b"ANIM")
        return "animated .webp" if animated else "picture"
    return suffix if suffix in OTHERS else ""


def why_not_taken(root: Path, name: str) -> str | None:
    """Why a file is not among the videos below `root`; None if there is no such file."""
    path = root / name
    if not path.exists():
        return None
    if any(part.startswith(".") for part in Path(name).parts):
        return "hidden"
    if path.suffix.lower() in VIDEOS:
        return f"{path.suffix} without video"
    kind = kind_of(path)
    return f"{kind} is not read" if kind else f"{path.suffix or path.name} is no name of a video"


def few(names: Sequence[str]) -> str:
    """The first five of some names, and how many more there are."""
    more = f", ... ({len(names) - 5} more)" if len(names) > 5 else ""
    return ", ".join(repr(name) for name in names[:5]) + more


def _starts_with(path: Path, *marks: bytes) -> bool:
    """Whether one of some marks is in the first bytes of a file."""
    try:
        head = b""
        if path.is_file():  # a pipe would wait for a writer
            with path.open("rb") as file:
                head = file.read(4096)
    except OSError:
        return False
    return any(mark in head for mark in marks)


def _refuse_outside(path: Path, root: Path) -> None:
    if not Path(os.path.realpath(path)).is_relative_to(root):
        fix = "copy it, or set follow_symlinks=true"
        raise UsageError(f"{path} links out of {root}; {fix}")
