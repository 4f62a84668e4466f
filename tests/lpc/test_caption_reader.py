"""A text tower's first lesson, and its way into a denoiser."""

import pytest
import torch
from tiny import CODEC, TEXT, denoiser

from vidcm.config import TrainConfig
from vidcm.data.batch import Batch
from vidcm.errors import UsageError
from vidcm.lpc.attribute_naming import CaptionNaming
from vidcm.lpc.dataset import LPCCaptions
from vidcm.registry import build
from vidcm.rng import SampleRng
from vidcm.store import save_model
from vidcm.train.tasks import make_task

READER = {"name": "caption_reader", "conditioner": TEXT, "classes": {"color": 3, "side": 2}}
COLORS, SIDES = ("red", "green", "blue"), ("left", "right")


def lesson() -> Batch:
    pairs = [(c, s) for c in range(3) for s in range(2)]
    captions = [f"a {COLORS[c]} ball rolls {SIDES[s]}" for c, s in pairs]
    return Batch(captions, labels=torch.tensor(pairs))


def test_it_learns_to_name_and_says_so():
    torch.manual_seed(0)
    reader, objective, batch = build("model", READER), CaptionNaming(), lesson()
    optimizer = torch.optim.Adam(reader.parameters(), 3e-3)
    for _ in range(60):
        loss = objective(reader, batch, 0.0, SampleRng(0, range(6)))
        optimizer.zero_grad()
        loss.total.backward()
        optimizer.step()
    assert loss.total < 0.1 and loss.logs["accuracy"] == 1
    # other words around the ones that count, and another batch: padding is not read
    answer = reader(["now the blue ball goes right", "red left"])
    assert answer["color"].argmax(1).tolist() == [2, 0] and answer["side"].argmax(1).tolist() == [
        1,
        0,
    ]


def test_a_denoiser_starts_with_the_tower(tmp_path):
    reader = build("model", READER)
    save_model(tmp_path / "text", READER, reader.state_dict())
    config = TrainConfig(
        model=denoiser(), objective={"name": "flow_matching"}, data={"name": "lpc", "art": "x"},
        output="x", steps=1, init_text=str(tmp_path / "text"),
    )  # fmt: skip
    seen = {}

    def spy(config, model, data, device):
        seen.update(model.conditioner.state_dict())

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("vidcm.train.denoiser_task.denoiser_task", spy)
        patch.setattr("vidcm.lpc.dataset.Sheets", lambda art: None)
        make_task(config, torch.device("cpu"))
    for name, value in reader.conditioner.state_dict().items():
        torch.testing.assert_close(seen[name], value)


def test_refusals(tmp_path):
    with pytest.raises(UsageError, match="lpc_captions"):
        CaptionNaming()(build("model", READER), Batch(["a"]), 0.0, SampleRng(0, [0]))
    config = TrainConfig(
        model=CODEC, objective={"name": "autoencoding"}, data={"name": "lpc", "art": str(tmp_path)},
        output="x", steps=1, init_text="anywhere",
    )  # fmt: skip
    with pytest.raises(UsageError, match="init_text is for denoisers"):
        make_task(config, torch.device("cpu"))


def test_captions_alone_need_no_sheet(tmp_path):
    data = LPCCaptions(tmp_path)  # an empty folder
    batch = data.batch(3, range(5))
    assert batch.frames is None and batch.labels is not None and batch.labels.shape == (5, 10)
    assert data.batch(3, [4]).captions == batch.captions[4:]
