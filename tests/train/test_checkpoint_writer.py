"""A checkpoint that is written while training goes on is the one that it would have been."""

import errno
import os
import threading
from argparse import Namespace
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from train import ranks
from train.test_deepspeed import assert_close
from train.test_loop import Interrupting, train

from vidcm.cli import common
from vidcm.data.batch import Batch
from vidcm.errors import VidcmError
from vidcm.train import checkpoint, checkpoint_writer, loop
from vidcm.train.checkpoint_writer import CheckpointWriter, state_size
from vidcm.train.engine import Engine, LocalEngine, copied
from vidcm.train.roles import Start


class Gate:
    """Lets writing begin when it is opened, and knows that it was reached."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, error: OSError | None = None):
        self.reached, self.opened = threading.Event(), threading.Event()
        write, self.error, self.written = checkpoint._write_state, error, 0

        def wait(*args) -> str:
            self.reached.set()
            assert self.opened.wait(20)
            if self.error:
                raise self.error
            self.written += 1
            return write(*args)

        monkeypatch.setattr(checkpoint, "_write_state", wait)


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Gate:
    return Gate(monkeypatch)


def writer(run: Path, size: int | None = 0) -> CheckpointWriter:
    return CheckpointWriter(run, {}, keep=2, size=size)


def engine(kind: str) -> Engine:
    start: Start = LocalEngine
    made = {
        "one network": lambda: ranks.local(ranks.config()),
        "roles": lambda: ranks.together(ranks.config(), start),
        "average as target": lambda: ranks.targeting("average", ranks.config(), start),
        "frozen target": lambda: ranks.targeting("frozen", ranks.config(), start),
    }
    return made[kind]()


@pytest.mark.parametrize("kind", ["one network", "roles", "average as target", "frozen target"])
def test_r08_it_holds_the_run_as_it_was_and_resumes_to_the_bit(
    tmp_path: Path, gate: Gate, kind: str
) -> None:
    whole, half = engine(kind), ranks.UNEVEN
    ranks.run(whole, ranks.config(), 0, half)
    with writer(tmp_path) as writing:
        writing.save(half, whole.state(), copied=True)
        assert gate.reached.wait(20)
        reports = ranks.run(whole, ranks.config(), half)  # it does not stand still
        assert checkpoint.newest(tmp_path) is None
        gate.opened.set()
    resumed = engine(kind)
    resumed.load(checkpoint.read(checkpoint.folder_of(tmp_path, half))[0])
    assert ranks.run(resumed, ranks.config(), half) == reports
    assert_close(ranks.ends(resumed), ranks.ends(whole), rtol=0)


def test_a_run_is_the_same_however_it_saves(tmp_path: Path) -> None:
    states = []
    for background in (True, False):
        run = tmp_path / str(background)
        assert train(run, Interrupting(17 * ranks.BATCH), async_checkpoints=background) == 143
        assert train(run, async_checkpoints=background) == 0, "the key may change"
        states.append(checkpoint.read(checkpoint.folder_of(run, 20))[0])
        kept = sorted(p.name for p in (run / "checkpoints").iterdir())
        assert kept == ["step-00000017", "step-00000020"]
    assert_close(states[0], states[1], rtol=0)


def test_a_save_waits_for_the_one_before(tmp_path: Path, gate: Gate) -> None:
    with writer(tmp_path) as writing:
        writing.save(1, {"a": torch.ones(1)}, copied=True)
        assert gate.reached.wait(20)
        next_one = threading.Thread(target=writing.save, args=(2, {}), kwargs={"copied": True})
        next_one.start()
        next_one.join(0.1)
        assert next_one.is_alive() and gate.written == 0, "one at a time"
        gate.opened.set()
        next_one.join(20)
    assert checkpoint.newest(tmp_path) == checkpoint.folder_of(tmp_path, 2)


def outcome(act: Callable[[], int], capsys: pytest.CaptureFixture) -> tuple[int, list[str]]:
    """Exit code and lines of a command, but for the progress bar."""
    code = common.run(lambda _: act(), Namespace())
    said = capsys.readouterr().err.replace("\r", "\n").splitlines()
    return code, [x for x in said if x.startswith(("error", "warning", "Traceback"))]


FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("steps", [20, 4], ids=["on the way", "at the end"])
def test_p07_a_full_disk_ends_the_run_with_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, steps: int
) -> None:
    gate = Gate(monkeypatch, FULL)
    gate.opened.set()
    code, said = outcome(lambda: train(tmp_path / "run", steps=steps), capsys)
    assert code == 1 and len(said) == 1
    assert said[0].startswith("error: cannot write ") and "step-00000004: No space left" in said[0]
    assert not (tmp_path / "run" / "checkpoints").exists(), "nothing half-written"
    assert not (tmp_path / "run" / "final.pt").exists()
    gate.error = None
    assert train(tmp_path / "run", steps=steps) == 0


class Unreadable(ranks.Points):
    """Data that cannot be read at one position, where writing begins to move again."""

    def __init__(self, at: int, gate: Gate):
        super().__init__({ranks.BAD}, unreadable=at)
        self.gate = gate

    def batch(self, seed: int, positions: Iterable[int]) -> Batch:
        places = list(positions)
        if self.unreadable in places:
            assert self.gate.reached.wait(20)
            threading.Timer(0.1, self.gate.opened.set).start()
        return super().batch(seed, places)


@pytest.mark.parametrize("full", [False, True])
def test_a_run_that_fails_waits_for_its_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, full: bool
) -> None:
    gate = Gate(monkeypatch, FULL if full else None)
    data = Unreadable(6 * ranks.BATCH, gate)
    code, said = outcome(lambda: train(tmp_path / "run", data), capsys)
    assert code == 1 and said.pop() == "error: the disk of this rank is gone"
    newest = checkpoint.newest(tmp_path / "run")
    if full:
        assert newest is None and "step-00000004: No space left" in said.pop()
    else:
        assert newest and newest.name == "step-00000004"
    assert not said


def test_a_signal_waits_for_the_checkpoint_in_work(tmp_path: Path, gate: Gate) -> None:
    data = Interrupting(5 * ranks.BATCH)
    threading.Timer(0.3, gate.opened.set).start()
    assert train(tmp_path / "run", data) == 143
    found = sorted(p.name for p in (tmp_path / "run" / "checkpoints").iterdir())
    assert found == ["step-00000004", "step-00000005"]


def test_an_interrupt_gives_it_up_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cases: R02."""
    monkeypatch.setattr(checkpoint.HashedFile, "SLICE", 4000)
    write, some = checkpoint.HashedFile._write, threading.Event()

    def slow(file: checkpoint.HashedFile, part: memoryview) -> None:
        write(file, part)
        some.set()
        file.error or threading.Event().wait(0.01)

    checkpoint.save(tmp_path, 1, {}, {}, keep=2)
    monkeypatch.setattr(checkpoint.HashedFile, "_write", slow)
    with pytest.raises(KeyboardInterrupt), writer(tmp_path) as writing:
        writing.save(2, {"a": torch.zeros(10**6)}, copied=True)  # 10 s of it
        assert some.wait(20)
        raise KeyboardInterrupt
    assert writing.thread and not writing.thread.is_alive()
    left = [p.name for p in (tmp_path / "checkpoints").iterdir()]
    assert left == ["step-00000001"], "the one before is whole, and nothing half-written is left"


def test_without_memory_for_a_copy_training_waits_and_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(checkpoint_writer, "available_memory", lambda: 2**30)
    monkeypatch.setattr(loop, "state_size", lambda *_: 3 * 2**30)
    monkeypatch.setattr(CheckpointWriter, "_try", None)  # what its thread would do
    assert train(tmp_path / "run") == 0
    said = capsys.readouterr().err.replace("\r", "\n").splitlines()
    said = [x for x in said if x.startswith("warning")]
    assert said == [
        "warning: a copy of the checkpoint needs 3 GiB of memory, and 1 are free: training waits "
        "while it is written, as with async_checkpoints=false"
    ]
    assert checkpoint.newest(tmp_path / "run") == checkpoint.folder_of(tmp_path / "run", 20)


def test_a_copy_is_one_and_keeps_what_is_shared() -> None:
    shared, other = torch.arange(6.0), torch.zeros(3)
    state = {"a": shared, "b": [shared, other], "c": (2, "x")}
    copy = copied(state)
    shared += 1
    assert copy["a"].tolist() == [0, 1, 2, 3, 4, 5] and copy["a"] is copy["b"][0]
    assert torch.equal(copy["b"][1], other) and copy["c"] == (2, "x")


def tensors(tree: object) -> Iterable[Tensor]:
    if isinstance(tree, dict):
        for value in tree.values():
            yield from tensors(value)
    elif isinstance(tree, Tensor):
        yield tree


def test_the_size_of_a_copy_is_foreseen() -> None:
    for kind in ("one network", "roles", "average as target"):
        made = engine(kind)
        ranks.run(made, ranks.config())
        size = sum(t.numel() * t.element_size() for t in tensors(made.state()))
        student: nn.Module = ranks.task(ranks.Points()).model
        objective = {
            "one network": ranks.Plain(ranks.regression),
            "roles": ranks.Trio(),
            "average as target": ranks.with_target("average"),
        }[kind]
        assert state_size(student, objective) == pytest.approx(size, abs=250), "buffers, counts"


def test_what_is_written_is_what_was_hashed(tmp_path: Path) -> None:
    folder = checkpoint.save(tmp_path, 3, {"w": torch.randn(70_000)}, {}, keep=1)
    assert checkpoint.newest(tmp_path) == folder
    with pytest.raises(VidcmError, match="step-00000004: given up"):
        checkpoint.save(tmp_path, 4, {"w": torch.zeros(9)}, {}, keep=1, given_up=lambda: True)
    assert [p.name for p in folder.parent.iterdir()] == [folder.name]
