"""A media file as bytes: a regular file, or a member of an uncompressed tar, read in its place.

`folder/shard.tar/key.mp4` is the path of the member `key.mp4`. In an uncompressed tar a member is
one range of bytes, which FFmpeg's protocol `subfile` reads; nothing is unpacked.
"""

from __future__ import annotations

import os
import stat
import tarfile
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from vidcm.errors import VidcmError

TAR = ".tar"
PROTOCOLS = "file,subfile"
SEGMENT = b"\x18\x53\x80\x67"  # the element of a Matroska file that holds all others
EBML = b"\x1aE\xdf\xa3"  # the first bytes of one

# Reasons that hold for a file wherever it is read.
FILE_REASONS = frozenset(
    "missing permission not-a-file empty not-video unreadable no-video-stream".split()
)


class BadClip(VidcmError):
    """A clip that cannot be used.

    Attributes:
        path: the file.
        reason: missing, permission, not-a-file, empty, not-video, unreadable, no-video-stream,
            too-large, too-short, truncated, decode-error, decoder-crash or timeout.
        detail: a sentence.
    """

    def __init__(self, path: str, reason: str, detail: str) -> None:
        super().__init__(path, reason, detail)
        self.path, self.reason, self.detail = path, reason, detail

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}: {self.detail}"


def why(error: Exception) -> str:
    """The text of an error without number and path."""
    return getattr(error, "strerror", None) or str(error)


class MediaFile(NamedTuple):
    """Bytes of a file.

    Attributes:
        name: its absolute path, for messages; that of a member goes through its tar.
        path: of the file on the disk.
        start: first byte.
        size: number of bytes.
        whole: whether these are all bytes of the file.
    """

    name: str
    path: str
    start: int
    size: int
    whole: bool

    @property
    def url(self) -> str:
        """The address for FFmpeg, with its protocol, so that no name is taken for another."""
        file = f"file:{self.path}"
        if self.whole:
            return file
        return f"subfile,,start,{self.start},end,{self.start + self.size},,:{file}"

    def read(self, count: int | None = None) -> bytes:
        """The first bytes, or all. Raises OSError."""
        with open(self.path, "rb") as raw:
            raw.seek(self.start)
            return raw.read(self.size if count is None else min(count, self.size))

    @property
    def segment_end(self) -> int:
        """Byte at which the segment of a Matroska file ends, 0 if unknown or in other files."""
        head = self.read(4096)
        at = head.find(SEGMENT) + len(SEGMENT)
        if not head.startswith(EBML) or at < len(SEGMENT) or at + 8 > len(head):
            return 0
        # The number of leading zero bits is that of further bytes; all ones mean unknown (RFC 8794)
        length = 9 - head[at].bit_length()
        if length > 8:
            return 0
        bits = 7 * length
        size = int.from_bytes(head[at : at + length], "big") & ((1 << bits) - 1)
        return 0 if size == (1 << bits) - 1 else at + length + size


def media_file(path: str | os.PathLike[str]) -> MediaFile:
    """A readable, non-empty regular file or member of a tar, found without blocking.

    Raises:
        BadClip: it is not one.
    """
    name = os.path.abspath(os.fspath(path))
    try:
        found = _located(name)
        if not found.size:
            raise BadClip(name, "empty", "the file has 0 bytes")
        with open(found.path, "rb"):
            return found
    except (FileNotFoundError, NotADirectoryError):
        raise BadClip(name, "missing", "no such file") from None
    except PermissionError:
        raise BadClip(name, "permission", "this user may not read it") from None
    except (OSError, ValueError) as error:
        raise BadClip(name, "unreadable", why(error)) from None


def _located(name: str) -> MediaFile:
    """Where the bytes of a path are. Raises OSError, ValueError and BadClip."""
    try:
        status = os.stat(name)
    except NotADirectoryError:
        found = member(Path(name))
        if found is None:
            raise
        return MediaFile(name, str(found[0]), *found[1], whole=False)
    if not stat.S_ISREG(status.st_mode):  # opening a FIFO would wait for a writer
        raise BadClip(name, "not-a-file", "a folder, pipe or device, expected a regular file")
    return MediaFile(name, name, 0, status.st_size, whole=True)


def member(path: Path) -> tuple[Path, tuple[int, int]] | None:
    """The tar of a member, and its first byte and size; None if there is no such member.

    Raises:
        ValueError: what should be a tar is none.
        OSError: it cannot be read.
    """
    tar = next((parent for parent in path.parents if parent.is_file()), None)
    if tar is None or tar.suffix.lower() != TAR:
        return None
    found = tar_index(tar).ranges.get(path.relative_to(tar).as_posix())
    return None if found is None else (tar, found)


class TarIndex(NamedTuple):
    """The regular files in a tar.

    Attributes:
        ranges: first byte and size of each, by name.
        problems: what is left out of them, in words.
    """

    ranges: dict[str, tuple[int, int]]
    problems: list[str]


def tar_index(tar: Path) -> TarIndex:
    """The members of an uncompressed tar that can be read, up to where it is cut.

    Links and devices are left out, and members whose names lead out of it.

    Raises:
        ValueError: the file is no uncompressed tar.
        OSError: it cannot be read.
    """
    status = tar.stat()
    return _indexed(tar, status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=256)
def _indexed(tar: Path, size: int, mtime_ns: int) -> TarIndex:
    ranges: dict[str, tuple[int, int]] = {}
    unsafe, problems = 0, []
    try:
        with tarfile.open(tar, "r:") as archive:
            for member in archive:
                path = PurePosixPath(member.name)
                if member.isdir():
                    continue
                if not member.isreg() or member.issparse() or _leads_out(path):
                    unsafe += 1
                elif member.offset_data + member.size > size:
                    problems.append(f"it is cut in {member.name}")
                else:
                    ranges[path.as_posix()] = member.offset_data, member.size
    except tarfile.TarError as error:
        if not ranges and not unsafe:
            raise ValueError(f"no uncompressed tar ({error})") from None
        problems.append(f"it is cut or damaged ({error})")
    if unsafe:
        problems.append(f"{unsafe} members are links or devices, or lead out of it")
    return TarIndex(ranges, problems)


def _leads_out(path: PurePosixPath) -> bool:
    return path.is_absolute() or ".." in path.parts
