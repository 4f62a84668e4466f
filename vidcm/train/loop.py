"""The training loop. It knows no method: a task brings model, objective, data and previews."""

import json
import sys
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn
from tqdm import tqdm

from vidcm.config import TrainConfig, to_dict
from vidcm.data.batch import Dataset
from vidcm.data.loader import batches
from vidcm.errors import UsageError, VidcmError
from vidcm.files import write_text
from vidcm.objectives.base import Objective
from vidcm.train import checkpoint
from vidcm.train.checkpoint_writer import CheckpointWriter, state_size
from vidcm.train.collectives import next_parts, on_rank_zero
from vidcm.train.engine import Engine, StepReport
from vidcm.train.log import Log
from vidcm.train.lr_schedule import learning_rate
from vidcm.train.same_run import check_same_run
from vidcm.train.stop_signal import StopSignal

Weights = dict[str, Tensor]
Export = Callable[[Weights, Path, int], None]  # averaged weights, model folder, step


@dataclass
class Task:
    """What a run trains.

    Attributes:
        model: The network that is exported.
        objective: Its loss.
        data: Of training.
        preview: Draws a sheet at a path with some weights; returns numbers for the log.
        finish: Turns the averaged weights into the exported ones.
        merge: Turns weights of an adapted model into plain ones, before preview and finish.
    """

    model: nn.Module
    objective: Objective
    data: Dataset
    preview: Callable[[Weights, Path], dict[str, float]]
    finish: Callable[[Weights], Weights] = dict
    merge: Callable[[Weights], Weights] = dict


def train(
    config: TrainConfig,
    task: Task,
    engine: Engine,
    export: Export,
    writer: CheckpointWriter | None = None,
    stop: StopSignal | None = None,
) -> int:
    """Run, or resume, to `config.steps`; the last act writes the model folder `<output>/final`.

    Ranks act alike: what one alone knows (a signal, a failure) is agreed on before any acts.

    Args:
        config: Of the run.
        task: What is trained.
        engine: How.
        export: Writes a model folder.
        writer: Of checkpoints; by default a new one, as the config says.
        stop: Knows of signals since the start of the process; by default a new one.

    Returns:
        The exit code: 0, or 143 or 130 after a signal, with a checkpoint saved.
    """
    writer = writer or checkpoint_writer(config, task)
    with ExitStack() as stack:

        def claim() -> None:
            stack.enter_context(checkpoint.claimed(Path(config.output)))

        on_rank_zero(engine, claim)
        stop = stop or stack.enter_context(StopSignal())
        stack.enter_context(writer)
        return _Run(config, task, engine, writer, stop).train(export)


def checkpoint_writer(config: TrainConfig, task: Task) -> CheckpointWriter:
    """Return the writer of a run's checkpoints, before its networks are sharded."""
    size = state_size(task.model, task.objective) if config.async_checkpoints else None
    keep = config.keep_checkpoints
    return CheckpointWriter(Path(config.output), to_dict(config), keep=keep, size=size)


class _Run:
    """A run: its folder, its log and what is saved."""

    def __init__(
        self,
        config: TrainConfig,
        task: Task,
        engine: Engine,
        writer: CheckpointWriter,
        stop: StopSignal,
    ):
        self.config, self.task, self.engine = config, task, engine
        self.folder, self.writer, self.stop = Path(config.output), writer, stop
        self.log = Log(self.folder, enabled=engine.rank == 0)
        self.bad = Counter[str]()  # steps in a row that were not finite, by role

    def train(self, export: Export) -> int:
        """Resume, train and export; returns the exit code."""
        self.stop.hold()
        self.saved = self._resume()
        on_rank_zero(self.engine, self._prepare)
        done = self._steps(self.saved)
        if self.saved < done:
            self._save(done)
        on_rank_zero(self.engine, self.writer.wait)
        if done < self.config.steps:
            if done:
                self._say(f"stopped after step {done}, which is saved; the same command resumes")
            else:
                self._say("stopped before the first step; the same command begins it")
            return self.stop.code
        weights = self.task.merge(self.engine.weights(ema=True))

        def finish() -> None:
            self.stop.release()
            try:
                export(self.task.finish(weights), self.folder / "final", self.config.steps)
            except BaseException as error:
                if not isinstance(error, Exception):  # a signal
                    text = "stopped before the model folder was written; the same command resumes"
                    self._say(text)
                raise
            self.stop.hold()

        on_rank_zero(self.engine, finish)
        if self.engine.rank == 0:
            print(f"{self.folder / 'final'}: the model after step {self.config.steps}")
        return 0

    def _steps(self, start: int) -> int:
        """Train from step `start` to the end or a signal; returns the number of steps done."""
        config = self.config
        stream = batches(
            self.task.data,
            seed=config.seed,
            start=start,
            stop=config.steps,
            batch_size=config.batch_size,
            gradient_accumulation_steps=config.gradient_accumulation_steps,
            rank=self.engine.rank // config.sequence_parallel,
            world=self.engine.world // config.sequence_parallel,
            num_workers=config.num_workers,
        )
        with tqdm(
            total=config.steps,
            initial=start,
            unit="step",
            disable=self.engine.rank > 0,
            smoothing=0.05,
            mininterval=2,
        ) as bar:
            for step in range(start, config.steps):
                parts = next_parts(stream, self.stop, self.engine, self.writer.check)
                if parts is None:
                    return step
                lr = learning_rate(config.optimizer, step, config.steps)
                self._record(self.engine.step(parts, step / config.steps, lr, step), step)
                self._after(step + 1, bar)
        return config.steps

    def _record(self, report: StepReport, step: int) -> None:
        self.log.add(report)
        self.bad[report.role] = 0 if report.applied else self.bad[report.role] + 1
        if self.bad[report.role] >= self.config.max_skipped:
            on_rank_zero(self.engine, lambda: _give_up(self.config, step, self.bad[report.role]))

    def _after(self, done: int, bar: tqdm) -> None:
        """Log, save and preview where they are due after `done` steps."""
        config, last = self.config, done == self.config.steps
        if done % config.log_every == 0 or last:
            bar.set_postfix_str(self.log.write(done, config.batch_size))
        bar.update()
        with self.log.pause():
            if done % config.save_every == 0 or last:
                self._save(done)
            if done % config.sample_every == 0 or last:
                self._preview(done)

    def _prepare(self) -> None:
        text = json.dumps(to_dict(self.config), indent=1)
        write_text(self.folder / "config.json", text)
        self.log.open(self.saved)

    def _preview(self, step: int) -> None:
        weights = self.engine.weights(ema=True)

        def act() -> None:
            path = self.folder / "samples" / f"step-{step:08d}.png"
            self.log.extra(step, self.task.preview(self.task.merge(weights), path))

        on_rank_zero(self.engine, act)

    def _save(self, step: int) -> None:
        on_rank_zero(self.engine, self.writer.wait)  # before there is another copy
        copy = self.engine.rank == 0 and self.writer.wants_copy()
        state = self.engine.state(copy=copy)
        on_rank_zero(self.engine, lambda: self.writer.save(step, state, copied=copy))
        self.saved = step

    def _resume(self) -> int:
        """Load the checkpoint that rank 0 chose, if any; returns the step to resume at."""
        chosen: list[dict] = []

        def choose() -> int:
            folder = checkpoint.newest(self.folder)
            if folder is None:
                return 0
            state, manifest = checkpoint.read(folder)
            self._check_resumable(state, manifest)
            chosen.append(state)
            return int(manifest["step"])

        step = on_rank_zero(self.engine, choose)
        if step:
            folder = checkpoint.folder_of(self.folder, step)
            self.engine.load(chosen[0] if chosen else checkpoint.read(folder)[0])
        return step

    def _check_resumable(self, state: dict, manifest: dict) -> None:
        """Raises UsageError where a checkpoint is another run's, or began with other weights."""
        config = self.config
        check_same_run(self.folder, config, manifest["config"])
        if manifest["step"] > config.steps:
            raise UsageError(
                f"{self.folder} holds a run of {manifest['step']} steps, and steps is "
                f"{config.steps}; raise it, or choose another output"
            )
        if state["frozen"] != self.engine.frozen:
            raise UsageError(
                f"the frozen weights of {config.start} have sha256 {self.engine.frozen[:12]}, but "
                f"the run began with {state['frozen'][:12]}; put that model back, or choose "
                "another output"
            )

    def _say(self, text: str) -> None:
        if self.engine.rank == 0:
            print(f"{self.folder}: {text}", file=sys.stderr)


def _give_up(config: TrainConfig, step: int, bad: int) -> None:
    first = step * config.batch_size
    raise VidcmError(
        f"{bad} steps in a row were not finite, up to step {step}, whose samples are {first} to "
        f"{first + config.batch_size - 1} of seed {config.seed}. "
        "Lower optimizer.lr, or look at those clips"
    )
