"""The DeepSpeed engine does what the one of one process does: real launches of two CPU ranks."""

import importlib.util
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from train import ranks
from train.launches import Launch, wait_for

from vidcm.train import checkpoint, loop
from vidcm.train.log import step_of

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("deepspeed") is None, reason="needs deepspeed: pip install -e .[train]"
)
FP32 = [(s, a, "fp32") for s in ranks.STAGES for a in ranks.ACCUMULATIONS]
SHARDED = [(s, 1, "fp32") for s in ranks.STAGES]
BF16 = [(s, 2, "bf16") for s in ranks.STAGES[1:]]


@pytest.fixture(scope="module")
def parity(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[dict]]:
    """What each of two ranks found, see `ranks.parity`."""
    folder = tmp_path_factory.mktemp("parity") / "out"
    folder.mkdir()
    launch = Launch("parity", folder)
    try:
        found = launch.found(folder)
        chatter = [
            x for x in launch.output.splitlines() if "launch.py" not in x and "runner.py" not in x
        ]
        assert not chatter, "the ranks themselves say nothing"
        yield found
    finally:
        launch.kill()


@pytest.fixture(scope="module")
def alone() -> dict:
    """The same six steps in one process."""
    chosen = ranks.config()
    engine = ranks.local(chosen)
    return {"reports": ranks.run(engine, chosen), **ranks.ends(engine)}


def assert_close(found: Any, expected: Any, *, rtol: float) -> None:
    """Trees of tensors and numbers: each tensor within `rtol` of its own largest value."""
    if isinstance(expected, dict):
        assert found.keys() == expected.keys()
        for key in expected:
            assert_close(found[key], expected[key], rtol=rtol)
    elif isinstance(expected, list | tuple):
        assert len(found) == len(expected)
        for a, b in zip(found, expected, strict=True):
            assert_close(a, b, rtol=rtol)
    elif isinstance(expected, torch.Tensor | float):
        a, b = torch.as_tensor(found), torch.as_tensor(expected)
        scale = float(b.abs().max()) if b.isfinite().all() else 1.0
        torch.testing.assert_close(a, b, rtol=0, atol=rtol * scale, equal_nan=True)
    else:
        assert found == expected


def outcome(reports: list[tuple]) -> list[tuple]:
    """Reports; of a step that was skipped only that it was (its norm may be nan or inf)."""
    return [r if r[3] else (False,) for r in reports]


@pytest.mark.parametrize("key", FP32)
def test_equals_one_process(parity: list[dict], alone: dict, key: tuple) -> None:
    whole = parity[0][key]["whole"]
    assert_close(outcome(whole["reports"]), outcome(alone["reports"]), rtol=1e-6)
    for part in ("weights", "average"):
        assert_close(whole[part], alone[part], rtol=1e-6)
    for part in ("model", "average"):
        assert_close(whole["state"][part], alone["state"][part], rtol=1e-6)
    found, expected = (x["state"]["optimizer"]["state"] for x in (whole, alone))
    assert_close(found, expected, rtol=1e-6)


def test_the_case_is_a_hard_one(alone: dict) -> None:
    applied = [r[3] for r in alone["reports"]]
    assert applied == [True, True, False, True, True, True], "a sample of one rank is bad in step 2"
    clip = ranks.config().optimizer.max_grad_norm
    assert all(r[2] > clip for r in alone["reports"] if r[3]), "clipping is active"
    weights, average = alone["weights"], alone["average"]
    assert not torch.equal(weights["scale"], average["scale"])
    assert torch.equal(weights["shortcut.weight"], average["shortcut.weight"]), "frozen"


@pytest.mark.parametrize("key", SHARDED + BF16)
def test_resumes_to_the_bit(parity: list[dict], key: tuple) -> None:
    """Cases: R08."""
    whole, resumed = parity[0][key]["whole"], parity[0][key]["resumed"]
    assert resumed["reports"] == whole["reports"][ranks.HALF :]
    for part in ("weights", "average", "state"):
        assert_close(resumed[part], whole[part], rtol=0)


@pytest.mark.parametrize("key", SHARDED)
def test_resumes_at_another_stage(parity: list[dict], key: tuple) -> None:
    whole, moved = parity[0][key]["whole"], parity[0][key]["moved"]
    assert_close(moved["reports"], whole["reports"][ranks.HALF :], rtol=1e-6)
    for part in ("weights", "average"):
        assert_close(moved[part], whole[part], rtol=1e-6)


@pytest.mark.parametrize("key", SHARDED)
def test_its_checkpoint_goes_on_in_one_process(parity: list[dict], key: tuple, alone: dict) -> None:
    """Cases: P17, R09."""
    chosen = ranks.config()
    here, there = ranks.local(chosen), ranks.local(chosen)
    for engine, state in ((here, parity[0][key]["whole"]["state"]), (there, alone["state"])):
        engine.load(state)
        ranks.run(engine, chosen, ranks.HALF)
    for ema in (False, True):
        assert_close(here.weights(ema=ema), there.weights(ema=ema), rtol=1e-6)


@pytest.mark.parametrize("key", SHARDED)
def test_a_checkpoint_of_one_process_goes_on_on_ranks(
    parity: list[dict], alone: dict, key: tuple
) -> None:
    """Cases: P17, R09."""
    taken = parity[0][key]["taken"]
    assert_close(taken["reports"], alone["reports"][ranks.HALF :], rtol=1e-6)
    for part in ("weights", "average"):
        assert_close(taken[part], alone[part], rtol=1e-6)


@pytest.mark.parametrize("key", FP32 + BF16)
def test_ranks_agree(parity: list[dict], key: tuple) -> None:
    first, second = (rank[key]["whole"] for rank in parity)
    assert outcome(first["reports"]) == outcome(second["reports"])
    assert_close(second["module"], first["module"], rtol=0) if key[0] < 3 else None
    assert second["weights"] == second["average"] == second["state"] == {}, (
        "only rank 0 holds what is saved"
    )


@pytest.mark.parametrize("key", BF16)
def test_bf16_keeps_fp32_masters(parity: list[dict], alone: dict, key: tuple) -> None:
    whole = parity[0][key]["whole"]
    assert_close(outcome(whole["reports"]), outcome(alone["reports"]), rtol=0.01)
    assert_close(whole["weights"], alone["weights"], rtol=0.02)
    for part in ("weights", "average"):
        assert all(v.dtype == torch.float32 for v in whole[part].values())
        scale = whole[part]["scale"]
        assert not torch.equal(scale, scale.bfloat16().float()), "masters are finer than bf16"
    for kept in ("table", "shortcut.weight"):  # a buffer and what is frozen are not rounded
        assert torch.equal(whole["weights"][kept], alone["weights"][kept])


def test_sigterm_saves_and_one_process_takes_over(tmp_path: Path) -> None:
    output = tmp_path / "run"
    metrics = output / "metrics.jsonl"
    launch = Launch("train", output)
    try:
        started = wait_for(lambda: metrics.exists() and metrics.read_text().count("\n") > 4, 300)
        assert started, launch.output
        os.killpg(launch.process.pid, signal.SIGTERM)  # as a scheduler does: launcher and ranks
        assert wait_for(launch.done, 300), launch.output
    finally:
        launch.kill()
    assert "Traceback" not in launch.output
    newest = checkpoint.newest(output)
    assert newest is not None, launch.output
    stopped = int(newest.name.removeprefix("step-"))
    assert stopped == step_of(metrics.read_text().splitlines()[-1]) < 400
    assert [p.name for p in newest.parent.iterdir()] == [newest.name], "no half-written ones"

    finals = []
    for folder in (output, tmp_path / "straight"):
        chosen = ranks.config(str(folder), **ranks.LONG)
        work = ranks.task(ranks.Points({ranks.BAD}))
        engine = ranks.local(chosen)
        assert loop.train(chosen, work, engine, lambda weights, *_: finals.append(weights)) == 0
    assert_close(finals[0], finals[1], rtol=1e-4)
