"""A signal at any time: while ranks meet, while one waits for rank 0, while a rank is leaving."""

import importlib
import signal
import threading
import time
from argparse import Namespace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from train import ranks
from train.test_loop import both

from vidcm import store
from vidcm.cli import common
from vidcm.cli import train as command
from vidcm.errors import UsageError, VidcmError
from vidcm.train import collectives, deepspeed_setup, loop, watchdog
from vidcm.train.engine import Engine, LocalEngine, TrainStep
from vidcm.train.stop_signal import CODES, StopSignal, exit_code


def test_it_is_released_and_held_again() -> None:
    heard: list[int] = []
    before = {n: signal.signal(n, lambda number, _: heard.append(number)) for n in CODES}
    try:
        with StopSignal() as stop:
            stop.release()
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.raise_signal(number)
            assert heard == [signal.SIGTERM, signal.SIGINT] and not stop.code
            signal.raise_signal(signal.SIGUSR1)
            assert len(heard) == 2 and stop.code == 143, "a warning, also where nothing can stop"
            stop.hold()
            signal.raise_signal(signal.SIGTERM)
            assert len(heard) == 2
        signal.raise_signal(signal.SIGUSR1)
        assert heard.pop() == signal.SIGUSR1, "all is as before"
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@pytest.mark.parametrize(("number", "code"), CODES.items())
def test_r01_a_rank_notes_signals_before_torch_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, code: int
) -> None:
    def load(*_: object) -> Any:
        signal.raise_signal(number)
        return SimpleNamespace()

    launch = importlib.import_module("vidcm.train.launch")
    monkeypatch.setattr(command, "load", load)
    monkeypatch.setattr(launch, "launch", lambda config, device, stop: stop.code)
    monkeypatch.setenv("RANK", "1")
    assert command.main(["--config", "any.yaml"]) == code


def test_one_process_ends_at_once_before_its_steps(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.setattr(command, "load", lambda *_: signal.raise_signal(signal.SIGTERM))
    assert command.main(["--config", "any.yaml"]) == 143
    assert capsys.readouterr().err == "error: terminated\n"


def test_a_stopped_rank_waits_for_the_others_for_a_while(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """Waiting in the rendezvous does not return to Python."""
    come, deepspeed, stop = threading.Event(), SimpleNamespace(), StopSignal()
    deepspeed.init_distributed = lambda **_: come.wait(20)
    monkeypatch.setenv("RANK", "1")
    stop.code = 143
    monkeypatch.setattr(deepspeed_setup, "GRACE", 10.0)
    threading.Timer(0.1, come.set).start()
    deepspeed_setup.meet(deepspeed, 60.0, stop)  # they came: all stop together

    def leave(code: int) -> None:
        raise SystemExit(code)

    come.clear()
    monkeypatch.setattr(deepspeed_setup, "GRACE", 0.1)
    monkeypatch.setattr(deepspeed_setup.os, "_exit", leave)
    with pytest.raises(SystemExit) as caught:
        deepspeed_setup.meet(deepspeed, 60.0, stop)
    come.set()
    assert caught.value.code == 143
    assert "rank 1 was stopped before it met the others" in capsys.readouterr().err


def test_ranks_that_do_not_meet_say_where(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(**_: object) -> None:
        raise dist.DistNetworkError("EADDRINUSE")

    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("MASTER_PORT", "29511")
    with pytest.raises(VidcmError, match="rank 0 did not meet all .*:29511 .*EADDRINUSE"):
        deepspeed_setup.meet(SimpleNamespace(init_distributed=fail), 60.0, StopSignal())


@pytest.mark.parametrize(("signalled", "code"), [(KeyboardInterrupt, 130), (BaseException, 143)])
def test_a_signal_on_rank_0_alone_ends_the_others_with_its_code(
    signalled: type[BaseException], code: int
) -> None:
    def interrupted() -> None:
        raise signalled

    chief, other = both(lambda engine: collectives.on_rank_zero(engine, interrupted))
    assert type(chief) is signalled and isinstance(other, SystemExit) and other.code == code
    assert exit_code(VidcmError) == exit_code(SystemExit) == 1 and exit_code(UsageError) == 2


@pytest.fixture
def left(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """What processes ended with; beats are short."""
    codes: list[int] = []

    def end(code: int) -> None:
        codes.append(code)
        raise SystemExit  # of the thread

    monkeypatch.setattr(watchdog.os, "_exit", end)
    monkeypatch.setattr(watchdog, "BEAT", 0.02)
    monkeypatch.setattr(watchdog, "DEAD", 0.3)
    return codes


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize(("error", "code"), [(UsageError, 2), (KeyboardInterrupt, 130)])
@pytest.mark.parametrize("speaker", [0, 1])
def test_a_rank_that_has_spoken_ends_the_others_without_a_word(
    left: list[int], capsys: pytest.CaptureFixture, speaker: int, error: type, code: int
) -> None:
    store, acts = dist.HashStore(), []
    other = watchdog.Watchdog(1 - speaker, 2, 60.0, store)
    other.last_act = lambda: acts.append(1)
    with other:
        with pytest.raises(error), watchdog.Watchdog(speaker, 2, 60.0, store):
            raise error("the disk is gone")
        other.thread.join(5)
    assert left == [code] and acts == [1], "a checkpoint in work comes to its end"
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("same", [True, False])
def test_of_ranks_that_fail_alike_one_speaks(same: bool) -> None:
    store, ended = dist.HashStore(), []
    for rank in (1, 0):
        place = "all" if same else f"rank {rank}"
        with pytest.raises(BaseException) as caught, watchdog.Watchdog(rank, 2, 60.0, store):
            raise UsageError(f"the teacher of {place} is gone")
        ended.append(caught.value)
    first, second = ended
    assert isinstance(first, UsageError), "it keeps its message"
    if same:
        assert isinstance(second, SystemExit) and second.code == first.exit_code == 2
    else:
        assert isinstance(second, UsageError), "another fault is said too"


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize("late", [True, False])
def test_a_rank_that_is_only_later_does_not_blame_rank_0(
    left: list[int], capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch, late: bool
) -> None:
    class Gone:
        def __getattr__(self, name: str) -> Any:  # rank 0 has the store
            raise RuntimeError("Connection closed by peer")

    dog: Any = watchdog.Watchdog(1, 2, 60.0, dist.HashStore())
    monkeypatch.setattr(watchdog, "BEAT", 0.2)
    with dog:
        dog.store = Gone()
        if late:
            time.sleep(0.3)  # within the wait after the failure
        else:
            dog.thread.join(5)
    said = capsys.readouterr().err
    assert (said == "" and not left) if late else ("rank 0" in said and left == [1])


def test_an_interrupted_command_is_one_line(capsys: pytest.CaptureFixture) -> None:
    def body(_: Namespace) -> int:
        with StopSignal() as stop:
            stop.ECHO = dict.fromkeys(stop.ECHO, -1.0)
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)
            raise AssertionError("the second one kills")

    assert common.run(body, Namespace()) == 130
    assert capsys.readouterr().err == "error: interrupted\n"


def export_run(folder: Path, engine: Engine) -> int:
    """A toy run as a command, or its export alone where it is over."""

    def export(weights: dict[str, Tensor], final: Path, step: int) -> None:
        store.save_model(final, {"name": "toy"}, weights)

    chosen, work = ranks.config(str(folder)), ranks.task(ranks.Points())
    return common.run(lambda _: loop.train(chosen, work, engine, export), Namespace())


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_during_the_export_leaves_nothing_half_written(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
    number: int,
    code: int,
) -> None:
    run, write = tmp_path / "run", store.save_tensors

    def half(tensors: dict[str, Tensor], path: Path) -> None:
        path.write_bytes(b"half")
        signal.raise_signal(number)
        raise AssertionError("it ends at once")

    def stopped() -> None:
        with monkeypatch.context() as patch:
            patch.setattr(store, "save_tensors", half)
            assert export_run(run, ranks.local(ranks.config())) == code
        assert "stopped before the model folder was written" in capsys.readouterr().err
        assert not [p.name for p in run.iterdir() if p.name.startswith(".vidcm")]

    stopped()
    assert store.save_tensors is write and not (run / "final").exists()
    assert export_run(run, ranks.local(ranks.config())) == 0
    weights = store.read_weights(run / "final")
    stopped()
    again = store.read_weights(run / "final")
    assert weights and all(torch.equal(again[k], v) for k, v in weights.items()), "the one before"


class Second(LocalEngine):
    """Rank 1 of two, which gets signals while rank 0 exports."""

    rank, world, gathered = 1, 2, 0

    def weights(self, *, ema: bool) -> dict[str, Tensor]:
        self.gathered += 1
        return {}

    def all_reduce_max(self, value: int) -> int:
        if self.gathered == 2:  # of the preview, of the export
            signal.raise_signal(signal.SIGTERM)
        return value


def test_a_signal_on_another_rank_during_the_export_does_not_disturb_it(tmp_path: Path) -> None:
    """All steps are done; the rank waits for rank 0, which writes, and writes nothing itself."""
    step = TrainStep(ranks.task(ranks.Points()).model, ranks.Plain(ranks.regression), ranks.CPU)
    engine = Second(step, ranks.config())
    assert export_run(tmp_path / "run", engine) == 0
    assert engine.gathered == 2 and not list(tmp_path.iterdir())


def test_a_signal_that_comes_while_ranks_agree_is_heard_at_the_next_step() -> None:
    class Reducing:
        def all_reduce_max(self, value: int) -> int:
            if value == 0 and not heard:
                heard.append(signal.SIGUSR1)
                signal.raise_signal(signal.SIGUSR1)
            return value

    heard: list[int] = []
    engine: Any = Reducing()
    parts: list[Any] = []
    with StopSignal() as stop:
        assert collectives.next_parts(iter([parts, parts]), stop, engine) is parts
        assert collectives.next_parts(iter([parts, parts]), stop, engine) is None
        assert stop.code == 143
