"""The service of jobs: one thread makes them, in batches; any number of threads ask."""

import logging
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Literal, Self

import torch

from vidcm.errors import UsageError
from vidcm.media.clips import Clock
from vidcm.media.media_file import BadClip
from vidcm.media.write import write_clip
from vidcm.serve.checkpoints import Checkpoint, by_name, find
from vidcm.serve.edit_work import EditWork, from_picture
from vidcm.serve.generation_work import GenerationWork
from vidcm.serve.jobs import Cancelled, Job, JobStore, NotReady, QueueFull, Result, Work
from vidcm.serve.limits import ServeLimits
from vidcm.serve.metrics import Metrics
from vidcm.serve.requests import EditRequest, VideoRequest
from vidcm.serve.result_files import Look, ResultFiles, Variant
from vidcm.serve.uploads import Upload, Workspace

log = logging.getLogger(__name__)

STOP_SECONDS = 60.0  # for the step that runs when the service stops


class JobService:
    """Makes clips for many callers. Jobs live in memory and do not survive the process.

    Use it as a context manager, or call `close`: the temporary folder and the threads end there.

    Args:
        checkpoints: Loaded pipelines; the first is the default.
        limits: What may be asked.

    Attributes:
        checkpoints: By name.
        limits: What may be asked.
        metrics: Counters.
    """

    def __init__(self, checkpoints: Sequence[Checkpoint], limits: ServeLimits):
        self.checkpoints, self.limits = by_name(checkpoints), limits
        self._store = JobStore(limits)
        self.metrics = Metrics(self._store)
        self._workspace = Workspace(limits)
        self._files = ResultFiles(self._workspace)
        self._worker = threading.Thread(target=self._work, name="vidcm-serve", daemon=True)
        self._worker.start()

    def generate(self, request: VideoRequest, picture: Upload | None = None) -> Job:
        """Queue a clip from a prompt.

        Args:
            request: What to make.
            picture: Its first frame; the service removes the file, whatever comes of this.

        Raises:
            UsageError: It cannot be made.
            QueueFull: Too many jobs wait.
        """
        if picture is not None:
            with _removed_on_failure([picture]):
                model = find(self.checkpoints, request.model)
                edit = from_picture(request, picture, model)
            return self.edit(edit, [picture])
        return self._add(GenerationWork.of(request, find(self.checkpoints, request.model)))

    def edit(
        self, request: EditRequest, videos: Sequence[Upload] = (), mask: Upload | None = None
    ) -> Job:
        """Queue an edit.

        Args:
            request: What to make.
            videos: Files to edit, of `receive`; the service removes them, whatever comes of this.
            mask: File of a mask, as `videos`.

        Raises:
            UsageError: It cannot be made.
            UnknownJob: There is no earlier result of that name.
            NotReady: It has no clip yet.
            QueueFull: Too many jobs wait.
        """
        uploads = [*videos, *([mask] if mask else [])]
        with _removed_on_failure(uploads):
            model = find(self.checkpoints, request.model)
            if request.video is not None:
                if videos:
                    raise UsageError("video is there as a file and as an id; give one of them")
                videos = [self._earlier(request.video.id)]
                uploads += videos
            return self._add(EditWork.of(request, model, self._workspace, videos, mask))

    def receive(self, chunks: Iterable[bytes], label: str) -> Upload:
        """Keep a file for `generate` or `edit`. Raises UsageError as `Workspace.receive`."""
        return self._workspace.receive(chunks, label)

    def look(self, upload: Upload) -> Look:
        """A picture and a clip of a file, for the eye. The file stays.

        Raises:
            UsageError: It cannot be read.
        """
        fps = next(iter(self.checkpoints.values())).pipe.settings.fps
        return self._files.look(self._workspace.view(upload, fps).frames, fps)

    def private_folder(self) -> Path:
        """A folder that is removed with the service."""
        return self._workspace.free_folder()

    def get(self, name: str) -> Job:
        """A job by its id. Raises UnknownJob."""
        return self._store.get(name)

    def jobs(self) -> list[Job]:
        """All jobs, oldest first."""
        return self._store.all()

    def cancel(self, job: Job) -> None:
        """Stop a job before its next step; finished ones stay as they are."""
        if self._store.cancel(job):
            self._finish([job], "cancelled")

    def delete(self, job: Job) -> None:
        """Stop a job and forget it."""
        self.cancel(job)
        self._store.remove(job)

    def content(self, job: Job, variant: Variant = "video", index: int = 0) -> bytes:
        """A file of a finished job.

        Args:
            job: The job.
            variant: "video" (mp4), "gif", "thumbnail" (first frame, png), "spritesheet" (png) or
                "frames" (png files in a zip).
            index: Which of its clips.

        Raises:
            NotReady: It is not completed.
            UsageError: It has fewer clips.
        """
        return self._files.content(job, variant, index)

    def stop(self) -> None:
        """Take no more jobs and have those that are there stop; does not wait."""
        self._finish(self._store.close(), "cancelled")

    def close(self) -> None:
        """Stop, wait for the step that runs, and remove every file."""
        self.stop()
        self._worker.join(STOP_SECONDS)
        self._workspace.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _add(self, work: Work) -> Job:
        job = Job(work)
        try:
            self._store.add(job)
        except QueueFull:
            self.metrics.refused()
            raise
        return job

    def _earlier(self, name: str) -> Upload:
        """The clip of an earlier job as a file, without loss."""
        job = self.get(name)
        if job.result is None:
            raise NotReady(f"{name} is {job.status} and cannot be edited")
        folder = self._workspace.free_path(".frames")
        write_clip(job.result.frames[0], f"{folder}/", fps=job.result.fps)
        return Upload(folder, job.title)

    def _work(self) -> None:
        """The thread that makes jobs."""
        while batch := self._store.next_batch():
            self.metrics.batch(len(batch))
            try:
                results = self._made(batch)
            except Cancelled:
                self._finish(batch, "cancelled")
            except Exception as error:  # one job must not end the service
                self._finish(batch, "failed", _explained(error, batch[0]))
            else:
                for job, result in zip(batch, results, strict=True):
                    if job.abandoned:
                        self._finish([job], "cancelled")
                    elif result.size > (most := self.limits.max_result_bytes):
                        error = f"the result has {result.size} bytes; this server keeps {most}"
                        self._finish([job], "failed", ("invalid_request_error", error))
                    else:
                        self._finish([job], "completed", result=result)

    def _made(self, batch: list[Job]) -> list[Result]:
        def progress(stage: str, step: int = 0, steps: int = 0) -> None:
            for job in batch:
                job.stage, job.step, job.steps = stage, step, steps
            if all(job.abandoned for job in batch):
                raise Cancelled

        progress("text")
        results = batch[0].work.run([job.work for job in batch], progress)
        made = []
        for job, result in zip(batch, results, strict=True):
            job.stage = "write"
            clock = Clock(torch.device("cpu"))
            files = self._files.videos(result, job.work.scale)
            clock("write")
            made.append(replace(result, files=files, seconds={**result.seconds, **clock.seconds}))
        return made

    def _finish(
        self,
        jobs: Sequence[Job],
        status: Literal["completed", "failed", "cancelled"],
        error: tuple[str, str] | None = None,
        result: Result | None = None,
    ) -> None:
        for job in jobs:
            self._store.finish(job, status, result, error)
            self.metrics.finished(job)


@contextmanager
def _removed_on_failure(uploads: list[Upload]) -> Iterator[None]:
    try:
        yield
    except BaseException:
        for upload in uploads:
            upload.close()
        raise


def _explained(error: Exception, job: Job) -> tuple[str, str]:
    """Code and message of a failed job; paths of this machine and faults of ours stay here."""
    if isinstance(error, BadClip):
        path = job.work.public(error.path)
        return "invalid_request_error", f"{path}: {error.reason}: {error.detail}"
    if isinstance(error, UsageError):
        return "invalid_request_error", job.work.public(str(error))
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return "server_error", "out of memory; ask for fewer or smaller frames"
    log.error("a job failed", exc_info=error)
    return "server_error", "the job failed; the log of the server says why"
