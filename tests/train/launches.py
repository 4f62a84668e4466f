"""Real launches of two CPU ranks by DeepSpeed's launcher."""

import os
import re
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

REPO = Path(__file__).resolve().parents[2]


def free_port() -> int:
    """A port below those that the system hands out by itself: it stays free until rank 0, which
    takes seconds to start, binds it. Of one that was handed out, any connection may be faster.
    Drawn by the system, since tests seed `random`, and two workers would draw the same."""
    while True:
        port = 20_000 + secrets.randbelow(12_000)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def wait_for(what: Callable[[], Any], seconds: float) -> bool:
    end = time.monotonic() + seconds
    while not (found := what()) and time.monotonic() < end:
        time.sleep(0.1)
    return bool(found)


def alive(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


class Launch:
    """`deepspeed --num_gpus 2 ranks.py ...` in a process group of its own."""

    def __init__(self, mode: str, folder: Path):
        self.log = folder.parent / f"{mode}.log"
        runner = [sys.executable, "-m", "deepspeed.launcher.runner", "--num_gpus", "2"]
        script = [str(Path(__file__).with_name("ranks.py")), mode, str(folder)]
        self.process = subprocess.Popen(
            [*runner, "--master_port", str(free_port()), *script],
            env={**os.environ, "PYTHONPATH": str(REPO), "DS_ACCELERATOR": "cpu"},
            stdout=self.log.open("wb"),
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    @property
    def output(self) -> str:
        return self.log.read_text("utf-8", errors="replace")

    def rank(self, number: int) -> int:
        """The process id of a rank, as the launcher says it."""
        found = re.search(rf"process (\d+) spawned .*--local_rank={number}'", self.output)
        assert found, self.output
        return int(found[1])

    def done(self) -> bool:
        """Whether launcher and ranks have all ended."""
        return self.process.poll() is not None and not alive(self.process.pid)

    def found(self, folder: Path) -> list[dict]:
        """What each of two ranks wrote, once all have ended well."""
        assert wait_for(self.done, 900), self.output
        assert self.process.returncode == 0, self.output
        return [torch.load(folder / f"rank{r}.pt", weights_only=True) for r in (0, 1)]

    def kill(self) -> None:
        if alive(self.process.pid):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
