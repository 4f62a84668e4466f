"""The target network moves as it should, on ranks as in one process, and resumes to the bit."""

import copy
import importlib.util
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from train import ranks
from train.launches import Launch
from train.test_deepspeed import assert_close, outcome

from vidcm.errors import UsageError
from vidcm.objectives.base import STUDENT
from vidcm.objectives.target_network import EmaTarget
from vidcm.train import checkpoint, loop
from vidcm.train.engine import LocalEngine
from vidcm.train.roles import assemble

KINDS = ("average", "frozen")
every_kind = pytest.mark.parametrize("kind", KINDS)


def start(kind: str, **changes: Any) -> tuple[LocalEngine, Any]:
    chosen = ranks.config(**changes)
    engine = ranks.targeting(kind, chosen, LocalEngine)
    assert isinstance(engine, LocalEngine)
    return engine, chosen


def student(engine: LocalEngine) -> dict[str, torch.Tensor]:
    return copy.deepcopy(engine.state()["model"])


def copied(engine: LocalEngine) -> dict[str, torch.Tensor]:
    return copy.deepcopy(engine.state()["target"]["network"])


@pytest.mark.parametrize("accumulation", ranks.ACCUMULATIONS)
def test_an_average_lags_by_its_decay(accumulation: int) -> None:
    """Once a step, however many parts a batch has; what is not trained stays."""
    engine, chosen = start("average", gradient_accumulation_steps=accumulation)
    expected = student(engine)
    assert_close(copied(engine), expected, rtol=0)
    for step in range(ranks.STEPS):
        before = student(engine)
        ranks.run(engine, chosen, step, step + 1)
        expected = {k: 0.7 * v + 0.3 * before[k] for k, v in expected.items()}
        assert_close(copied(engine), expected, rtol=1e-6)
        assert step == 0 or not copied(engine)["last.weight"].allclose(before["last.weight"])


def test_a_frozen_target_is_the_student_as_the_part_began() -> None:
    """Of six steps in three parts, the copy moves before the third and the fifth."""
    engine, chosen = start("frozen")
    began = student(engine)
    for step in range(ranks.STEPS):
        if step in (2, 4):
            began = student(engine)
        ranks.run(engine, chosen, step, step + 1)
        assert_close(copied(engine), began, rtol=0)
        assert engine.state()["target"]["part"] == step // 2


@every_kind
def test_buffers_go_along_with_the_weights(kind: str) -> None:
    target, network = ranks.with_target(kind).target, ranks.Tiny()
    target.start(network)
    network.table += 1
    target.before_step(network, 1.0)
    assert target.network.table.equal(network.table)


@every_kind
def test_a_copy_is_neither_trained_nor_exported(kind: str) -> None:
    engine, chosen = start(kind)
    ranks.run(engine, chosen)
    assert engine.weights(ema=True).keys() == ranks.Tiny().state_dict().keys()
    target = engine.module.objective.target
    assert target is not None
    assert all(p.grad is None and not p.requires_grad for p in target.network.parameters())
    trained = sum(p.requires_grad for p in ranks.Tiny().parameters())
    assert len(engine.state()["optimizer"]["state"]) == trained


def test_it_moves_at_the_student_s_turns_alone() -> None:
    work = ranks.task(ranks.Points(), trio=True)
    work.objective.target = EmaTarget(0.7)
    chosen = ranks.config(steps=9)
    engine = assemble(work.model, work.objective, chosen, ranks.CPU, LocalEngine)
    for step, role in enumerate(["fake", "critic", STUDENT] * 3):
        before = copy.deepcopy(engine.state()["target"])
        ranks.run(engine, chosen, step, step + 1)
        after = engine.state()["target"]
        moved = any(not torch.equal(v, after["network"][k]) for k, v in before["network"].items())
        # The student's first step is skipped, so that its second finds it where it began.
        assert moved == (step == 8) and (role == STUDENT or not moved)


@every_kind
def test_zero_3_is_refused(kind: str) -> None:
    with pytest.raises(UsageError, match="needs a full copy of it; use zero=2"):
        ranks.targeting(kind, ranks.config(zero=3), LocalEngine)


# --- in the loop ----------------------------------------------------------------------------------


def train(folder: Path, kind: str, stop: int | None = None) -> int:
    from train.test_loop import Interrupting

    chosen = ranks.config(str(folder), **ranks.SHORT)
    data = Interrupting(stop * ranks.BATCH) if stop else ranks.Points({ranks.BAD})
    work = replace(ranks.task(data), objective=ranks.with_target(kind))
    engine = assemble(work.model, work.objective, chosen, ranks.CPU, LocalEngine)
    return loop.train(chosen, work, engine, lambda *_: None)


@every_kind
def test_a_run_resumes_to_the_bit(tmp_path: Path, kind: str) -> None:
    """Stopped in the second third, whose copy a fresh start would not have."""
    assert train(tmp_path / "a", kind) == 0
    assert train(tmp_path / "b", kind, stop=10) == 143
    assert train(tmp_path / "b", kind) == 0
    states = [checkpoint.read(checkpoint.folder_of(tmp_path / run, 20))[0] for run in ("a", "b")]
    assert_close(states[1], states[0], rtol=0)


# --- on ranks -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def parity(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[dict]]:
    """What each of two ranks found, see `ranks.target`."""
    if importlib.util.find_spec("deepspeed") is None:
        pytest.skip("needs deepspeed: pip install -e .[train]")
    folder = tmp_path_factory.mktemp("target") / "out"
    folder.mkdir()
    launch = Launch("target", folder)
    try:
        yield launch.found(folder)
    finally:
        launch.kill()


@pytest.mark.parametrize("stage", ranks.STAGES[:3])
@every_kind
def test_ranks_equal_one_process(parity: list[dict], kind: str, stage: int) -> None:
    engine, chosen = start(kind)
    reports, (whole, _) = ranks.run(engine, chosen), parity[0][kind, stage, "fp32"]
    assert_close(outcome(whole["reports"]), outcome(reports), rtol=1e-5)
    assert_close(whole["state"]["target"], engine.state()["target"], rtol=1e-5)
    assert_close(whole["weights"], engine.weights(ema=False), rtol=1e-5)


@pytest.mark.parametrize(
    "stage, precision", [*((s, "fp32") for s in ranks.STAGES[:3]), (2, "bf16")]
)
@every_kind
def test_ranks_agree_and_resume_to_the_bit(
    parity: list[dict], kind: str, stage: int, precision: str
) -> None:
    (whole, resumed), (second, _) = (found[kind, stage, precision] for found in parity)
    assert_close(resumed["state"], whole["state"], rtol=0)
    assert second["state"] == {}, "only rank 0 holds what is saved"
    assert_close(second["target"], whole["target"], rtol=0)
    assert all(v.dtype == torch.float32 for v in whole["target"].values())
