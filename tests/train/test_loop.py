"""A run is the same run however it is cut up, stopped, killed or fed with bad samples."""

import copy
import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from train import ranks

from vidcm.config import OptimizerConfig
from vidcm.data.batch import Batch
from vidcm.data.loader import batches, positions
from vidcm.errors import UsageError, VidcmError
from vidcm.rng import SampleRng
from vidcm.train import checkpoint, collectives, loop
from vidcm.train.engine import StepReport
from vidcm.train.log import Log
from vidcm.train.lr_schedule import learning_rate
from vidcm.train.stop_signal import StopSignal

REPO = Path(__file__).resolve().parents[2]


class Interrupting(ranks.Points):
    """Data during whose reading a signal arrives, at one position."""

    def __init__(self, at: int):
        super().__init__({ranks.BAD})
        self.at = at

    def batch(self, seed: int, positions: Iterable[int]) -> Batch:
        places = list(positions)
        if self.at in places:
            signal.raise_signal(signal.SIGTERM)
        return super().batch(seed, places)


def train(folder: Path, data: ranks.Points | None = None, **changes: Any) -> int:
    """The toy run in one process, from its newest checkpoint; its exports go to `final.pt`."""
    chosen = ranks.config(str(folder), **{**ranks.SHORT, **changes})
    task = ranks.task(data or ranks.Points({ranks.BAD}))

    def export(weights: dict[str, Tensor], path: Path, step: int) -> None:
        torch.save(weights, path.with_suffix(".pt"))

    return loop.train(chosen, task, ranks.local(chosen), export)


def lines(folder: Path) -> list[dict]:
    return [json.loads(x) for x in (folder / "metrics.jsonl").read_text("utf-8").splitlines()]


def numbers(folder: Path) -> list[dict]:
    """The log without what depends on the clock."""
    return [{k: v for k, v in x.items() if k != "samples_per_second"} for x in lines(folder)]


def assert_same_run(a: Path, b: Path) -> None:
    """Equal to the bit: weights, average, optimizer, exports and log."""
    found, expected = (
        checkpoint.read(checkpoint.folder_of(folder, ranks.SHORT["steps"]))[0] for folder in (a, b)
    )
    for part in ("model", "average"):
        assert found[part].keys() == expected[part].keys()
        assert all(torch.equal(found[part][k], v) for k, v in expected[part].items())
    states = [x["optimizer"]["state"] for x in (found, expected)]
    assert states[0].keys() == states[1].keys() and states[1]
    for index, entry in states[1].items():
        assert all(torch.equal(states[0][index][k], v) for k, v in entry.items())
    exports = [torch.load(folder / "final.pt", weights_only=True) for folder in (a, b)]
    assert all(torch.equal(exports[0][k], v) for k, v in exports[1].items())
    assert numbers(a) == numbers(b)


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that nothing disturbed."""
    folder = tmp_path_factory.mktemp("straight") / "run"
    assert train(folder) == 0
    return folder


def test_a_run_learns_logs_and_keeps(straight: Path) -> None:
    losses = [x["loss"] for x in lines(straight) if "loss" in x]
    assert len(losses) == 19, "every step but the skipped one"
    model, held = ranks.task(ranks.Points()).model, range(10**6, 10**6 + 500)
    error = []
    for weights in (model.state_dict(), torch.load(straight / "final.pt", weights_only=True)):
        model.load_state_dict(weights)
        rng = SampleRng(5, held)
        error.append(
            float(ranks.regression(model, ranks.Points().batch(5, held), 1.0, rng).total.detach())
        )
    assert error[1] < 0.95 * error[0]
    assert [x["step"] for x in lines(straight) if "total" in x] == [9, 18, 20], "previews"
    kept = sorted(p.name for p in (straight / "checkpoints").iterdir())
    assert kept == ["step-00000016", "step-00000020"]


@pytest.mark.parametrize("workers", [0, 2])
def test_stop_and_resume_to_the_bit(tmp_path: Path, straight: Path, workers: int) -> None:
    """The count of steps left out goes on too. Cases: R06, R07."""
    run = tmp_path / "run"
    if workers:  # the signal is raised where the main thread reads; leave it unread ahead
        data: ranks.Points = ranks.Points({ranks.BAD}, delay=0.02)
        threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGTERM)).start()
    else:
        data = Interrupting(10 * ranks.BATCH)
    before = signal.getsignal(signal.SIGTERM)
    assert train(run, data, num_workers=workers) == 143
    assert signal.getsignal(signal.SIGTERM) is before
    newest = checkpoint.newest(run)
    assert newest is not None and not (run / "final.pt").exists()
    assert workers or newest.name == "step-00000010"
    assert train(run, num_workers=workers) == 0
    assert_same_run(run, straight)
    assert train(run) == 0, "a finished run exports again"


def test_a_late_second_signal_kills(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cases: R02."""
    outer: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, _: outer.append(number))
    try:
        with StopSignal() as stop:
            for _ in range(3):  # the scheduler's, the launcher's: one wish
                signal.raise_signal(signal.SIGTERM)
            signal.raise_signal(signal.SIGINT)
            assert stop.code == 143 and not outer
            monkeypatch.setattr(stop, "ECHO", dict.fromkeys(stop.ECHO, -1.0))
            signal.raise_signal(signal.SIGTERM)
            assert outer == [signal.SIGTERM], "who listened before us hears it"
    finally:
        signal.signal(signal.SIGTERM, before)


def test_killed_while_saving(tmp_path: Path, straight: Path) -> None:
    run = tmp_path / "run"
    child = subprocess.run(
        [sys.executable, ranks.__file__, "killed", str(run)],
        env={**os.environ, "PYTHONPATH": str(REPO)},
        capture_output=True,
        timeout=120,
    )
    assert child.returncode == -signal.SIGKILL, child.stderr.decode()
    newest = checkpoint.newest(run)
    assert newest is not None and newest.name == "step-00000004"
    assert len(list(newest.parent.iterdir())) == 2, "the torn one lies beside it"
    assert train(run) == 0
    assert_same_run(run, straight)


@pytest.mark.parametrize("damage", ["truncated", "altered", "no state", "no manifest", "half json"])
def test_a_damaged_checkpoint_is_passed_over(tmp_path: Path, straight: Path, damage: str) -> None:
    run = tmp_path / "run"
    assert train(run, Interrupting(19 * ranks.BATCH)) == 143  # checkpoints of 16 and 19
    folder = checkpoint.folder_of(run, 19)
    state, manifest = folder / "state.pt", folder / "manifest.json"
    if damage == "truncated":
        os.truncate(state, state.stat().st_size // 2)
    elif damage == "altered":
        data = bytearray(state.read_bytes())
        data[len(data) // 2] ^= 1
        state.write_bytes(data)
    elif damage == "half json":
        manifest.write_text(manifest.read_text()[:50])
    else:
        (state if damage == "no state" else manifest).unlink()
    newest = checkpoint.newest(run)
    assert newest is not None and newest.name == "step-00000016"
    assert train(run) == 0
    assert_same_run(run, straight)


def test_the_log_is_cut_to_the_checkpoint(tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert train(run, Interrupting(9 * ranks.BATCH)) == 143
    before = lines(run)
    with (run / "metrics.jsonl").open("a") as file:  # steps after the checkpoint, then a torn line
        file.write('{"step": 10, "loss": 1.0}\n{"step": 8, "lo')
    assert train(run, Interrupting(9 * ranks.BATCH)) == 143, "stops where it resumed"
    assert lines(run) == before


def test_a_resume_hashes_its_checkpoint_once_and_other_ranks_never(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, hashed = tmp_path / "run", []
    assert train(run, Interrupting(9 * ranks.BATCH)) == 143
    digest = checkpoint.file_hash
    monkeypatch.setattr(checkpoint, "file_hash", lambda path: hashed.append(path) or digest(path))
    folder = checkpoint.newest(run)
    assert folder is not None and hashed == [folder / "state.pt"]
    state, manifest = checkpoint.read(folder)  # as every rank does
    assert manifest["step"] == 9 and state["model"] and len(hashed) == 1
    hashed.clear()
    assert train(run, Interrupting(9 * ranks.BATCH)) == 143
    assert hashed == [folder / "state.pt"], "it stops where it resumed, so nothing is written"


def test_what_is_resumed_outlives_the_file(tmp_path: Path) -> None:
    """Ranks map the file; a later checkpoint removes it, and the optimizer works on in its state."""
    chosen = ranks.config()
    engine = ranks.local(chosen)
    ranks.run(engine, chosen, 0, 2)
    folder = checkpoint.save(tmp_path, 2, engine.state(), {}, keep=1)
    resumed = ranks.local(chosen)
    resumed.load(checkpoint.read(folder)[0])
    before = (folder / "state.pt").read_bytes()
    assert ranks.run(resumed, chosen, 3, 5) == ranks.run(engine, chosen, 3, 5)
    assert (folder / "state.pt").read_bytes() == before


def test_a_stopped_run_says_what_is_saved(tmp_path: Path, capsys) -> None:
    assert train(tmp_path / "run", Interrupting(9 * ranks.BATCH)) == 143
    said = capsys.readouterr().err
    assert f"{tmp_path}/run: stopped after step 9, which is saved; the same command resumes" in said
    assert train(tmp_path / "run") == 0
    assert f"{tmp_path}/run/final: the model after step 20" in capsys.readouterr().out


def test_speed_is_of_the_steps_alone(tmp_path: Path) -> None:
    log, report = Log(tmp_path, enabled=True), StepReport(1.0, {}, 1.0, True)
    time.sleep(0.02)
    log.add(report)
    with log.pause():
        time.sleep(0.2)
    log.write(1, 100)
    speed = lines(tmp_path)[0]["samples_per_second"]
    assert 100 / 0.12 < speed <= 100 / 0.02


def test_another_config_does_not_resume(tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert train(run, Interrupting(5 * ranks.BATCH)) == 143
    with pytest.raises(UsageError, match="seed=5, not 6"):
        train(run, seed=6)
    with pytest.raises(UsageError, match="holds a run of 5 steps, and steps is 4; raise it"):
        train(run, steps=4)
    # How the work is shared out, and how often it is looked at, does not make it another run.
    free = dict(
        num_workers=1,
        gradient_accumulation_steps=1,
        log_every=7,
        sample_every=5,
        keep_checkpoints=1,
        max_skipped=3,
    )
    assert train(run, **free) == 0


def test_a_bad_step_changes_nothing() -> None:
    """Cases: R05."""
    chosen = ranks.config()
    engine = ranks.local(chosen)
    ranks.run(engine, chosen, 0, 2)
    before = copy.deepcopy(engine.state())
    ((loss, *_, applied),) = ranks.run(engine, chosen, 2, 3)
    assert not applied and math.isnan(loss)
    after = engine.state()
    for part in ("model", "average"):
        assert all(torch.equal(after[part][k], v) for k, v in before[part].items())
    for index, entry in before["optimizer"]["state"].items():
        for key, value in entry.items():
            assert torch.equal(after["optimizer"]["state"][index][key], value)


def test_bad_steps_in_a_row_stop_the_run(tmp_path: Path) -> None:
    """Cases: R05."""
    data = ranks.Points({30, 41, 47, 48})  # steps 3, 5, 5 and 6
    assert train(tmp_path / "a", data, max_skipped=3) == 0
    assert [x["step"] for x in lines(tmp_path / "a") if "skipped" in x and "loss" not in x] == [
        4,
        6,
        7,
    ]
    assert lines(tmp_path / "a")[-2]["skipped"] == 3
    with pytest.raises(VidcmError, match=r"2 steps in a row .* step 6, .* 48 to 55 of seed 5"):
        train(tmp_path / "b", data, max_skipped=2)


def test_learning_rate_closed_form() -> None:
    config = OptimizerConfig(lr=0.3, warmup_steps=11, final_lr_ratio=0.1)
    rates = [learning_rate(config, s, 101) for s in range(102)]
    assert rates[:11] == pytest.approx([0.3 * (s + 1) / 11 for s in range(11)])
    assert max(rates) == pytest.approx(0.3) and rates[11] == pytest.approx(0.3)
    assert rates[56] == pytest.approx(0.3 * 0.55), "half way along the cosine: the mean of its ends"
    assert rates[101] == pytest.approx(0.03)
    assert all(a > b for a, b in zip(rates[11:], rates[12:], strict=False))
    assert learning_rate(OptimizerConfig(lr=0.3, warmup_steps=0), 0, 7) == pytest.approx(0.3)


@pytest.mark.parametrize(("world", "accumulation"), [(1, 1), (2, 1), (1, 2), (2, 3), (3, 4)])
def test_positions_do_not_depend_on_the_partition(world: int, accumulation: int) -> None:
    """Cases: R09."""
    seen = set()
    for step in range(3):
        parts = [positions(step, 24, world * accumulation, i) for i in range(world * accumulation)]
        assert len({len(p) for p in parts}) == 1
        assert sum(parts, []) == list(range(24 * step, 24 * step + 24))
        seen.update(sum(parts, []))
    assert seen == set(range(72))


@pytest.mark.parametrize("workers", [0, 3])
def test_batches_of_all_ranks_are_the_global_batch(workers: int) -> None:
    common = dict(
        seed=5, start=1, stop=4, batch_size=24, gradient_accumulation_steps=3, num_workers=workers
    )
    each = [list(batches(ranks.Points(), rank=r, world=2, **common)) for r in (0, 1)]
    for step, (a, b) in enumerate(zip(*each, strict=True), start=1):
        at = [p for part in [*a, *b] for p in part.positions]
        assert sorted(at) == list(range(24 * step, 24 * step + 24))
        latents = [part.batch.latents for part in [*a, *b]]
        expected = ranks.Points().batch(5, at).latents
        assert torch.equal(torch.cat(latents), expected), "a sample depends on its position alone"


def test_a_batch_that_does_not_divide() -> None:
    with pytest.raises(UsageError, match="batch_size 7 .* 3 micro-batches .* use 6 or 9"):
        positions(0, 7, 3, 0)


class Pair:
    """Two ranks as threads; only `all_reduce_max` works."""

    world = 2

    def __init__(self, rank: int, meeting: threading.Barrier, values: list[int]):
        self.rank, self.meeting, self.values = rank, meeting, values

    def all_reduce_max(self, value: int) -> int:
        self.values[self.rank] = value
        self.meeting.wait(10)
        highest = max(self.values)
        self.meeting.wait(10)
        return highest


def both(act: Callable[[Any], Any]) -> list[Any]:
    """What `act(engine)` gives or raises on each of two ranks."""
    meeting, values, results = threading.Barrier(2), [0, 0], [None, None]

    def one(rank: int) -> None:
        try:
            results[rank] = act(Pair(rank, meeting, values))
        except BaseException as error:
            results[rank] = error

    threads = [threading.Thread(target=one, args=(r,)) for r in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def test_ranks_stop_and_fail_together() -> None:
    def read(fails: int | None, asked: int | None) -> Callable[[Any], Any]:
        def act(engine: Any) -> Any:
            stop = StopSignal()
            stop.code = 143 * (engine.rank == asked)
            found = iter([] if engine.rank == fails else [["parts"]])
            return collectives.next_parts(found, stop, engine), stop.code

        return act

    assert both(read(None, None)) == [(["parts"], 0)] * 2
    assert both(read(None, asked=1)) == [(None, 143)] * 2
    quiet, loud = both(read(fails=1, asked=0))
    assert isinstance(loud, StopIteration) and isinstance(quiet, SystemExit) and quiet.code == 1


def test_rank_0_acts_for_all() -> None:
    def fail() -> None:
        time.sleep(0.05)
        raise VidcmError("disk full")

    ran: list[int] = []
    found = both(lambda engine: collectives.on_rank_zero(engine, lambda: ran.append(1) or 7))
    assert found == [7, 7]
    assert ran == [1]
    chief, other = both(lambda engine: collectives.on_rank_zero(engine, fail))
    assert isinstance(chief, VidcmError) and isinstance(other, SystemExit)
