"""The videos and pictures below a folder, and what is left out of them."""

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from vidcm.data.media_root import MediaRoot
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
TEXTS = (".txt", ".json")  # beside a video, they may hold its captions
HOW = "clips of one frame take them: a bucket [1, height, width] (--bucket 1xHxW), or num_frames 1"
OGG_VIDEO = (b"theora", b"OVP80", b"BBCD")  # the codecs by the first bytes of their streams


@dataclass(frozen=True)
class Media:
    """Names below a folder, with / between folders, sorted.

    Attributes:
        videos: to be read.
        pictures: to be read if clips of one frame are wanted.
        texts: files that may hold captions.
        others: number of files that are not read, by their kind.
    """

    videos: list[str]
    pictures: list[str]
    texts: list[str]
    others: Counter[str]


def list_media(root: MediaRoot, pictures: bool = False) -> Media:
    """The media below a root; hidden ones are left out. Logs those of a kind that is not read.

    Args:
        root: the files.
        pictures: whether pictures will be read too.

    Raises:
        UsageError: there is nothing to read, or a link leads out of the root.
    """
    media = Media([], [], [], Counter())
    for name in root.names():
        kind = kind_of(root, name)
        if kind in ("video", "picture"):
            if kind == "video" or pictures:
                root.check(name)
            (media.videos if kind == "video" else media.pictures).append(name)
        elif name.lower().endswith(TEXTS):
            media.texts.append(name)
        elif kind:
            media.others[kind] += 1
    for names in (media.videos, media.pictures, media.texts):
        names.sort()
    if media.others:
        found = ", ".join(f"{count} {kind}" for kind, count in sorted(media.others.items()))
        log.warning("%s: left out %s, which are not read; convert them to mp4 or png", root, found)
    if not media.videos and not (pictures and media.pictures):
        also = f"; of its {len(media.pictures)} pictures, {HOW}" if media.pictures else ""
        raise UsageError(f"{root} holds no video ({', '.join(sorted(VIDEOS))}){also}")
    return media


def kind_of(root: MediaRoot, name: str) -> str:
    """What a file is by its name: "video", "picture", "", or a kind of media that is not read.

    A folder or pipe may be named as a video: it is quarantined when it is read.
    """
    path = PurePosixPath(name)
    suffix = path.suffix.lower()
    if path.name.startswith("."):
        return ""
    if suffix in VIDEOS:
        return "video" if suffix != ".ogg" or _starts_with(root, name, *OGG_VIDEO) else ""
    if suffix in PICTURES and root.is_file(name):
        animated = suffix == ".webp" and _starts_with(root, name, b"ANIM")
        return "animated .webp" if animated else "picture"
    return suffix if suffix in OTHERS else ""


def why_not_taken(root: MediaRoot, name: str) -> str | None:
    """Why a file is not among the videos of a root; None if there is no such file."""
    path = PurePosixPath(name)
    if not root.is_file(name):
        return None
    if any(part.startswith(".") for part in path.parts):
        return "hidden"
    if path.suffix.lower() in VIDEOS:
        return f"{path.suffix} without video"
    kind = kind_of(root, name)
    return f"{kind} is not read" if kind else f"{path.suffix or path.name} is no name of a video"


def few(names: Sequence[str]) -> str:
    """The first five of some names, and how many more there are."""
    more = f", ... ({len(names) - 5} more)" if len(names) > 5 else ""
    return ", ".join(repr(name) for name in names[:5]) + more


def _starts_with(root: MediaRoot, name: str, *marks: bytes) -> bool:
    """Whether one of some marks is in the first bytes of a file."""
    try:
        # Not of a pipe, which would wait for a writer.
        head = root.read([name], 4096)[name] if root.is_file(name) else b""
    except UsageError:
        return False
    return any(mark in head for mark in marks)
