"""Every objective with the same teacher, budget and protocol: train, export, measure, row by row.

A row's training is timed first, so that every row gets as many steps as fit into the same seconds.
Rows are independent and resumable: a training goes on from its checkpoint, a measurement from its
last finished line, and a finished row is left alone.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vidcm.cli.export import sampling_of
from vidcm.config import from_dict, load, parse_yaml
from vidcm.data.lpc import CELL, FPS, LPC
from vidcm.errors import UsageError, VidcmError
from vidcm.markdown import write_text
from vidcm.metrics.protocol import evaluate
from vidcm.pipeline import VideoPipeline
from vidcm.sampling import SOLVERS
from vidcm.store import read_card
from vidcm.times import SHIFT

VERSION = 1
PROBE = 8  # steps timed; the first of them warm up and are left out
WARM = 4


@dataclass
class Row:
    """config: of a training, with overrides; or, for a baseline without one, settings of the
    teacher's sampling by number of evaluations. seeds: one training each."""

    config: str | None = None
    overrides: list[str] = field(default_factory=list)
    solver: str | None = None
    seeds: list[int] = field(default_factory=lambda: [0])


@dataclass
class Comparison:
    """What `comparison.yaml` says. output: a folder for runs. results: the JSON file written.
    budget: seconds of training a row. evaluations: numbers of network evaluations measured."""

    output: str
    results: str
    codec: str
    teacher: str
    rows: dict[str, Any]
    budget: float = 600.0
    count: int = 128
    seed: int = 0
    batch: int = 32
    guidance: float = 3.0
    evaluations: list[int] = field(default_factory=lambda: [1, 2, 4, 8])

    def __post_init__(self) -> None:
        if self.budget <= 0 or self.count < 2 or not self.evaluations or not self.rows:
            raise UsageError(
                f"budget {self.budget}, count {self.count}, evaluations {self.evaluations}: a "
                "comparison needs seconds, at least 2 clips, numbers of evaluations and rows"
            )
        rows = {}
        for name, row in self.rows.items():
            rows[name] = from_dict(Row, row or {}, f"rows.{name}")
            if (rows[name].config is None) == (rows[name].solver is None):
                raise UsageError(
                    f"rows.{name} needs either a config (a student) or a solver (the teacher)"
                )
            if rows[name].solver not in (None, *SOLVERS):
                raise UsageError(
                    f"rows.{name}: solver {rows[name].solver!r}; use {', '.join(SOLVERS)}"
                )
        self.rows = rows


def read(path: Path) -> Comparison:
    """Raises UsageError for what is unknown or does not fit."""
    try:
        text = path.read_text("utf-8")
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from None
    asked = from_dict(Comparison, parse_yaml(text, str(path)), str(path))
    for row in asked.rows.values():
        if row.config is not None:
            load(row.config, row.overrides)  # what is wrong with a late row is said at once
    return asked


def entries(asked: Comparison) -> Iterator[tuple[str, Row, int]]:
    """(key, row, seed) of everything to measure; a row of several seeds has several keys."""
    for name, row in asked.rows.items():
        for seed in row.seeds:
            yield (name if len(row.seeds) == 1 else f"{name}, seed {seed}"), row, seed


def steps_within(budget: float, seconds_per_step: float) -> int:
    return max(1, int(budget / seconds_per_step))


def train_row(asked: Comparison, row: Row, seed: int, run: Path) -> dict:
    """Train for the budget; seconds an iteration, iterations and peak memory (of this machine's
    resident set, MB)."""
    assert row.config is not None
    told = [*row.overrides, f"seed={seed}", f"teacher={asked.teacher}", f"codec={asked.codec}"]
    if load(row.config, row.overrides).teacher is None:
        told = [t for t in told if not t.startswith("teacher=")]
    if load(row.config, row.overrides).init is not None:
        told.append(f"init={asked.teacher}")
    timing = run / "timing.json"
    if not timing.exists():
        probe = run / "probe"
        shutil.rmtree(probe, ignore_errors=True)
        _train(row.config, [*told, f"output={probe}", f"steps={PROBE}", f"log_every={WARM}"])
        speed = [
            line["samples_per_second"]
            for line in map(json.loads, (probe / "metrics.jsonl").read_text("utf-8").splitlines())
            if "samples_per_second" in line
        ][-1]
        seconds = load(row.config, row.overrides).batch_size / speed
        shutil.rmtree(probe)
        write_text(timing, json.dumps({"seconds_per_step": seconds}) + "\n")
    seconds = json.loads(timing.read_text("utf-8"))["seconds_per_step"]
    steps = steps_within(asked.budget, seconds)
    student = run / "student"
    if not (student / "final" / "model.json").exists():
        start = time.perf_counter()
        memory = _train(row.config, [*told, f"output={student}", f"steps={steps}"])
        spent = time.perf_counter() - start
        made = {"steps": steps, "spent": spent, "peak_mb": memory, "seconds_per_step": seconds}
        write_text(run / "training.json", json.dumps(made) + "\n")
    return json.loads((run / "training.json").read_text("utf-8"))


def _train(config: str, overrides: list[str]) -> float:
    """A training in its own process; its peak resident set in MB. Raises VidcmError."""
    start = "import sys; from vidcm.cli.train import main; sys.exit(main(sys.argv[1:]))"
    child = subprocess.Popen([sys.executable, "-c", start, "--config", config, *overrides])
    try:
        _, status, usage = os.wait4(child.pid, 0)
    except BaseException:
        child.send_signal(signal.SIGINT)
        child.wait()
        raise
    if code := os.waitstatus_to_exitcode(status):
        raise VidcmError(
            f"training {config} ended with exit code {code}; mend it and give the same command "
            "again: finished rows are kept"
        )
    return usage.ru_maxrss / 1024


def measure_row(
    asked: Comparison, row: Row, run: Path, lpc: LPC, student: Path | None, name: str
) -> dict:
    """Lines of `metrics.protocol` by number of evaluations, of a student or of the teacher."""
    folder = _pipeline(asked, row, lpc, run / "pipeline", student)
    pipe = VideoPipeline.from_pretrained(folder)
    if student is not None:
        phases = pipe.settings["student"].get("phases")
        wanted = {n: f"student-{n}" for n in asked.evaluations if n == (phases or n)}
    else:
        heun = row.solver == "heun"  # two slopes an interval, one in the last
        wanted = {n: f"teacher-{(n + 1) // 2 if heun else n}" for n in asked.evaluations}
    found = evaluate(
        pipe,
        lpc,
        run / "measured.json",
        name=name,
        rows=list(dict.fromkeys(wanted.values())),
        count=asked.count,
        seed=asked.seed,
        batch=asked.batch,
    )
    return {str(n): found["rows"][r]["heldout"] for n, r in wanted.items()}


def _pipeline(asked: Comparison, row: Row, lpc: LPC, folder: Path, student: Path | None) -> Path:
    """A pipeline folder of a row, made anew."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    settings: dict[str, Any] = {
        "frames": lpc.num_frames,
        "height": CELL,
        "width": CELL,
        "fps": FPS,
        "student": {"steps": 4, "guidance": asked.guidance},
        "teacher": {
            "steps": 50,
            "guidance": asked.guidance,
            "shift": SHIFT,
            "solver": row.solver or "euler",
        },
    }
    models = {"codec": Path(asked.codec), "teacher": Path(asked.teacher)}
    if student is not None:
        models["student"] = student
        made = read_card(student)["made"].get("config", {})
        settings["student"] |= sampling_of(made.get("objective", {}))
    for role, source in models.items():
        shutil.copytree(source, folder / role)
    write_text(folder / "pipeline.json", json.dumps(settings, indent=1) + "\n")
    return folder


def compare(asked: Comparison, lpc: LPC, only: list[str] | None = None) -> dict:
    """Train and measure every row; returns what is also written to `asked.results`."""
    results: dict[str, Any] = {
        "version": VERSION,
        "budget": asked.budget,
        "count": asked.count,
        "guidance": asked.guidance,
        "environment": None,
        "rows": {},
    }
    output, target = Path(asked.output), Path(asked.results)
    for key, row, seed in entries(asked):
        if only and key not in only and key.split(", seed")[0] not in only:
            continue
        run = output / key.replace(", ", "-").replace(" ", "-")
        run.mkdir(parents=True, exist_ok=True)
        if row.config is None:
            made, student = None, None
        else:
            made, student = train_row(asked, row, seed, run), run / "student" / "final"
        lines = measure_row(asked, row, run, lpc, student, key)
        results["rows"][key] = {"training": made, "evaluations": lines}
        results["environment"] = next(iter(lines.values()))["environment"]
        if target.exists():
            before = json.loads(target.read_text("utf-8"))
            same = all(before.get(k) == results[k] for k in ("version", "budget", "count"))
            results["rows"] = (before["rows"] if same else {}) | results["rows"]
        target.parent.mkdir(parents=True, exist_ok=True)
        write_text(target, json.dumps(results, indent=1) + "\n")
    return results
