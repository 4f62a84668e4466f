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
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import NoReturn

import torch
import torch.distributed as dist
from torch import Tensor

from vidcm.data.batch import MicroBatch
from vidcm.train.engine import Engine, StepReport

BEAT = 2.0  # seconds between two reports of a rank
DEAD = 4 * BEAT  # without a report, once a collective failed


class WatchedEngine:
    """An engine whose ranks are watched; see `Engine` for the methods.

    Args:
        engine: Of this rank.
        timeout: Seconds that ranks wait for one of them.
    """

    def __init__(self, engine: Engine, timeout: float):
        self.engine = engine
        self.rank, self.world, self.frozen = engine.rank, engine.world, engine.frozen
        self.watchdog = Watchdog(engine.rank, engine.world, timeout, _connected())
        self.watchdog.start()

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

    def __enter__(self) -> "WatchedEngine":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.watchdog.close()
        if kind is None:
            self.engine.all_reduce_max(0)  # rank 0 has the store: it may not leave before all stop


def _connected() -> dist.Store:
    """The store of the rendezvous, by a connection of its own: it is used from another thread."""
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    store = dist.TCPStore(host, port, is_master=False, timeout=timedelta(seconds=30))
    return dist.PrefixStore("vidcm-watchdog", store)


class Watchdog:
    """Reports this rank's collective calls, and compares those of all ranks on rank 0.

    A rank counts as stalled when it is behind another by a call and has not made it for `timeout`
    seconds, and as dead when its process has not reported for as long. Where a collective fails, as
    it does at once when the connection to a dead process breaks, `DEAD` seconds are enough.

    Args:
        rank: Of this process.
        world: Number of processes.
        timeout: In seconds.
        store: Of all ranks.
    """

    def __init__(self, rank: int, world: int, timeout: float, store: dist.Store):
        self.rank, self.world, self.timeout = rank, world, timeout
        self.patience = timeout  # with processes that do not report
        self.beats, self.calls, self.place = 0, 0, "the start"
        self.over, self.store = threading.Event(), store
        self.seen: dict[int, _Seen] = {r: _Seen() for r in range(world)}
        self.thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def start(self) -> None:
        """Report once, and from then on in a thread."""
        self._report()
        self.thread.start()

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

    def close(self) -> None:
        """Stop watching; safe to call twice."""
        self.over.set()
        self.thread.join()

    def _watch(self) -> None:
        while not self.over.wait(BEAT):
            try:
                self._report()
                culprit = self._compare() if self.rank == 0 else self._look_at_rank_0()
                if culprit:
                    self.store.set("verdict", culprit)
                    time.sleep(2 * BEAT)  # the others read it and end without a word
            except RuntimeError:
                culprit = f"rank 0 ({self.seen[0].where}) ended; look for its own message"
            if culprit:
                self._end(culprit)

    def _compare(self) -> str:
        """Look at all ranks; returns what is wrong, "" for nothing."""
        ranks = {r: self._look_at(r) for r in range(self.world)}
        dead = [r for r, seen in ranks.items() if seen.silent > self.patience]
        if dead:
            return self._sentence(dead, self._silence)
        first = max(seen.calls for seen in ranks.values())
        late = [r for r, seen in ranks.items() if seen.calls < first and seen.same > self.timeout]
        return self._sentence(late, f"kept the others waiting for {self.timeout:g} s")

    def _look_at_rank_0(self) -> str:
        if self.store.check(["verdict"]):
            os._exit(1)
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
        os._exit(1)  # the main thread may be in a collective for ever


class _Seen:
    """What a rank reported, and since when it reports the same."""

    def __init__(self) -> None:
        self.report, self.calls, self.place, self.where = "", 0, "the start", "not heard of yet"
        self.reported = self.called = time.monotonic()

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

    @property
    def same(self) -> float:
        """Seconds without a collective call."""
        return time.monotonic() - self.called
