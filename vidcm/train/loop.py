"""The training loop. It knows no method: a task brings model, objective, data and what to draw."""

import json
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from tqdm import tqdm

from vidcm.config import TrainConfig, to_dict
from vidcm.data.batch import Dataset, MicroBatch
from vidcm.data.loader import batches
from vidcm.errors import UsageError, VidcmError
from vidcm.files import write_text
from vidcm.objectives.base import Objective
from vidcm.train import checkpoint
from vidcm.train.engine import Engine
from vidcm.train.log import Log
from vidcm.train.lr_schedule import learning_rate


@dataclass
class Task:
    """What a run trains. preview: weights -> numbers for the log, drawing a sheet at the path.
    finish: turns the averaged weights into what is exported (codecs whiten their axes and scale
    there). base: what a run never changes, if it took that from a model folder."""

    model: nn.Module
    objective: Objective
    data: Dataset
    preview: Callable[[dict[str, Tensor], Path], dict[str, float]]
    finish: Callable[[dict[str, Tensor]], dict[str, Tensor]]
    base: checkpoint.Base | None = None


def train(
    config: TrainConfig,
    task: Task,
    engine: Engine,
    export: Callable[[dict[str, Tensor], Path, dict], None],
) -> int:
    """Run, or resume, to `config.steps`; returns the exit code (143 or 130 after a signal, with a
    checkpoint saved). The last act writes the model folder `<output>/final`.

    Ranks act alike: what one alone knows (a signal, a failure) is agreed on before any acts."""
    with ExitStack() as held:

        def claim() -> None:
            held.enter_context(checkpoint.claimed(Path(config.output)))

        _on_chief(engine, claim)
        return _run(config, task, engine, export)


def _run(
    config: TrainConfig,
    task: Task,
    engine: Engine,
    export: Callable[[dict[str, Tensor], Path, dict], None],
) -> int:
    run, chief = Path(config.output), engine.rank == 0
    start = saved = _resume(run, config, engine, task.base)
    log = Log(run, enabled=chief)
    _on_chief(engine, _prepare, run, config, log, start)
    stop, bad = _StopSignal(), Counter[str]()
    bar = tqdm(
        total=config.steps,
        initial=start,
        unit="step",
        disable=not chief,
        smoothing=0.05,
        mininterval=2,
    )
    stream = batches(
        task.data,
        seed=config.seed,
        start=start,
        stop=config.steps,
        batch_size=config.batch_size,
        gradient_accumulation_steps=config.gradient_accumulation_steps,
        rank=engine.rank,
        world=engine.world,
        num_workers=config.num_workers,
    )
    with bar, stop:
        for step in range(start, config.steps):
            parts = _next(stream, stop, engine)
            if parts is None:
                if saved < step:
                    _save(run, step, config, engine, task.base)
                return stop.code
            lr = learning_rate(config.optimizer, step, config.steps)
            report = engine.step(parts, step / config.steps, lr, step)
            log.add(report)
            bad[report.role] = 0 if report.applied else bad[report.role] + 1
            if bad[report.role] >= config.max_skipped:
                _on_chief(engine, _give_up, config, step, bad[report.role])
            done = step + 1
            last = done == config.steps
            if done % config.log_every == 0 or last:
                bar.set_postfix_str(log.write(done, config.batch_size))
            bar.update()
            if done % config.save_every == 0 or last:
                saved = _save(run, done, config, engine, task.base)
            if done % config.sample_every == 0 or last:
                weights = engine.weights(ema=True)
                _on_chief(engine, _preview, task, weights, run, done, log)
    weights = engine.weights(ema=True)
    _on_chief(engine, _export, config, task, weights, export)
    return 0


_FAILED = 255  # above every exit code of a signal, so that it wins an agreement


def _next(
    stream: Iterator[list[MicroBatch]], stop: "_StopSignal", engine: Engine
) -> list[MicroBatch] | None:
    """The next micro-batches, or None when a rank was asked to stop. Where one rank fails to read,
    it says why and the others end without a word, rather than wait for it."""
    parts, error = None, None
    try:
        parts = next(stream)
    except Exception as caught:
        error = caught
    code = engine.agree(_FAILED if error else stop.code)
    if code == _FAILED:
        raise error or SystemExit(1)
    stop.code = code
    return None if code else parts


def _on_chief(engine: Engine, act: Callable[..., int | None], *args: Any) -> int:
    """Let rank 0 act while the others wait; its result (0 or more; None is 0) reaches them all, and
    its failure ends them all."""
    result, error = 0, None
    if engine.rank == 0:
        try:
            result = act(*args) or 0
        except Exception as caught:
            error = caught
    if engine.agree(int(error is not None)):
        raise error or SystemExit(1)
    return engine.agree(result)


def _prepare(run: Path, config: TrainConfig, log: Log, start: int) -> None:
    write_text(run / "config.json", json.dumps(to_dict(config), indent=1))
    log.open(start)


def _preview(task: Task, weights: dict[str, Tensor], run: Path, step: int, log: Log) -> None:
    log.extra(step, task.preview(weights, run / "samples" / f"step-{step:08d}.png"))


def _export(
    config: TrainConfig,
    task: Task,
    weights: dict[str, Tensor],
    export: Callable[[dict[str, Tensor], Path, dict], None],
) -> None:
    metadata = {"config": to_dict(config), "step": config.steps}
    export(task.finish(weights), Path(config.output) / "final", metadata)


def _give_up(config: TrainConfig, step: int, bad: int) -> None:
    first = step * config.batch_size
    raise VidcmError(
        f"{bad} steps in a row were not finite, up to step {step}, whose samples are {first} to "
        f"{first + config.batch_size - 1} of seed {config.seed}. "
        "Lower optimizer.lr, or look at those clips"
    )


def _save(
    run: Path, step: int, config: TrainConfig, engine: Engine, base: checkpoint.Base | None
) -> int:
    state = engine.state()
    if base and state:
        state = base.strip(state)

    def write() -> None:
        checkpoint.save(run, step, state, to_dict(config), keep=config.keep_checkpoints)

    _on_chief(engine, write)
    return step


# Keys that may change between the parts of a run without making it another run.
_FREE = {
    *("output", "steps", "num_workers", "log_every", "sample_every", "save_every"),
    *("keep_checkpoints", "preview_prompts"),
    *("max_skipped", "zero", "gradient_accumulation_steps", "activation_checkpointing", "compile"),
}


def _resume(run: Path, config: TrainConfig, engine: Engine, base: checkpoint.Base | None) -> int:
    """Load the checkpoint that rank 0 chose, if any; the step to go on from."""
    found: list[dict] = []

    def choose() -> int:
        folder = checkpoint.newest(run)
        if folder is None:
            return 0
        state, manifest = checkpoint.load(folder)
        _refuse_another_run(run, config, manifest["config"])
        if manifest["step"] > config.steps:
            raise UsageError(
                f"{run} holds a run of {manifest['step']} steps, and steps is {config.steps}; raise "
                "it, or choose another output"
            )
        if base:
            base.check(state)
        found.append(state)
        return int(manifest["step"])

    step = _on_chief(engine, choose)
    if step:
        state = found[0] if found else checkpoint.load(checkpoint.folder_of(run, step))[0]
        engine.load(base.fill(state, engine.weights(ema=False)) if base else state)
    return step


def _refuse_another_run(run: Path, config: TrainConfig, before: dict) -> None:
    now = json.loads(json.dumps(to_dict(config)))
    for key in (k for k in now if k not in _FREE and before.get(k) != now[k]):
        was, wanted = before.get(key), now[key]
        if isinstance(was, dict) and isinstance(wanted, dict):  # name the one that differs
            inner = min(k for k, _ in _items(was) ^ _items(wanted))
            key, was, wanted = f"{key}.{inner}", was.get(inner), wanted.get(inner)
        raise UsageError(
            f"{run} holds a run with {key}={was!r}, not {wanted!r}; "
            "choose another output, or restore the value to resume"
        )


def _items(group: dict) -> set[tuple[str, str]]:
    return {(k, repr(v)) for k, v in group.items()}


class _StopSignal:
    """Turns SIGTERM and SIGINT into a wish to stop after the current step; a later one kills.

    Within `ECHO` seconds a second is taken for the first: ranks get one from the terminal or the
    scheduler, and again from their launcher."""

    ECHO = 3.0
    code = 0

    def __enter__(self) -> "_StopSignal":
        self._before: dict[int, Any] = {}
        self._since: float | None = None
        for number, code in ((signal.SIGTERM, 143), (signal.SIGINT, 130)):
            self._before[number] = signal.signal(number, lambda n, _, code=code: self._ask(n, code))
        return self

    def _ask(self, number: int, code: int) -> None:
        now = time.monotonic()
        if self._since is None:
            self.code, self._since = code, now
        elif now - self._since > self.ECHO:
            self.__exit__()
            signal.raise_signal(number)

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
