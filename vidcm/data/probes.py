"""What reading a video once has shown, its size, length and shots, kept between runs."""

import hashlib
import json
import logging
import os
import sqlite3
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any, TypeVar

from vidcm.cache import cache_folder
from vidcm.data.media_root import MediaRoot
from vidcm.media.media_file import BadClip
from vidcm.media.pictures import picture_size
from vidcm.media.read import VideoInfo
from vidcm.media.shots import Shot
from vidcm.media.worker import ReaderPool

Item = TypeVar("Item")
log = logging.getLogger(__name__)

FORMAT = 1  # raise it when probes of the same file have another result
BUSY_SECONDS = 60.0  # to wait for another process that writes


class Probes:
    """Facts about the media of a root, from a database in the cache folder or from the files.

    They are found by address, size and time of change of a file. Failures are not kept.

    Args:
        root: of the media.
        pictures: which of them are pictures.
        readers: of the videos.
    """

    def __init__(self, root: MediaRoot, pictures: Iterable[str], readers: ReaderPool) -> None:
        self.root, self.pictures, self.readers = root, frozenset(pictures), readers
        self._known: dict[tuple[str, str], Any] = {}
        self._database = Database()

    def info(self, name: str) -> VideoInfo:
        """Size and length. Raises BadClip."""
        if name in self.pictures:
            return self._fact("picture", name, self._picture)
        return VideoInfo(*self._fact("info", name, self._probe))

    def shots(self, name: str, threshold: float, clip_seconds: float) -> list[Shot]:
        """Shots of a video.

        Args:
            name: of the video.
            threshold: as in `find_shots`.
            clip_seconds: the video may take the deadline of a clip for each such part of it.

        Raises:
            BadClip: the video cannot be read to its end.
        """

        def find(name: str) -> list[Shot]:
            parts = max(self.info(name).last_seconds / clip_seconds, 1.0)
            with self.root.local(name) as path:
                return self.readers.own.shots(path, threshold, parts)

        return [Shot(*shot) for shot in self._fact(f"shots {threshold:g}", name, find)]

    def prepare(
        self,
        items: Iterable[Item],
        fact: Callable[[Item], object],
        progress: Callable[[int], object] = lambda count: None,
    ) -> None:
        """Find out a fact about many videos, on all cores. Failures come when it is asked for.

        Args:
            items: what `fact` takes, as names of videos.
            fact: `info`, or another function of this object's facts.
            progress: called with a number of items.
        """

        def find(item: Item) -> None:
            with suppress(BadClip):
                fact(item)

        with ThreadPoolExecutor(len(os.sched_getaffinity(0)), "probe") as pool:
            for _ in pool.map(find, items):
                progress(1)

    def _probe(self, name: str) -> VideoInfo:
        with self.root.local(name) as path:
            return self.readers.own.probe(path)

    def _picture(self, name: str) -> VideoInfo:
        with self.root.local(name) as path:
            return VideoInfo(*picture_size(path), 0.0)

    def _fact(self, kind: str, name: str, find: Callable[[str], Any]) -> Any:
        known = self._known.get((kind, name))
        if known is None:
            version = self.root.version(name)
            key = hashlib.sha256(f"{FORMAT} {kind}\n{self.root}/{name}\n{version}".encode())
            known = self._database.get(key.digest()[:16])
            if known is None:
                known = find(name)
                if version:
                    self._database.put(key.digest()[:16], known)
            self._known[kind, name] = known
        return known


class Database:
    """Facts as JSON by key, in a file that all processes of a user share.

    Without it everything is found out anew, so that a file that cannot be used is only said.
    """

    def __init__(self) -> None:
        self.file = cache_folder() / "media.sqlite"
        self._local = threading.local()
        self._broken, self._lock = False, threading.Lock()

    def __reduce__(self) -> tuple[type, tuple[()]]:
        return Database, ()

    def get(self, key: bytes) -> Any:
        """The fact, or None."""
        found = self._done("SELECT fact FROM facts WHERE key = ?", key)
        return json.loads(found[0][0]) if found else None

    def put(self, key: bytes, fact: Any) -> None:
        """Keep a fact."""
        self._done("INSERT OR REPLACE INTO facts VALUES (?, ?)", key, json.dumps(fact))

    def _done(self, command: str, *values: Any) -> list[Any]:
        if self._broken:
            return []
        try:
            with self._connection() as connection:
                return connection.execute(command, values).fetchall()
        except (sqlite3.Error, OSError) as error:
            with self._lock:  # said once, whatever the number of threads that meet it
                first, self._broken = not self._broken, True
            if first:
                log.warning(
                    "%s cannot be used (%s), so videos are probed in every run; delete it, or set "
                    "VIDCM_CACHE to a folder that can be written",
                    self.file,
                    error,
                )
            return []

    def _connection(self) -> sqlite3.Connection:
        """The connection of the calling thread."""
        owned = getattr(self._local, "connection", None)
        if owned is None or self._local.process != os.getpid():
            self.file.parent.mkdir(parents=True, exist_ok=True)
            owned = sqlite3.connect(self.file, BUSY_SECONDS)
            owned.execute("PRAGMA synchronous = OFF")  # it can all be found out again
            owned.execute(
                "CREATE TABLE IF NOT EXISTS facts (key BLOB PRIMARY KEY, fact TEXT) WITHOUT ROWID"
            )
            self._local.connection, self._local.process = owned, os.getpid()
        return owned
