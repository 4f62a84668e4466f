"""Where the shards of a latent cache are: a folder, or an address that fsspec reads."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from vidcm.data.remote import RemoteFolder, is_remote
from vidcm.data.shards import Shard
from vidcm.errors import VidcmError
from vidcm.media.media_file import BadClip

OPEN_SHARDS = 512  # mapped at once


class ShardFolder(Protocol):
    """Shards by their entry in the index; its text is what messages call it."""

    def index(self, name: str) -> bytes:
        """The bytes of the index. Raises FileNotFoundError and VidcmError."""
        ...

    def check(self, entry: Mapping[str, Any]) -> None:
        """Raise VidcmError for a shard that is known to be unusable without reading it."""
        ...

    def open(self, entry: Mapping[str, Any]) -> Shard:
        """Map a shard into memory. Raises VidcmError."""
        ...

    def most_open(self, largest: int) -> int:
        """How many shards may be mapped at once, the largest having so many bytes."""
        ...


def shard_folder(path: str | Path, cache_gb: float) -> ShardFolder:
    """The shards below a path or URL; cache_gb: bound of the local copies, in GB."""
    if is_remote(path):
        return RemoteShards(RemoteFolder(str(path), cache_gb))
    return LocalShards(Path(path))


class LocalShards:
    """Shards in a folder, checked by their size."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __str__(self) -> str:
        return str(self.folder)

    def index(self, name: str) -> bytes:
        return (self.folder / name).read_bytes()

    def check(self, entry: Mapping[str, Any]) -> None:
        file = self.folder / entry["name"]
        if not file.is_file() or file.stat().st_size != entry["bytes"]:
            raise VidcmError(f"{file} is missing or damaged; encode again")

    def open(self, entry: Mapping[str, Any]) -> Shard:
        return Shard(self.folder / entry["name"])

    def most_open(self, largest: int) -> int:
        return OPEN_SHARDS


class RemoteShards:
    """Shards below a URL, checked by their sha256 when they are copied."""

    def __init__(self, folder: RemoteFolder) -> None:
        self.folder = folder

    def __str__(self) -> str:
        return self.folder.url

    def index(self, name: str) -> bytes:
        try:
            return self.folder.read([name])[name]
        except BadClip as bad:
            if bad.reason == "missing":
                raise FileNotFoundError from None
            raise

    def check(self, entry: Mapping[str, Any]) -> None:
        if not isinstance(entry.get("sha256"), str):
            raise VidcmError(
                f"the index of {self.folder.url} has no sha256 of its shards; encode again, with "
                "this version"
            )

    def open(self, entry: Mapping[str, Any]) -> Shard:
        with self.folder.local(entry["name"], sha256=entry["sha256"]) as path:
            return Shard(path)  # it stays mapped if its copy makes room

    def most_open(self, largest: int) -> int:
        return min(max(self.folder.bound // largest, 1), OPEN_SHARDS)
