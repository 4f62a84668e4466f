"""What sequence parallelism refuses, each before a step."""

from types import SimpleNamespace
from typing import Any

import pytest
import tiny
import torch

from vidcm.config import TrainConfig
from vidcm.errors import UsageError
from vidcm.models.sequence_parallel import SequenceGroup
from vidcm.registry import build
from vidcm.train.launch import launch
from vidcm.train.sequence import check_sequence, parallelize


def config(**changes: Any) -> TrainConfig:
    plain = dict(
        model=tiny.denoiser(),
        objective={"name": "flow_matching"},
        data={"name": "latents"},
        output="none",
        steps=2,
    )
    return TrainConfig(**{"sequence_parallel": 2} | plain | changes)


def group(size: int) -> Any:
    """A group of ranks that are not there; enough for checks."""
    found = SequenceGroup.__new__(SequenceGroup)
    found.size, found.rank, found.enabled = size, 0, True
    return found


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"compile": True}, "compile=false, or sequence_parallel=1"),
        ({"model": tiny.CODEC}, "splits the tokens of denoisers"),
        ({"sequence_parallel": 0}, "must be at least 1"),
    ],
)
def test_refused_when_the_config_loads(changes: dict, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        config(**changes)


def test_ranks_must_be_there_and_divide(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="does not divide the 1 rank;"):
        launch(config(), "cpu")
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(UsageError, match="does not divide the 3 ranks;"):
        launch(config(), "cpu")


def test_further_networks_are_refused() -> None:
    objective = SimpleNamespace(role_names=("fake",))
    with pytest.raises(UsageError, match="trains fake beside the student"):
        check_sequence(config(), objective)  # type: ignore[arg-type]
    check_sequence(config(sequence_parallel=1), objective)  # type: ignore[arg-type]


def test_heads_and_tokens_must_divide() -> None:
    model = build("model", tiny.denoiser())
    with pytest.raises(UsageError, match="does not divide the 2 heads"):
        parallelize(model, group(3))
    with pytest.raises(UsageError, match="9 tokens do not divide into sequence_parallel=2"):
        group(2).part(torch.zeros(1, 9, 4), 1)


def test_a_network_computes_alone_where_others_do_not_take_part() -> None:
    """As in previews; and again together afterwards, also after a failure."""
    model, plain = (build("model", tiny.denoiser()) for _ in range(2))
    model.load_state_dict(plain.state_dict())
    ranks = group(2)
    parallelize(model, ranks)
    x, t = torch.randn(1, 5, 3, 2, 4), torch.tensor([0.5])
    with ranks.alone(), torch.no_grad():
        found = model.velocity(x, t, model.encode(["an orc"]))
    assert torch.equal(found, plain.velocity(x, t, plain.encode(["an orc"])))
    with pytest.raises(ValueError), ranks.alone():
        raise ValueError
    assert ranks.enabled
