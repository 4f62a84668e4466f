"""Checkpoints are hashed and written in a thread, while training goes on."""

import sys
import threading
from pathlib import Path
from types import TracebackType
from typing import Any

from torch import nn
from tqdm import tqdm

from vidcm.limits import available_memory
from vidcm.objectives.base import Objective
from vidcm.train import checkpoint


class CheckpointWriter:
    """Writes the checkpoints of a run, one at a time; as a context it ends with none in work.

    Args:
        run: Folder of the run.
        config: Of the run, as plain data.
        keep: Number of newest checkpoints that stay.
        size: Bytes of a copy of the state, see `state_size`; None to write without one, while
            training waits.
    """

    LAST = 5.0  # seconds for a thread to notice that its checkpoint is given up

    def __init__(self, run: Path, config: dict, *, keep: int, size: int | None):
        self.run, self.config, self.keep, self.size = run, config, keep, size
        self.given_up = threading.Event()
        self.thread: threading.Thread | None = None
        self.error: Exception | None = None
        self.warned = False

    def wants_copy(self) -> bool:
        """Whether the next state has to be a copy, since training goes on while it is written.

        Where there is less memory than that, a warning says so, once.
        """
        if self.size is None:
            return False
        if self.size <= (free := available_memory()):
            return True
        if not self.warned:
            tqdm.write(
                f"warning: a copy of the checkpoint needs {self.size / 2**30:.3g} GiB of memory, "
                f"and {free / 2**30:.3g} are free: training waits while it is written, as with "
                "async_checkpoints=false",
                file=sys.stderr,
            )  # below the progress bar
        self.warned = True
        return False

    def save(self, step: int, state: dict[str, Any], *, copied: bool) -> None:
        """Write a checkpoint.

        Args:
            step: Number of steps that are done.
            state: Of the run.
            copied: Whether it stays as it is while training goes on; a thread then writes it.

        Raises:
            VidcmError: The file system refuses this one, or refused the one before.
        """
        self.wait()
        if not copied:
            self._write(step, state)
            return
        self.thread = threading.Thread(
            target=self._try, args=(step, state), name="checkpoint", daemon=True
        )
        self.thread.start()

    def check(self) -> None:
        """Raise why a checkpoint could not be written, without waiting for one in work."""
        if self.error:
            error, self.error = self.error, None
            raise error

    def wait(self) -> None:
        """Wait for the checkpoint that is in work. Raises as `save`."""
        if thread := self.thread:
            thread.join()
            self.thread = None
        self.check()

    def finish(self) -> None:
        """Wait, and warn where it could not be written; for a run that failed otherwise."""
        try:
            self.wait()
        except Exception as error:
            print(f"warning: {error}", file=sys.stderr, flush=True)

    def _try(self, step: int, state: dict[str, Any]) -> None:
        try:
            self._write(step, state)
        except Exception as error:
            self.error = error.with_traceback(None)  # which has the state

    def _write(self, step: int, state: dict[str, Any]) -> None:
        checkpoint.save(
            self.run, step, state, self.config, keep=self.keep, given_up=self.given_up.is_set
        )

    def __enter__(self) -> "CheckpointWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        if kind is None:
            self.wait()
        elif issubclass(kind, Exception | SystemExit):
            self.finish()
        elif self.thread:  # an interrupt: whoever sent it does not want to wait
            self.given_up.set()
            self.thread.join(self.LAST)


def state_size(student: nn.Module, objective: Objective) -> int:
    """Return the bytes of a run's state: weights and two moments in fp32, and an average or target.

    Args:
        student: The network that is exported, before it is sharded.
        objective: It may train further networks.
    """
    copies = 5 if objective.target else 4
    others = sum(3 * _trained(role.module) for role in objective.roles.values())
    return 4 * (copies * _trained(student) + others)


def _trained(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters() if p.requires_grad)
