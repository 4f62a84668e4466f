"""Names the rank that died or stalled and ends the others, which would wait for it without end.

Every rank reports to the key-value store of the launcher's rendezvous; rank 0 compares. It watches
from a thread, since the main thread of a rank that waits is inside a collective.
"""

import json
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from types import TracebackType
from typing import NoReturn

import torch
import torch.distributed as dist
from torch import Tensor

from vidcm.data.batch import MicroBatch
from vidcm.errors import VidcmError
from vidcm.train.engine import Engine, StepReport
from vidcm.train.stop_signal import exit_code

BEAT = 2.0  # seconds between two reports of a rank
DEAD = 4 * BEAT  # without a report, once a collective failed


class WatchedEngine:
    """An engine whose ranks are watched; see `Engine` for the methods.

    Args:
        engine: Of this rank.
        watchdog: Of this rank.
    """

    def __init__(self, engine: Engine, watchdog: "Watchdog"):
        self.engine, self.watchdog = engine, watchdog
        self.rank, self.world, self.frozen = engine.rank, engine.world, engine.frozen

    def step(
        self, parts: Sequence[MicroBatch], progress: float, lr: float, step: int
    ) -> StepReport:
        with self.watchdog.call(f"step {step}"):
            return self.engine.step(parts, progress, lr, step)

    def weights(self, *, ema: bool) -> dict[str, Tensor]:
        with self.watchdog.call("gathering weights"):
            return self.engine.weights(ema=ema)

    def state(self, *, copy: bool = True) -> dict:
        with self.watchdog.call("gathering a checkpoint"):
            return self.engine.state(copy=copy)

    def load(self, state: dict) -> None:
        with self.watchdog.call("loading a checkpoint"):
            self.engine.load(state)

    def all_reduce_max(self, value: int) -> int:
        with self.watchdog.call():
            return self.engine.all_reduce_max(value)


def _connected() -> dist.Store:
    """The store of the rendezvous, by a connection of its own: it is used from another thread."""
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    store = dist.TCPStore(host, port, is_master=False, timeout=timedelta(seconds=30))
    return dist.PrefixStore("vidcm-watchdog", store)


class Watchdog:
    """Reports this rank's collective calls, and compares those of all ranks on rank 0.

    A rank counts as stalled when it has been behind another by the same call for `timeout` seconds,
    however long a call takes that all are in, and as dead when its process has not reported for as
    long. Where a collective fails, as it does at once when the connection to a dead process breaks,
    `DEAD` seconds are enough.

    As a context it reports from its begin to its end. A rank that ends by an exception of its own
    says so in the store, and the others, which may be in a collective, end without a word. Of ranks
    that fail alike, as on a missing file, one keeps its message, and the others raise SystemExit.

    Args:
        rank: Of this process.
        world: Number of processes.
        timeout: In seconds.
        store: Of all ranks; that of the rendezvous by default.
    """

    def __init__(self, rank: int, world: int, timeout: float, store: dist.Store | None = None):
        self.rank, self.world, self.timeout = rank, world, timeout
        self.patience = timeout  # with processes that do not report
        self.beats, self.calls, self.place = 0, 0, "the start"
        self.over, self.store = threading.Event(), store or _connected()
        self.last_act: Callable[[], None] = lambda: None  # before the process ends
        self.seen: dict[int, _Seen] = {r: _Seen() for r in range(world)}
        self.thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def __enter__(self) -> "Watchdog":
        self._report()
        self.thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        self.over.set()
        self.thread.join()
        repeated = False
        with suppress(RuntimeError):  # rank 0 has gone, and the store with it
            if isinstance(error, VidcmError):
                repeated = self.store.add(f"error {error}", 1) > 1
            if kind is not None and not issubclass(kind, SystemExit):
                self.store.set("verdict", str(exit_code(kind)))
            self.store.set(f"left {self.rank}", "")
            until = time.monotonic() + (DEAD if kind else 0)
            others = [f"left {r}" for r in range(1, self.world)]
            # Rank 0 has the store, in which the others may have to read the verdict.
            while self.rank == 0 and time.monotonic() < until and not self._all(others):
                time.sleep(0.05)
        if repeated and isinstance(error, VidcmError):
            raise SystemExit(error.exit_code) from None

    def _all(self, keys: Sequence[str]) -> bool:
        return all(self.store.check([key]) for key in keys)

    def _report(self) -> None:
        report = [self.beats, self.calls, self.place, socket.gethostname(), os.getpid()]
        self.store.set(str(self.rank), json.dumps(report))
        self.beats += 1

    @contextmanager
    def call(self, place: str | None = None) -> Iterator[None]:
        """Note a collective call. Where it fails, the watchdog has time to name the culprit."""
        self.calls += 1
        self.place = place or self.place
        try:
            yield
        except RuntimeError as error:
            if not isinstance(error, torch.OutOfMemoryError):
                self.patience = min(DEAD, self.timeout)
                self.over.wait(2 * DEAD)
            raise

    def _watch(self) -> None:
        while not self.over.wait(BEAT):
            try:
                self._report()
                if self.store.check(["verdict"]):
                    self._follow()
                culprit = self._compare() if self.rank == 0 else self._look_at_rank_0()
                if culprit:
                    self.store.set("verdict", "1")
                    time.sleep(2 * BEAT)  # the others read it and end without a word
            except RuntimeError:
                if self.over.wait(2 * BEAT):
                    return  # all ended, and this rank is only later
                culprit = f"rank 0 ({self.seen[0].where}) ended; look for its own message"
            if culprit:
                self._end(culprit)

    def _follow(self) -> NoReturn:
        """End as a rank did that has said why."""
        code = int(self.store.get("verdict").decode())
        self.last_act()
        with suppress(RuntimeError):
            self.store.set(f"left {self.rank}", "")
        os._exit(code)  # the main thread may be in a collective for ever

    def _compare(self) -> str:
        """Look at all ranks; returns what is wrong, "" for nothing."""
        ranks = {r: self._look_at(r) for r in range(self.world)}
        dead = [r for r, seen in ranks.items() if seen.silent > self.patience]
        if dead:
            return self._sentence(dead, self._silence)
        first = max(seen.calls for seen in ranks.values())
        late = [r for r, seen in ranks.items() if seen.behind(first) > self.timeout]
        return self._sentence(late, f"kept the others waiting for {self.timeout:g} s")

    def _look_at_rank_0(self) -> str:
        # Later than rank 0, which speaks of others, would.
        silent = self._look_at(0).silent > self.patience + 3 * BEAT
        return self._sentence([0] if silent else [], self._silence)

    @property
    def _silence(self) -> str:
        return f"gave no sign of life for {self.patience:g} s"

    def _look_at(self, rank: int) -> "_Seen":
        seen = self.seen[rank]
        if self.store.check([str(rank)]):
            seen.note(self.store.get(str(rank)).decode())
        return seen

    def _sentence(self, ranks: Sequence[int], what: str) -> str:
        if not ranks:
            return ""
        names = ", ".join(f"rank {r} ({self.seen[r].where}, {self.seen[r].place})" for r in ranks)
        return (
            f"{names} {what}; its host says why (out of memory? a slow disk? the network?), and "
            "the same command resumes from the newest checkpoint"
        )

    def _end(self, culprit: str) -> NoReturn:
        # On a line of its own: the progress bar stands in the last one.
        print(f"\nerror: {culprit}", file=sys.stderr, flush=True)
        self.last_act()
        os._exit(1)


class _Seen:
    """What a rank reported, since when it reports the same, and since when it is behind."""

    def __init__(self) -> None:
        self.report, self.calls, self.place, self.where = "", 0, "the start", "not heard of yet"
        self.reported = self.called = time.monotonic()
        self.left_behind: float | None = None

    def note(self, report: str) -> None:
        if report == self.report:
            return
        now = time.monotonic()
        self.report, self.reported = report, now
        _, calls, self.place, host, pid = json.loads(report)
        self.where = f"process {pid} on {host}"
        if calls != self.calls:
            self.calls, self.called = calls, now

    @property
    def silent(self) -> float:
        """Seconds without a report."""
        return time.monotonic() - self.reported

    def behind(self, first: int) -> float:
        """Seconds for which others, `first` calls far, have waited for its next call."""
        now = time.monotonic()
        if self.calls >= first:
            self.left_behind = None
        elif self.left_behind is None:
            self.left_behind = now
        return 0.0 if self.left_behind is None else now - max(self.left_behind, self.called)
