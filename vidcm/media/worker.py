"""Read videos in a process that can be killed, since decoders crash, or hang holding the GIL.

The worker is started by command line, not by multiprocessing, so that it also works inside workers
of a data loader (which may not have children) and in scripts without a main guard.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from vidcm.errors import UsageError, VidcmError
from vidcm.media.load import (
    SourceClip,
    check_frame_size,
    frames_in_memory,
    load_clip,
    load_every_frame,
)
from vidcm.media.media_file import BadClip
from vidcm.media.read import MAX_PIXELS, Frames, VideoInfo, probe, read_frames
from vidcm.media.shots import Shot, find_shots

START_SECONDS = 120.0  # imports on a busy machine or a network disk
GRACE_SECONDS = 1.0  # the deadline inside the worker gives the better message, so it comes first
# The parent handles these, which terminals, schedulers and launchers send to every process: a run
# ends after its step, for which clips are still read.
ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
KILLED = (-signal.SIGKILL, -signal.SIGTERM)  # from outside, as for memory: no fault of the clip
BOOT = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[2]);"
    "from vidcm.media.worker import serve; serve(int(sys.argv[1]))"
)
CALLS: dict[str, Callable[..., Any]] = {
    f.__name__: f
    for f in (
        probe,
        read_frames,
        find_shots,
        load_clip,
        load_every_frame,
        frames_in_memory,
        check_frame_size,
    )
}


class ReaderProcess:
    """Functions that read files, in another process, with a deadline that also stops hangs.

    A worker that hangs or crashes fails its clip (BadClip `timeout` or `decoder-crash`) and is
    replaced at the next call. The object may be pickled, and used after a fork: each process gets
    its own worker.

    Args:
        deadline: seconds of one call.
        max_pixels: limit of frames x height x width of one call.

    Attributes:
        restarts: number of workers replaced.
    """

    def __init__(self, *, deadline: float = 30.0, max_pixels: int = MAX_PIXELS) -> None:
        if not deadline > 0:
            raise UsageError(f"deadline is {deadline}, expected seconds above 0")
        self.deadline, self.max_pixels = deadline, max_pixels
        self.restarts = 0
        self._boot = BOOT
        self._worker: subprocess.Popen[bytes] | None = None
        self._link: Connection | None = None
        self._owner = 0

    def read(
        self,
        path: str | os.PathLike[str],
        times: np.ndarray,
        size: tuple[int, int] | None = None,
        place: tuple[float, float] | None = None,
    ) -> Frames:
        """`read_frames(path, times)`, scaled and cropped in the worker."""
        options = {"max_pixels": self.max_pixels, "size": size, "place": place}
        options["deadline"] = self.deadline
        return self._call("read_frames", path, np.asarray(times), **options)

    def probe(self, path: str | os.PathLike[str]) -> VideoInfo:
        """`probe(path)`."""
        return self._call("probe", path, deadline=self.deadline)

    def shots(
        self, path: str | os.PathLike[str], threshold: float, parts: float = 1.0
    ) -> list[Shot]:
        """`find_shots(path, threshold)`, with the deadline of so many calls."""
        deadline = self.deadline * parts
        options: dict[str, Any] = {"threshold": threshold, "deadline": deadline}
        return self._call("find_shots", path, kill_after=deadline, **options)

    def load_clip(
        self, path: Path, fps: float, max_frames: int | None = None, start: float = 0.0
    ) -> SourceClip:
        """`load_clip(path, fps, max_frames, start)`, of pictures too."""
        return self._call("load_clip", path, fps, max_frames, start, self.max_pixels)

    def load_every_frame(
        self, path: Path, fps: float, max_frames: int | None = None, start: float = 0.0
    ) -> SourceClip:
        """`load_every_frame(path, fps, max_frames, start)`, of pictures too."""
        return self._call("load_every_frame", path, fps, max_frames, start, self.max_pixels)

    def frames_in_memory(self, path: Path) -> float:
        """`frames_in_memory(path)`."""
        return self._call("frames_in_memory", path, self.max_pixels)

    def check_frame_size(self, path: Path) -> None:
        """`check_frame_size(path)`."""
        self._call("check_frame_size", path, self.max_pixels)

    def peak_memory(self) -> int:
        """Most bytes of memory that the worker used, as Linux counts them; 0 without a worker."""
        if self._worker is None:
            return 0
        with open(f"/proc/{self._worker.pid}/status") as status:
            fields = dict(line.split(":", 1) for line in status)
        return int(fields["VmHWM"].split()[0]) * 1024

    def forget_peak_memory(self) -> None:
        """Begin to measure it anew, from what is in use now."""
        self._started()
        assert self._worker is not None
        with open(f"/proc/{self._worker.pid}/clear_refs", "w") as clear:
            clear.write("5")

    def close(self) -> None:
        """Stop the worker; a later call starts another."""
        worker, link, owner = self._worker, self._link, self._owner
        self._worker = self._link = None
        if link is not None:
            link.close()
        if worker is not None and owner == os.getpid():  # a fork must not kill its parent's worker
            worker.kill()
            worker.wait()

    def __enter__(self) -> ReaderProcess:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __del__(self) -> None:
        # The link closes itself. In a reference cycle (an exception's frames) it may have done so
        # already, and a second close would fail.
        self._link = None
        if getattr(self, "_worker", None) is not None:
            self.close()

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_worker": None, "_link": None}

    def _call(
        self,
        name: str,
        path: str | os.PathLike[str],
        *values: Any,
        kill_after: float | None = None,
        again: bool = True,
        **options: Any,
    ) -> Any:
        deadline = self.deadline if kill_after is None else kill_after
        request = (name, (path, *values), options, deadline)
        link = self._started()
        try:
            link.send(request)
        except OSError:  # it died between two calls, not because of this clip
            link = self._restarted()
            link.send(request)
        try:
            if not link.poll(deadline + GRACE_SECONDS):
                self._restarted()
                detail = f"the decoder hung for {deadline:g} s and was killed"
                raise BadClip(os.fspath(path), "timeout", detail)
            answer = link.recv()
            if isinstance(answer, Exception):
                raise answer
            if name != "read_frames":
                return answer
            shape, seconds = answer
            frames = np.empty(shape, np.uint8)
            link.recv_bytes_into(frames.reshape(-1).data)
            return Frames(frames, seconds)
        except (EOFError, ConnectionError):
            code = self._worker.wait() if self._worker else None
            self._restarted()
            if again and code in KILLED:
                how = {"kill_after": kill_after, "again": False}
                return self._call(name, path, *values, **how, **options)
            raise BadClip(
                os.fspath(path), "decoder-crash", f"the decoder ended with code {code}"
            ) from None

    def _restarted(self) -> Connection:
        self.close()
        self.restarts += 1
        return self._started()

    def _started(self) -> Connection:
        if self._link is not None and self._owner == os.getpid():
            return self._link
        self.close()
        self._link, far = Pipe()
        self._owner = os.getpid()
        command = [sys.executable, "-c", self._boot, str(far.fileno()), json.dumps(sys.path)]
        # The worker inherits that they are blocked, so none meets it before it ignores them.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)
        try:
            with far:
                self._worker = subprocess.Popen(
                    command, pass_fds=[far.fileno()], stdin=subprocess.DEVNULL
                )
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        try:
            if self._link.poll(START_SECONDS):
                self._link.recv()
                return self._link
        except EOFError:
            pass
        self.close()
        raise VidcmError("the video reader process does not start; its own message is above")


class ReaderPool:
    """A `ReaderProcess` for each thread, which may not share one; so threads decode in parallel.

    Args:
        options: Arguments of every `ReaderProcess`.
    """

    def __init__(self, **options: Any) -> None:
        ReaderProcess(**options)  # refuses wrong options now
        self._options, self._local = options, threading.local()

    @property
    def own(self) -> ReaderProcess:
        """The reader of the calling thread, which ends with it."""
        if not hasattr(self._local, "reader"):
            self._local.reader = ReaderProcess(**self._options)
        return self._local.reader

    def __reduce__(self) -> tuple[Any, ...]:
        return partial(ReaderPool, **self._options), ()


def serve(descriptor: int) -> None:
    """Run the worker: answer requests from the pipe until it closes, or its parent is gone."""
    # The default action ends the process in the kernel, whatever thread holds the GIL: a worker
    # whose parent was killed cannot hang for ever.
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    for number in ENDING:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDING)
    with suppress(EOFError, ConnectionError):
        _answer(Connection(descriptor))


def _answer(link: Connection) -> None:
    """Answer requests. Raises EOFError or ConnectionError at the end."""
    link.send("ready")
    while True:
        name, values, options, deadline = link.recv()
        signal.setitimer(signal.ITIMER_REAL, deadline + 2 * GRACE_SECONDS)
        try:
            answer = CALLS[name](*values, **options)
        except VidcmError as error:
            link.send(error)
        except Exception as error:  # decoders raise anything; it is a bad clip, not a crash
            path = os.fspath(values[0])
            link.send(BadClip(path, "decode-error", f"{type(error).__name__}: {error}"))
        else:
            if isinstance(answer, Frames):
                frames = np.ascontiguousarray(answer.frames)
                link.send((frames.shape, answer.seconds))
                link.send_bytes(frames.reshape(-1).data)
            else:
                link.send(answer)
        signal.setitimer(signal.ITIMER_REAL, 0)
