"""Signals as a request to stop after the current step."""

import signal
import time
from typing import Any

from vidcm.errors import VidcmError

CODES = {signal.SIGTERM: 143, signal.SIGUSR1: 143, signal.SIGINT: 130}


class StopSignal:
    """Turns SIGTERM, SIGUSR1 and SIGINT into an exit code to stop with; a later signal kills.

    A second one within the `ECHO` of its kind, in seconds, counts as the first: ranks get a signal
    from the terminal or the scheduler, and again from their launcher, which a busy machine delays.
    SIGUSR1, which SLURM sends some time before SIGTERM, never kills.
    """

    ECHO: dict[int, float] = {signal.SIGTERM: 15.0, signal.SIGINT: 3.0}

    def __init__(self) -> None:
        self.code = 0
        self._before: dict[int, Any] = {}
        self._since: float | None = None

    def __enter__(self) -> "StopSignal":
        self.hold()
        return self

    def hold(self) -> None:
        """Listen from now on."""
        for number, code in CODES.items():
            if number not in self._before:
                handler = signal.signal(number, lambda n, _, code=code: self._request(n, code))
                self._before[number] = handler

    def release(self) -> None:
        """Leave SIGTERM and SIGINT to who listened before, as for work without steps."""
        for number in (signal.SIGTERM, signal.SIGINT):
            if number in self._before:
                signal.signal(number, self._before.pop(number))

    def _request(self, number: int, code: int) -> None:
        now = time.monotonic()
        if number == signal.SIGUSR1:  # a warning, of which SIGTERM follows
            self.code = self.code or code
        elif self._since is None:
            self.code, self._since = self.code or code, now
        elif now - self._since > self.ECHO[number]:
            self.__exit__()
            signal.raise_signal(number)

    def __exit__(self, *_: object) -> None:
        while self._before:
            signal.signal(*self._before.popitem())


def exit_code(kind: type[BaseException]) -> int:
    """Return what a process ends with that an exception of this kind ends."""
    if issubclass(kind, Exception | SystemExit):
        return kind.exit_code if issubclass(kind, VidcmError) else 1
    return 130 if issubclass(kind, KeyboardInterrupt) else 143
