"""The log of a run: metrics.jsonl, and TensorBoard where it is installed."""

import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from torch import Tensor

from vidcm.errors import VidcmError
from vidcm.files import write_text
from vidcm.objectives.base import STUDENT
from vidcm.train.engine import StepReport, mean_logs


class Log:
    """metrics.jsonl and TensorBoard: means since the last line.

    Args:
        run: The run's folder.
        enabled: Whether this process writes.
    """

    def __init__(self, run: Path, *, enabled: bool):
        self.path, self.enabled = run / "metrics.jsonl", enabled
        self.reports: list[dict[str, float | Tensor]] = []
        self.skipped, self.since = 0, time.perf_counter()
        self.board = None

    def open(self, start: int) -> None:
        """Drop torn lines and those after step `start`, whose steps will run again."""
        if self.path.exists():
            lines = self.path.read_text("utf-8", errors="replace").splitlines()
            kept = [x for x in lines if (step := step_of(x)) is not None and step <= start]
            write_text(self.path, "".join(x + "\n" for x in kept))
            counts = [c for x in kept if (c := json.loads(x).get("skipped")) is not None]
            self.skipped = counts[-1] if counts else 0
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            return
        self.board = SummaryWriter(str(self.path.parent / "tensorboard"), purge_step=start)

    def add(self, report: StepReport) -> None:
        """Take note of a step."""
        self.skipped += not report.applied
        if report.applied:
            named = {"loss": report.loss, "grad_norm": report.grad_norm, **report.logs}
            prefix = "" if report.role == STUDENT else f"{report.role}/"
            self.reports.append({prefix + name: value for name, value in named.items()})

    @contextmanager
    def pause(self) -> Iterator[None]:
        """Leave the block out of `samples_per_second`."""
        start = time.perf_counter()
        yield
        self.since += time.perf_counter() - start

    def write(self, step: int, batch_size: int) -> str:
        """Write the means since the last line; returns a summary for the progress bar."""
        means = mean_logs(self.reports)
        speed = len(self.reports) * batch_size / (time.perf_counter() - self.since)
        means["samples_per_second"] = speed
        self.extra(step, means | {"skipped": self.skipped})
        self.reports, self.since = [], time.perf_counter()
        return f"loss {means.get('loss', float('nan')):.4f}, {speed:.0f} clips/s"

    def extra(self, step: int, numbers: Mapping[str, float]) -> None:
        """Write a line of its own. Raises VidcmError where the file system refuses."""
        if not self.enabled or not numbers:
            return
        line = {"step": step, **{k: round(v, 6) for k, v in numbers.items()}}
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
        except OSError as error:
            raise VidcmError(
                f"cannot write {self.path}: {error.strerror}; when that is mended, the same "
                "command resumes from the newest checkpoint"
            ) from None
        if self.board:
            for name, value in numbers.items():
                self.board.add_scalar(name, value, step)


def step_of(line: str) -> int | None:
    """Return the step of a line, None for a torn one."""
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return None
