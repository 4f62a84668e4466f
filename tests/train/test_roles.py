"""Networks that take turns: each step moves one, a resumed run goes on with the right one, and ranks
do what one process does."""

import copy
import importlib.util
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from train import ranks
from train.launches import Launch
from train.test_deepspeed import assert_close, outcome

from vidcm.data.batch import Batch
from vidcm.errors import UsageError, VidcmError
from vidcm.objectives.base import STUDENT, Loss
from vidcm.rng import SampleRng
from vidcm.train import checkpoint, loop
from vidcm.train.engine import LocalEngine
from vidcm.train.roles import Ensemble, assemble

KEYS = [(s, a) for s in ranks.STAGES[:3] for a in ranks.ACCUMULATIONS]
TURNS = ["fake", "critic", STUDENT] * 2


def start() -> tuple[Ensemble, Any]:
    chosen = ranks.config()
    engine = ranks.together(chosen, LocalEngine)
    assert isinstance(engine, Ensemble)
    return engine, chosen


def snapshot(engine: Ensemble) -> dict[str, dict]:
    state = copy.deepcopy(engine.state())
    roles = state.pop("roles")
    return {STUDENT: state, **roles}


def assert_equal(found: Any, expected: Any) -> None:
    assert_close(found, expected, rtol=0)


def test_a_step_moves_its_own_network_alone() -> None:
    engine, chosen = start()
    for step, role in enumerate(TURNS):
        before = snapshot(engine)
        ((*_, applied),) = ranks.run(engine, chosen, step, step + 1)
        after = snapshot(engine)
        moved = [name for name in before if not same(before[name]["model"], after[name]["model"])]
        assert applied == (step != 2) and moved == [role] * applied
        assert [n for n in before if not same(before[n]["average"], after[n]["average"])] == (
            [STUDENT] if role == STUDENT and applied else []
        )
    assert after["fake"]["average"] == {} == after["critic"]["average"], "only students have one"


def same(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_lr_scale_and_betas_are_the_role_s() -> None:
    engine, chosen = start()
    ranks.run(engine, chosen, 0, 6)
    groups = {n: s["optimizer"]["param_groups"][0] for n, s in snapshot(engine).items()}
    rates = {n: group["lr"] for n, group in groups.items()}
    at = [ranks.learning_rate(chosen.optimizer, step, chosen.steps) for step in range(6)]
    assert rates == pytest.approx({"fake": 0.5 * at[3], "critic": at[4], STUDENT: at[5]})
    assert tuple(groups["critic"]["betas"]) == (0.0, 0.9)
    assert tuple(groups["fake"]["betas"]) == chosen.optimizer.betas


def test_one_role_has_its_engine_bare_and_only_the_student_s_weights_go_out() -> None:
    work, chosen = ranks.task(ranks.Points()), ranks.config()
    bare = assemble(work.model, work.objective, chosen, ranks.CPU, LocalEngine)
    assert isinstance(bare, LocalEngine) and "roles" not in bare.state()
    engine, _ = start()
    assert engine.weights(ema=True).keys() == ranks.Tiny().state_dict().keys()


def test_zero_3_is_refused() -> None:
    """Cases: K13."""
    with pytest.raises(UsageError, match="trains fake, critic too; use zero=2"):
        ranks.together(ranks.config(zero=3), LocalEngine)


# --- in the loop ----------------------------------------------------------------------------------


def train(folder: Path, stop: int | None = None, **changes: Any) -> int:
    from train.test_loop import Interrupting

    chosen = ranks.config(str(folder), **{**ranks.SHORT, **changes})
    data = Interrupting(stop * ranks.BATCH) if stop else ranks.Points({ranks.BAD})
    work = ranks.task(data, trio=True)
    engine = assemble(work.model, work.objective, chosen, ranks.CPU, LocalEngine)
    return loop.train(chosen, work, engine, lambda *_: None)


def test_a_run_stops_and_resumes_at_the_right_turn(tmp_path: Path) -> None:
    assert train(tmp_path / "a") == 0
    assert train(tmp_path / "b", stop=10) == 143
    assert train(tmp_path / "b") == 0
    states, logs = [], []
    for folder in (tmp_path / "a", tmp_path / "b"):
        states.append(checkpoint.read(checkpoint.folder_of(folder, 20))[0])
        lines = (folder / "metrics.jsonl").read_text("utf-8").splitlines()
        logs.append([json.loads(x) for x in lines])
        for line in logs[-1]:
            line.pop("samples_per_second", None)
    assert_equal(states[1], states[0])
    assert logs[0] == logs[1]
    named = [x for x in logs[0] if "skipped" in x]
    for line, role in zip(named, TURNS * 4, strict=False):
        prefix = "" if role == STUDENT else f"{role}/"
        assert {f"{prefix}loss", f"{prefix}absolute"} <= line.keys() or line["step"] == 3


def test_one_network_s_bad_steps_in_a_row_stop_the_run(tmp_path: Path) -> None:
    chosen = ranks.config(str(tmp_path), **{**ranks.SHORT, "max_skipped": 3})
    work = ranks.task(ranks.Points(), trio=True)
    roles = work.objective.roles  # type: ignore[attr-defined]

    def lost(model: Any, batch: Batch, progress: float, rng: SampleRng) -> Loss:
        assert batch.latents is not None
        return Loss(roles["critic"].module(model(batch.latents.flatten(1))).sum() * torch.nan)

    roles["critic"] = replace(roles["critic"], loss=lost)
    engine = assemble(work.model, work.objective, chosen, ranks.CPU, LocalEngine)
    with pytest.raises(VidcmError, match="3 steps in a row were not finite, up to step 7"):
        loop.train(chosen, work, engine, lambda *_: None)


# --- on ranks -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def parity(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[dict]]:
    """What each of two ranks found, see `ranks.roles`."""
    if importlib.util.find_spec("deepspeed") is None:
        pytest.skip("needs deepspeed: pip install -e .[train]")
    folder = tmp_path_factory.mktemp("roles") / "out"
    folder.mkdir()
    launch = Launch("roles", folder)
    try:
        yield launch.found(folder)
    finally:
        launch.kill()


@pytest.fixture(scope="module")
def alone() -> dict:
    """The same six steps in one process."""
    engine, chosen = start()
    return {"reports": ranks.run(engine, chosen), **ranks.ends(engine)}


@pytest.mark.parametrize("key", KEYS)
def test_ranks_equal_one_process(parity: list[dict], alone: dict, key: tuple) -> None:
    whole = parity[0][key]["whole"]
    assert_close(outcome(whole["reports"]), outcome(alone["reports"]), rtol=1e-5)
    for part in ("weights", "average"):
        assert_close(whole[part], alone[part], rtol=1e-5)
    for name in ("fake", "critic"):
        found, expected = (x["state"]["roles"][name] for x in (whole, alone))
        assert_close(found["model"], expected["model"], rtol=1e-5)
        assert_close(found["optimizer"]["state"], expected["optimizer"]["state"], rtol=1e-5)


@pytest.mark.parametrize("key", KEYS)
def test_ranks_resume_to_the_bit(parity: list[dict], key: tuple) -> None:
    whole, resumed = parity[0][key]["whole"], parity[0][key]["resumed"]
    assert resumed["reports"] == whole["reports"][ranks.UNEVEN :]
    for part in ("weights", "average", "state"):
        assert_equal(resumed[part], whole[part])


@pytest.mark.parametrize("key", KEYS)
def test_ranks_agree(parity: list[dict], key: tuple) -> None:
    first, second = (rank[key]["whole"] for rank in parity)
    assert outcome(first["reports"]) == outcome(second["reports"])
    assert_equal(second["module"], first["module"])
    assert second["weights"] == second["average"] == second["state"] == {}, (
        "only rank 0 holds what is saved"
    )
