"""The training loop. It knows no method: a task brings model, objective, data and what to draw."""

import json
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from vidcm.config import TrainConfig, to_dict
from vidcm.data.batch import Dataset
from vidcm.errors import UsageError, VidcmError
from vidcm.objectives.base import Objective
from vidcm.train import checkpoint
from vidcm.train.engine import Engine, StepReport
from vidcm.train.loader import batches
from vidcm.train.schedule import learning_rate


@dataclass
class Task:
    """What a run trains. preview: weights -> numbers for the log, drawing a sheet at the path.
    finish: turns the averaged weights into what is exported (codecs are whitened there)."""

    model: nn.Module
    objective: Objective
    data: Dataset
    preview: Callable[[dict[str, Tensor], Path], dict[str, float]]
    finish: Callable[[dict[str, Tensor]], dict[str, Tensor]]


def train(config: TrainConfig, task: Task, engine: Engine, export: Callable[[dict[str, Tensor], Path, dict], None]) -> int:
    """Run, or resume, to `config.steps`; returns the exit code (143 or 130 after a signal, with a
    checkpoint saved). The last act writes the model folder `<output>/final`."""
    run, chief = Path(config.output), engine.rank == 0
    start = _resume(run, config, engine)
    if chief:
        run.mkdir(parents=True, exist_ok=True)
        (run / "config.json").write_text(json.dumps(to_dict(config), indent=1), "utf-8")
    log = _Log(run, start, enabled=chief)
    stop = _StopSignal()
    bad: list[list[int]] = []
    bar = tqdm(total=config.steps, initial=start, unit="step", disable=not chief, smoothing=0.05, mininterval=2)
    stream = batches(
        task.data, seed=config.seed, start=start, stop=config.steps, batch_size=config.batch_size,
        accumulation=config.accumulation, rank=engine.rank, world=engine.world, workers=config.workers,
    )
    with bar, stop:
        for step, parts in enumerate(stream, start=start):
            report = engine.step(parts, step / config.steps, learning_rate(config.optimizer, step, config.steps))
            bad = [] if report.applied else [*bad, [p for part in parts for p in part.positions]]
            log.add(report)
            if len(bad) >= config.max_skipped:
                raise VidcmError(
                    f"{len(bad)} steps in a row were not finite, up to step {step}; samples of the last: "
                    f"{bad[-1]} of seed {config.seed}. Lower optimizer.lr, or look at those clips"
                )
            done = step + 1
            last = done == config.steps
            if done % config.log_every == 0 or last:
                bar.set_postfix_str(log.write(done, config.batch_size))
            bar.update()
            if done % config.save_every == 0 or last or stop.code:
                _save(run, done, config, engine)
            if done % config.sample_every == 0 or last:
                weights = engine.weights(ema=True)
                if chief:
                    log.extra(done, task.preview(weights, run / "samples" / f"step-{done:08d}.png"))
            if stop.code:
                return stop.code
    weights = engine.weights(ema=True)
    if chief:
        export(task.finish(weights), run / "final", {"config": to_dict(config), "step": config.steps})
    return 0


def _save(run: Path, step: int, config: TrainConfig, engine: Engine) -> None:
    state = engine.state()
    if engine.rank == 0:
        checkpoint.save(run, step, state, to_dict(config), keep=config.keep)


# Keys that may change between the parts of a run without making it another run.
_FREE = {"output", "steps", "workers", "log_every", "sample_every", "save_every", "keep", "prompts", "max_skipped"}


def _resume(run: Path, config: TrainConfig, engine: Engine) -> int:
    folder = checkpoint.newest(run)
    if folder is None:
        return 0
    state, manifest = checkpoint.load(folder)
    now = json.loads(json.dumps(to_dict(config)))
    changed = [k for k, v in now.items() if k not in _FREE and manifest["config"].get(k) != v]
    if changed:
        key = changed[0]
        raise UsageError(
            f"{run} holds a run with {key}={manifest['config'].get(key)!r}, not {now[key]!r}; "
            "choose another output, or restore the value to resume"
        )
    engine.load(state)
    return int(manifest["step"])


class _StopSignal:
    """Turns SIGTERM and SIGINT into a wish to stop after the current step; a second one kills."""

    code = 0

    def __enter__(self) -> "_StopSignal":
        self._before: dict[int, Any] = {}
        for number, code in ((signal.SIGTERM, 143), (signal.SIGINT, 130)):
            self._before[number] = signal.signal(number, lambda *_, code=code: self._ask(code))
        return self

    def _ask(self, code: int) -> None:
        self.code = code
        self.__exit__()

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)


class _Log:
    """metrics.jsonl (and TensorBoard where installed): means since the last line."""

    def __init__(self, run: Path, start: int, *, enabled: bool):
        self.path, self.enabled = run / "metrics.jsonl", enabled
        self.sums: dict[str, float] = {}
        self.count, self.skipped, self.since = 0, 0, time.perf_counter()
        self.board = None
        if not enabled:
            return
        if self.path.exists():  # lines after the checkpoint are of steps that will run again
            lines = [x for x in self.path.read_text("utf-8").splitlines() if json.loads(x)["step"] <= start]
            self.path.write_text("".join(x + "\n" for x in lines), "utf-8")
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            return
        self.board = SummaryWriter(str(run / "tensorboard"), purge_step=start)

    def add(self, report: StepReport) -> None:
        self.skipped += not report.applied
        if report.applied:
            self.count += 1
            for name, value in {"loss": report.loss, "grad_norm": report.grad_norm, **report.logs}.items():
                self.sums[name] = self.sums.get(name, 0.0) + value

    def write(self, step: int, batch_size: int) -> str:
        now = time.perf_counter()
        means = {k: v / max(self.count, 1) for k, v in self.sums.items()}
        steps = self.count or 1
        means["samples_per_second"] = steps * batch_size / (now - self.since)
        self.extra(step, means | {"skipped": self.skipped})
        self.sums, self.count, self.since = {}, 0, now
        return f"loss {means.get('loss', float('nan')):.4f}, {means['samples_per_second']:.0f} clips/s"

    def extra(self, step: int, numbers: dict[str, float]) -> None:
        if not self.enabled or not numbers:
            return
        with self.path.open("a", encoding="utf-8") as file:
            line = {"step": step, **{k: round(v, 6) for k, v in numbers.items()}}
            file.write(json.dumps(line) + "\n")
        for name, value in numbers.items() if self.board else ():
            self.board.add_scalar(name, value, step)
