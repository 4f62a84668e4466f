"""Jobs: what was asked, how far it is, and what came of it; kept within bounds. Needs no torch."""

import math
import threading
import time
import uuid
from collections import OrderedDict
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy as np

from vidcm.errors import UsageError, VidcmError
from vidcm.serve.limits import ServeLimits

Status = Literal["queued", "in_progress", "completed", "failed", "cancelled"]
FINISHED = frozenset({"completed", "failed", "cancelled"})


class QueueFull(VidcmError):
    """As many jobs wait as may.

    Attributes:
        retry_after: Seconds until a place should be free.
    """

    def __init__(self, waiting: int, retry_after: int):
        super().__init__(f"{waiting} jobs wait already; try again in {retry_after} s")
        self.retry_after = retry_after


class UnknownJob(UsageError):
    """There is no job of that id, or no longer."""


class NotReady(UsageError):
    """A job has no result, or not yet."""


class Cancelled(Exception):
    """Raised between two steps of a job that nobody waits for."""


class Progress(Protocol):
    """Called as (stage, step from 0, steps) where a job may stop; raises `Cancelled`."""

    def __call__(self, stage: str, step: int = 0, steps: int = 0) -> None: ...


@dataclass(frozen=True)
class Result:
    """What came of a job.

    Attributes:
        frames: uint8 `(n t h w 3)`.
        fps: Frames per second.
        captions: Prompt of each clip as the model read it; empty where none was completed.
        notes: Sentences about inputs that were changed to fit the model.
        evaluations: Network evaluations per clip.
        seconds: Wall time of each stage, of the whole batch that the job was part of.
        batch_size: Jobs of that batch.
        files: mp4 of each clip.
    """

    frames: np.ndarray
    fps: float
    captions: Sequence[str]
    notes: Sequence[str]
    evaluations: int
    seconds: Mapping[str, float]
    batch_size: int
    files: Sequence[bytes] = ()

    @property
    def size(self) -> int:
        """Bytes of memory."""
        return self.frames.nbytes + sum(map(len, self.files))


class Work(Protocol):
    """What a job is to do, checked.

    Attributes:
        kind: "generation" or "edit".
        model: Name of the checkpoint.
        batch_key: Jobs with equal keys are made in one forward.
        max_batch: Jobs that memory holds in one forward.
        seeds: Of the noise.
        warnings: Sentences on inputs without effect or outside what the model was tuned for.
        scale: Times that pixels of the files are enlarged.
        facts: What a reply says about it from the start: prompt, size, steps, ...
    """

    @property
    def kind(self) -> Literal["generation", "edit"]: ...
    @property
    def model(self) -> str: ...
    @property
    def batch_key(self) -> Hashable: ...
    @property
    def max_batch(self) -> int: ...
    @property
    def seeds(self) -> Sequence[int]: ...
    @property
    def warnings(self) -> Sequence[str]: ...
    @property
    def scale(self) -> int: ...
    @property
    def facts(self) -> Mapping[str, Any]: ...

    def run(self, batch: "Sequence[Work]", progress: Progress) -> list[Result]:
        """Make a batch that this one is the first of."""
        ...

    def close(self) -> None:
        """Remove the files that it needed."""
        ...

    def public(self, message: str) -> str:
        """A message without paths of this machine."""
        ...


@dataclass(eq=False)
class Job:
    """A request on its way. Only the service changes it."""

    work: Work
    id: str = field(default_factory=lambda: f"video_{uuid.uuid4().hex}")
    status: Status = "queued"
    created_at: float = field(default_factory=time.time)
    started_at: float | None = None
    completed_at: float | None = None
    expires_at: float | None = None
    stage: str = "queued"
    step: int = 0
    steps: int = 0
    error: tuple[str, str] | None = None  # code, message
    result: Result | None = None
    abandoned: bool = False
    done: threading.Event = field(default_factory=threading.Event)

    @property
    def title(self) -> str:
        """What a user knows it by, in sentences about it."""
        return f"the clip {self.work.facts['prompt'][:60]!r} of seed {self.work.seeds[0]}"

    @property
    def progress(self) -> int:
        """Percent, by the steps that are done; text and decoder take the rest."""
        if self.status == "completed":
            return 100
        if self.stage in ("decode", "write"):
            return 90 if self.stage == "decode" else 95
        return round(5 + 85 * self.step / self.steps) if self.steps else 0


class JobStore:
    """Jobs by id: those that wait in order, and finished ones within bounds.

    Args:
        limits: Of the queue and of what is kept.
    """

    def __init__(self, limits: ServeLimits):
        self.limits = limits
        self.changed = threading.Condition()
        self.jobs: OrderedDict[str, Job] = OrderedDict()
        self.waiting: list[Job] = []
        self.closed = False
        self._batch_seconds = 1.0  # a moving average

    def add(self, job: Job) -> None:
        """Put a job at the end of the queue. Raises QueueFull, and VidcmError once closed."""
        with self.changed:
            if self.closed:
                raise VidcmError("the server is about to stop")
            self._purge()
            if (count := len(self.waiting)) >= self.limits.max_queue:
                raise QueueFull(count, math.ceil(max(self._batch_seconds, 1)))
            self.jobs[job.id] = job
            self.waiting.append(job)
            self.changed.notify_all()

    def get(self, name: str) -> Job:
        """A job. Raises UnknownJob."""
        with self.changed:
            self._purge()
            if name not in self.jobs:
                raise UnknownJob(
                    "there is no such video; finished ones are kept for "
                    f"{self.limits.result_seconds / 60:g} minutes at most, the last "
                    f"{self.limits.max_results} of them, and none over a restart"
                )
            return self.jobs[name]

    def all(self) -> list[Job]:
        """All jobs, oldest first."""
        with self.changed:
            self._purge()
            return list(self.jobs.values())

    def remove(self, job: Job) -> None:
        """Forget a job."""
        with self.changed:
            self.jobs.pop(job.id, None)

    def cancel(self, job: Job) -> bool:
        """Take a job out of the queue, or have it stop after its step.

        Returns:
            Whether it waited; the caller then finishes it.
        """
        with self.changed:
            job.abandoned = True
            if waited := job in self.waiting:
                self.waiting.remove(job)
            return waited

    def next_batch(self) -> list[Job]:
        """Wait for jobs that can be made at once; none when the store is closed."""
        with self.changed:
            while not self.waiting and not self.closed:
                self._purge()
                self.changed.wait(timeout=min(self.limits.result_seconds, 30))
            if self.closed:
                return []
            first = self.waiting[0].work
            like = [job for job in self.waiting if job.work.batch_key == first.batch_key]
            batch = like[: min(self.limits.max_batch, first.max_batch)]
            self.waiting = [job for job in self.waiting if job not in batch]
            for job in batch:
                job.status, job.started_at, job.stage = "in_progress", time.time(), "start"
            return batch

    def finish(
        self,
        job: Job,
        status: Status,
        result: Result | None = None,
        error: tuple[str, str] | None = None,
    ) -> None:
        """Put a job at its end, and keep it within the bounds."""
        job.work.close()
        with self.changed:
            now = time.time()
            job.result, job.error, job.completed_at = result, error, now
            job.expires_at = now + self.limits.result_seconds
            job.status = status
            if job.started_at and result is not None:
                self._batch_seconds += 0.2 * (now - job.started_at - self._batch_seconds)
            self._purge()
        job.done.set()

    def close(self) -> list[Job]:
        """Take no more jobs, and have those that are there stop; returns those that waited."""
        with self.changed:
            self.closed = True
            for job in self.jobs.values():
                job.abandoned = True
            waited, self.waiting = self.waiting, []
            self.changed.notify_all()
        return waited

    def _purge(self) -> None:
        """Forget the oldest finished jobs beyond the bounds."""
        now, limits = time.time(), self.limits
        kept = [job for job in self.jobs.values() if job.status in FINISHED]
        kept.sort(key=lambda job: job.completed_at or now)
        size = sum(job.result.size for job in kept if job.result)
        for position, job in enumerate(kept):
            late = job.expires_at is not None and job.expires_at < now
            many = len(kept) - position > limits.max_results
            if not (late or many or size > limits.max_result_bytes):
                break
            size -= job.result.size if job.result else 0
            del self.jobs[job.id]
