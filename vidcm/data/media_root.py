"""Where videos and captions are: a folder, a tar, or an address that fsspec reads.

Names are relative to it, with / between folders; the members of a tar are below the tar's own name,
as `shard.tar/key.mp4`.
"""

import logging
import os
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Protocol

from vidcm.data.remote import RemoteFolder, is_remote
from vidcm.errors import UsageError
from vidcm.media.media_file import TAR, BadClip, media_file, member, tar_index, why

log = logging.getLogger(__name__)

COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")


class MediaRoot(Protocol):
    """Files by name; its text is what messages call it."""

    def names(self) -> Iterator[str]:
        """Yield the names of all files that are not hidden, and of folders named as files."""
        ...

    def check(self, name: str) -> None:
        """Raise UsageError for a name that may not be read."""
        ...

    def is_file(self, name: str) -> bool:
        """Whether a name is that of a regular file or a member."""
        ...

    def read(self, names: Iterable[str], count: int | None = None) -> dict[str, bytes]:
        """All bytes, or the first, of small files. Raises UsageError."""
        ...

    def local(self, name: str) -> AbstractContextManager[Path]:
        """A path to read a file from, which stays while the context does. Raises BadClip."""
        ...

    def version(self, name: str) -> str:
        """Text that changes with the contents of a file: size and time of change."""
        ...


def media_root(root: str | Path, follow_symlinks: bool, cache_gb: float) -> MediaRoot:
    """The files below a folder, in a tar, or below a URL.

    Args:
        root: path, or URL such as s3://bucket/folder.
        follow_symlinks: also take links that lead out of a folder.
        cache_gb: bound of the local copies of remote files, in GB.

    Raises:
        UsageError: it is none.
    """
    if is_remote(root):
        url = str(root).rstrip("/")
        if url.lower().endswith(TAR):
            folder, _, tar = url.rpartition("/")
            return RemoteRoot(RemoteFolder(folder, cache_gb), tar)
        return RemoteRoot(RemoteFolder(url, cache_gb))
    return LocalRoot(Path(root), follow_symlinks)


class LocalRoot:
    """A folder, or a single tar.

    Raises:
        UsageError: it is not there.
    """

    def __init__(self, root: Path, follow_symlinks: bool) -> None:
        self.root, self.follow_symlinks = root.resolve(), follow_symlinks
        if not self.root.is_dir() and not _is_tar(self.root):
            raise UsageError(f"{self.root} is not a folder, expected a folder of videos, or a .tar")

    def __str__(self) -> str:
        return str(self.root)

    def names(self) -> Iterator[str]:
        if not self.root.is_dir():
            yield from members(self.root, "")
            return
        seen = set()
        for folder, below, files in os.walk(self.root, followlinks=self.follow_symlinks):
            real = os.path.realpath(folder)
            if real in seen:  # a link to a folder above it
                below.clear()
                continue
            seen.add(real)
            below[:] = sorted(name for name in below if not name.startswith("."))
            for name in below:
                if not self.follow_symlinks:
                    self.check((Path(folder, name).relative_to(self.root)).as_posix())
            for name in files + below:
                path = Path(folder, name)
                relative = path.relative_to(self.root).as_posix()
                if name.startswith("."):
                    continue
                if _is_tar(path):
                    self.check(relative)
                    yield from members(path, f"{relative}/")
                else:
                    yield relative

    def check(self, name: str) -> None:
        path = self.root / name
        if self.follow_symlinks or Path(os.path.realpath(path)).is_relative_to(self.root):
            return
        raise UsageError(f"{path} links out of {self.root}; copy it, or set follow_symlinks=true")

    def is_file(self, name: str) -> bool:
        path = self.root / name
        return path.is_file() or member(path) is not None

    def read(self, names: Iterable[str], count: int | None = None) -> dict[str, bytes]:
        found = {}
        for name in names:
            try:
                found[name] = media_file(self.root / name).read(count)
            except BadClip as bad:
                if bad.reason != "empty":
                    raise UsageError(f"{bad.path} cannot be read: {bad.detail}") from None
                found[name] = b""
            except OSError as error:
                raise UsageError(f"{self.root / name} cannot be read: {why(error)}") from None
        return found

    def local(self, name: str) -> AbstractContextManager[Path]:
        return nullcontext(self.root / name)

    def version(self, name: str) -> str:
        try:
            file = media_file(self.root / name)
            return f"{file.size} {file.start} {os.stat(file.path).st_mtime_ns}"
        except (BadClip, OSError):
            return ""


class RemoteRoot:
    """Files below a URL, copied to a bounded cache as they are read.

    Args:
        folder: of the files.
        only: a tar in it, to read nothing else.
    """

    def __init__(self, folder: RemoteFolder, only: str = "") -> None:
        self.folder, self.only = folder, only
        self._found: set[str] = set()

    def __str__(self) -> str:
        return f"{self.folder.url}/{self.only}" if self.only else self.folder.url

    def names(self) -> Iterator[str]:
        for name in [self.only] if self.only else self.folder.names():
            if any(part.startswith(".") for part in name.split("/")):
                continue
            below = [name]
            if name.lower().endswith(TAR):
                with self.folder.local(name) as path:
                    below = list(members(path, f"{name}/"))
            self._found.update(below)
            yield from below

    def check(self, name: str) -> None:
        """Everything below the URL may be read."""

    def is_file(self, name: str) -> bool:
        return name in self._found

    def read(self, names: Iterable[str], count: int | None = None) -> dict[str, bytes]:
        names = list(names)
        found = self.folder.read([name for name in names if TAR + "/" not in name], count)
        for name in names:
            if name not in found:
                with self.local(name) as path:
                    found[name] = media_file(path).read(count)
        return found

    def local(self, name: str) -> AbstractContextManager[Path]:
        tar, inside, member = name.partition(TAR + "/")
        return self.folder.local(tar + TAR, member) if inside else self.folder.local(name)

    def version(self, name: str) -> str:
        tar, inside, _ = name.partition(TAR + "/")
        return self.folder.version(tar + TAR if inside else name)


def members(tar: Path, prefix: str) -> Iterator[str]:
    """Yield the names of the files in a tar, below a prefix. Raises UsageError."""
    try:
        index = tar_index(tar)
    except (OSError, ValueError) as error:
        raise UsageError(f"{tar} cannot be read: {why(error)}") from None
    for problem in index.problems:
        log.warning("%s: %s; the other members are read", tar, problem)
    for name in index.ranges:
        if not any(part.startswith(".") for part in name.split("/")):
            yield prefix + name


def _is_tar(path: Path) -> bool:
    if path.name.lower().endswith(COMPRESSED):
        raise UsageError(f"{path} is compressed and cannot be read in place; write a plain .tar")
    return path.suffix.lower() == TAR and path.is_file()
