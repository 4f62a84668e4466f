"""A rank that is told to stop, fails, dies or stalls: the others follow, and one line says who."""

import importlib.util
import json
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from train.launches import Launch, wait_for

from vidcm.train import checkpoint, watchdog

launched = pytest.mark.skipif(
    importlib.util.find_spec("deepspeed") is None, reason="needs deepspeed: pip install -e .[train]"
)


def steps(folder: Path) -> list[int]:
    path = folder / "metrics.jsonl"
    return [json.loads(x)["step"] for x in path.read_text().splitlines()] if path.exists() else []


@contextmanager
def running(folder: Path) -> Iterator[Launch]:
    """The launch of a run that has logged some steps."""
    launch = Launch("train", folder)
    try:
        wait_for(lambda: launch.done() or max(steps(folder), default=0) > 4, 300)
        assert not launch.done(), launch.output
        yield launch
        assert wait_for(launch.done, 120), launch.output
    finally:
        launch.kill()


def errors(launch: Launch) -> list[str]:
    assert "Traceback" not in launch.output
    return [x for x in launch.output.splitlines() if x.startswith("error:")]


@launched
@pytest.mark.parametrize(
    "number", [signal.SIGUSR1, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)]
)
def test_r01_a_signal_on_one_rank_stops_all_at_one_step(tmp_path: Path, number: int) -> None:
    folder = tmp_path / "run"
    with running(folder) as launch:
        os.kill(launch.rank(1), number)
    assert launch.process.returncode == 143 and not errors(launch)
    newest = checkpoint.newest(folder)
    assert newest and newest.name == f"step-{steps(folder)[-1]:08d}"
    assert f"stopped after step {steps(folder)[-1]}, which is saved" in launch.output


@launched
@pytest.mark.slow
def test_ctrl_c_in_a_terminal_saves_and_the_ranks_say_so_in_one_line(tmp_path: Path) -> None:
    """The terminal sends it to the launcher too, which has a traceback and a SIGTERM of its own."""
    folder = tmp_path / "run"
    with running(folder) as launch:
        os.killpg(launch.process.pid, signal.SIGINT)
    newest, said = checkpoint.newest(folder), launch.output
    assert newest and newest.name == f"step-{steps(folder)[-1]:08d}"
    assert said.count(f"stopped after step {steps(folder)[-1]}, which is saved") == 1
    assert "error:" not in said and 'ranks.py", line' not in said
    assert said.count("Traceback") <= 1, "the launcher's"


@launched
def test_a_rank_that_fails_alone_speaks_alone(tmp_path: Path) -> None:
    launch = Launch("failing", tmp_path / "run")
    try:
        assert wait_for(launch.done, 300), launch.output
    finally:
        launch.kill()
    assert launch.process.returncode == 1
    assert errors(launch) == ["error: the disk of this rank is gone"]


@launched
@pytest.mark.parametrize(
    ("number", "seconds"),
    [(signal.SIGKILL, 8), pytest.param(signal.SIGSTOP, 10, marks=pytest.mark.slow)],
)
def test_a_rank_that_dies_or_stalls_is_named(tmp_path: Path, number: int, seconds: int) -> None:
    with running(tmp_path / "run") as launch:
        pid = launch.rank(1)
        os.kill(pid, number)
    (error,) = errors(launch)
    assert error.startswith(f"error: rank 1 (process {pid} on ")
    assert f"gave no sign of life for {seconds} s; its host says why" in error
    assert launch.process.returncode


def report(beats: int, calls: int, place: str, pid: int) -> str:
    return json.dumps([beats, calls, place, "host", pid])


def test_who_is_late_is_named_and_who_only_waits_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rank 2 lives but makes no call; the others wait for it in the next one."""
    clock = SimpleNamespace(monotonic=lambda: now)
    monkeypatch.setattr(watchdog, "time", clock)
    now, store = 100.0, dict[str, bytes]()
    fake: Any = SimpleNamespace(check=lambda keys: keys[0] in store, get=store.__getitem__)
    dog = watchdog.Watchdog(0, 3, 60.0, fake)
    for beat in range(40):
        now = 100.0 + 2 * beat
        calls = [min(beat, 6), min(beat, 6), min(beat, 5)]
        for rank, called in enumerate(calls):
            store[str(rank)] = report(beat, called, f"step {called}", 40 + rank).encode()
        found = dog._compare()
        if now - 100.0 <= 2 * 5 + 60:
            assert found == ""
    assert found.startswith("rank 2 (process 42 on host, step 5) kept the others waiting for 60 s")


def test_a_call_that_takes_all_ranks_long_makes_nobody_late(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As loading a large model; rank 1 reports the end of it a beat after rank 0."""
    clock = SimpleNamespace(monotonic=lambda: now)
    monkeypatch.setattr(watchdog, "time", clock)
    now, store = 100.0, dict[str, bytes]()
    fake: Any = SimpleNamespace(check=lambda keys: keys[0] in store, get=store.__getitem__)
    dog = watchdog.Watchdog(0, 2, 60.0, fake)
    for beat in range(200):
        now = 100.0 + 2 * beat
        ahead = max(1, beat - 99)  # the call ends after 200 s
        for rank, called in enumerate((ahead, max(1, ahead - 1))):
            store[str(rank)] = report(beat, called, f"step {called}", 40 + rank).encode()
        assert dog._compare() == ""
