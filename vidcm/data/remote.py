"""Remote files through fsspec, copied to a bounded cache on this machine as they are needed."""

import fcntl
import hashlib
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

from vidcm.cache import cache_folder
from vidcm.errors import UsageError, VidcmError
from vidcm.files import file_hash, replacing
from vidcm.media.media_file import BadClip, why

Found = TypeVar("Found")
ATTEMPTS = 3
CONNECTIONS = 16  # for small files
PAUSE_SECONDS = 1.0  # before the second attempt, then twice as long


def is_remote(path: str | Path) -> bool:
    """Whether a path is a URL, such as s3://bucket/folder."""
    return isinstance(path, str) and "://" in path


class RemoteFolder:
    """Files below a URL.

    Copies are kept in the cache folder of this user, by address and version, and shared by all
    processes. Those that were used longest ago make room for new ones; what is in use stays.

    Args:
        url: the folder, such as s3://bucket/folder or https://host/folder.
        cache_gb: bound of all copies together, in GB.

    Raises:
        UsageError: there is no such protocol, or its package is not installed.
    """

    def __init__(self, url: str, cache_gb: float) -> None:
        if not cache_gb > 0:
            raise UsageError(f"cache_gb is {cache_gb}, expected a number above 0")
        self.url, self.bound = url.rstrip("/"), int(cache_gb * 1e9)
        self.cache = cache_folder() / "remote"
        try:
            import fsspec

            self._fs, self._root = fsspec.core.url_to_fs(self.url)
        except ImportError as error:
            fix = f"pip install -e '.[remote]' ({error})"
            raise UsageError(f"{url} needs packages that are not installed: {fix}") from None
        except ValueError as error:
            raise UsageError(f"{url} is no address that fsspec reads: {error}") from None
        self._infos: dict[str, dict[str, Any]] = {}

    def names(self) -> list[str]:
        """Names of all files, sorted. Raises VidcmError."""

        def find() -> dict[str, dict[str, Any]]:
            self._fs.ls(self._root, detail=False)  # `find` takes what it cannot reach for empty
            return self._fs.find(self._root, detail=True)

        found = self._tried(self.url, find)
        start = self._root.rstrip("/") + "/"
        below = {path: info for path, info in found.items() if path.startswith(start)}
        self._infos = {path.removeprefix(start): info for path, info in below.items()}
        return sorted(self._infos)

    def read(self, names: Sequence[str], count: int | None = None) -> dict[str, bytes]:
        """The bytes of small files, or their first bytes. Raises VidcmError."""

        def fetched(name: str) -> bytes:
            path = f"{self._root}/{name}"
            return self._tried(
                f"{self.url}/{name}", lambda: self._fs.cat_file(path, 0, count)[:count]
            )

        with ThreadPoolExecutor(CONNECTIONS) as pool:
            return dict(zip(names, pool.map(fetched, names), strict=True))

    def version(self, name: str) -> str:
        """Size, and what else the server says of a version."""
        info = self._info(name)
        keys = ("size", "ETag", "etag", "Content-MD5", "mtime", "LastModified")
        keys += ("Last-Modified", "updated", "created")
        return " ".join(f"{info[key]}" for key in keys if info.get(key) is not None)

    @contextmanager
    def local(self, name: str, member: str = "", sha256: str | None = None) -> Iterator[Path]:
        """A copy of a file, which stays while the context does.

        Args:
            name: of the file.
            member: of a tar: the path goes on to it.
            sha256: of the contents, which a new copy must have.

        Raises:
            VidcmError: the file cannot be read, or it is another one.
        """
        size = self._info(name).get("size") or 0
        key = hashlib.sha256(f"{self.url}\n{name}\n{self.version(name)}".encode()).hexdigest()[:32]
        folder = self.cache / key
        file = folder / Path(name).name
        while True:  # in between, another process may make room
            with _locked(folder, fcntl.LOCK_SH):
                if file.exists():
                    os.utime(folder)
                    yield file / member if member else file
                    return
            with _locked(folder, fcntl.LOCK_EX):
                if not file.exists():
                    self._make_room(name, size)
                    self._copy(name, file, size, sha256)

    def _copy(self, name: str, file: Path, size: int, sha256: str | None) -> None:
        with replacing(file) as part:
            address = f"{self.url}/{name}"
            self._tried(address, lambda: self._fs.get_file(f"{self._root}/{name}", str(part)))
            if size and part.stat().st_size != size:
                raise VidcmError(f"{address} has {part.stat().st_size} of {size} bytes; try again")
            if sha256 is not None and file_hash(part) != sha256:
                raise VidcmError(
                    f"{address} is damaged (its sha256 is not that in the index); upload it again"
                )

    def _make_room(self, name: str, size: int) -> None:
        """Remove the copies used longest ago, so that another has room."""
        if size > self.bound:
            raise UsageError(
                f"{self.url}/{name} has {size / 1e9:.3g} GB, more than the cache may hold "
                f"({self.bound / 1e9:g} GB); raise cache_gb (--cache-gb)"
            )
        entries = []
        for folder in self.cache.iterdir():
            with suppress(OSError):  # another process removes it
                files = sum(file.stat().st_size for file in folder.iterdir())
                entries.append((folder.stat().st_mtime, files, folder))
        total = sum(files for _, files, _ in entries)
        for _, files, folder in sorted(entries):
            if total + size <= self.bound:
                return
            if _removed(folder):
                total -= files

    def _info(self, name: str) -> dict[str, Any]:
        if self._infos.get(name, {}).get("size") is None:  # listings of web servers have no sizes
            address = f"{self.url}/{name}"
            self._infos[name] = self._tried(address, lambda: self._fs.info(f"{self._root}/{name}"))
        return self._infos[name]

    def _tried(self, address: str, action: Callable[[], Found]) -> Found:
        """The result of an action, tried again after failures that may pass."""
        last: BaseException | None = None
        for attempt in range(ATTEMPTS):
            try:
                return action()
            except VidcmError:
                raise
            except Exception as error:  # of whatever package speaks the protocol
                # For http, "not found" may be a failed connection.
                cause = error.__cause__ if isinstance(error, FileNotFoundError) else error
                if cause is None or not isinstance(cause, OSError) and cause is not error:
                    raise BadClip(address, "missing", "no such file") from None
                if isinstance(cause, PermissionError):
                    raise BadClip(address, "permission", why(cause)) from None
                last = cause
            if attempt + 1 < ATTEMPTS:
                time.sleep(PAUSE_SECONDS * 2**attempt)
        detail = (str(last).splitlines() or [type(last).__name__])[0]
        raise VidcmError(
            f"{address} cannot be reached in {ATTEMPTS} attempts ({detail}); is this machine "
            "online?"
        )


@contextmanager
def _locked(folder: Path, kind: int) -> Iterator[None]:
    """Hold a folder, which `_removed` then leaves alone; `kind` is that of flock."""
    while True:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            lock = os.open(folder, os.O_RDONLY)
        except FileNotFoundError:  # removed in between
            continue
        except OSError as error:
            raise VidcmError(f"cannot keep copies in {folder}: {error.strerror}") from None
        try:
            fcntl.flock(lock, kind)
            if folder.exists() and os.path.samestat(os.fstat(lock), folder.stat()):
                yield
                return
        finally:
            os.close(lock)


def _removed(folder: Path) -> bool:
    """Remove a folder that is not in use; whether it was."""
    try:
        lock = os.open(folder, os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(folder, ignore_errors=True)
        return True
    except OSError:
        return False
    finally:
        os.close(lock)
