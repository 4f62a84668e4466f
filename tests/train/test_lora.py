"""Low-rank students: what is trained, saved and exported, and what is refused."""

import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from torch import Tensor

from vidcm import registry
from vidcm.config import LoraConfig, TrainConfig
from vidcm.diffusion.denoiser import Denoiser
from vidcm.errors import UsageError
from vidcm.registry import build
from vidcm.store import load_model, read_weights
from vidcm.train import checkpoint
from vidcm.train.launch import launch
from vidcm.train.lora import adapt, merge
from vidcm.train.setup import init_from

SETTINGS = LoraConfig(rank=3, alpha=6)


@pytest.fixture(scope="module", autouse=True)
def peft() -> None:
    try:
        import peft  # noqa: F401
    except ImportError as error:
        pytest.skip(f"needs peft: pip install -e .[lora] ({error})")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return tiny.parts(tmp_path_factory.mktemp("models"))


def student(folder: Path, settings: LoraConfig = SETTINGS) -> Denoiser:
    torch.manual_seed(0)
    model = build("model", tiny.denoiser(guidance_embed=True))
    init_from(model, str(folder))
    adapt(model, settings)
    return model


def said(model: Denoiser) -> Tensor:
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(2, 5, 3, 2, 4, generator=generator)
    with torch.no_grad():
        cond = model.encode(["an orc walks", ""], torch.tensor([2.0, 3.0]))
        return model.velocity(x, torch.tensor([0.3, 0.9]), cond)


def test_it_starts_as_the_teacher_and_trains_little(models: dict[str, Path]) -> None:
    model = student(models["teacher"])
    full = build("model", tiny.denoiser(guidance_embed=True))
    init_from(full, str(models["teacher"]))
    assert torch.equal(said(model), said(full))
    trained = {n for n, p in model.named_parameters() if p.requires_grad}
    kinds = {n.split(".lora_")[0] if ".lora_" in n else n.split(".")[1] for n in trained}
    layers = ("attention.queries", "text.keys_values", "mlp.2")
    assert kinds > {f"backbone.blocks.{i}.{name}" for i in (0, 1) for name in layers}
    assert kinds > {"guidance"}, "an input that the teacher lacks is trained in full"
    assert not any(n.startswith("conditioner") or "base_layer" in n for n in trained)


def test_merged_weights_are_the_same_network_under_plain_names(models: dict[str, Path]) -> None:
    model = student(models["teacher"])
    tiny.shaken(model)
    plain = build("model", tiny.denoiser(guidance_embed=True))
    plain.load_state_dict(merge(model.state_dict(), SETTINGS))
    torch.testing.assert_close(said(plain), said(model), rtol=1e-5, atol=1e-5)


def test_targets_are_ends_of_names(models: dict[str, Path]) -> None:
    model = student(models["teacher"], LoraConfig(rank=2, targets=["text.queries", "0"]))
    names = {n.split(".lora_")[0] for n, _ in model.named_parameters() if ".lora_" in n}
    parts = ("text.queries", "mlp.0")
    assert names == {f"backbone.blocks.{i}.{part}" for i in (0, 1) for part in parts}


def test_what_it_cannot_update_is_refused(models: dict[str, Path], monkeypatch) -> None:
    folder = models["teacher"]
    with pytest.raises(UsageError, match=r"'query' is no linear layer of a block \(known: .*mlp.0"):
        student(folder, LoraConfig(targets=["queries", "query"]))
    with pytest.raises(UsageError, match="lora is for denoisers"):
        adapt(build("model", tiny.CODEC), SETTINGS)
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(UsageError, match="needs peft: pip install -e"):
        student(folder)


# --- a run ----------------------------------------------------------------------------------------


@pytest.fixture
def config(models: dict[str, Path], tmp_path: Path, monkeypatch) -> TrainConfig:
    """Four steps of a student from a teacher of its own, on clips of noise."""
    monkeypatch.setitem(registry.TABLE["data"], "clips", "tiny:Clips")
    shutil.copytree(models["teacher"], tmp_path / "teacher")
    keys: dict[str, Any] = dict(steps=4, batch_size=2, num_workers=0, save_every=2, sample_every=4)
    return TrainConfig(
        model=tiny.denoiser(guidance_embed=True),
        objective={"name": "latent_consistency", "target_decay": 0.5},
        data={"name": "clips"},
        output=str(tmp_path / "run"),
        teacher=str(tmp_path / "teacher"),
        codec=str(models["codec"]),
        lora=SETTINGS,
        **keys,
    )


def test_a_run_saves_what_is_trained_resumes_to_the_bit_and_exports_plainly(
    config: TrainConfig,
) -> None:
    assert launch(config, "cpu") == 0
    run = Path(config.output)
    exported = read_weights(run / "final")
    model = load_model(run / "final", Denoiser)
    teacher = read_weights(str(config.teacher))
    assert exported.keys() == model.state_dict().keys()
    moved = {n for n, v in teacher.items() if not torch.equal(v, exported[n])}
    assert moved and all(n.startswith("backbone.blocks.") for n in moved)

    state, _ = checkpoint.read(checkpoint.folder_of(run, 4))
    for kept in (state["model"], state["target"]["network"]):
        assert kept and all(".lora_" in n or ".guidance." in n for n in kept)
    shutil.rmtree(checkpoint.folder_of(run, 4))
    shutil.rmtree(run / "final")
    assert launch(config, "cpu") == 0
    again = read_weights(run / "final")
    assert all(torch.equal(again[n], v) for n, v in exported.items())
    resumed = checkpoint.read(checkpoint.folder_of(run, 4))[0]
    assert all(torch.equal(resumed["average"][n], v) for n, v in state["average"].items())


def test_another_rank_or_another_base_is_another_run(config: TrainConfig) -> None:
    """Cases: P15."""
    assert launch(config, "cpu") == 0
    with pytest.raises(UsageError, match="holds a run with lora.rank=3, not 5; choose another"):
        launch(replace(config, steps=6, lora=LoraConfig(rank=5, alpha=6)), "cpu")
    with pytest.raises(UsageError, match=r"lora=\{'rank': 3, .*\}, not None"):
        launch(replace(config, steps=6, lora=None), "cpu")
    shutil.rmtree(str(config.teacher))
    tiny.save(Path(str(config.teacher)), tiny.denoiser(), seed=7)
    with pytest.raises(UsageError, match="but the run began with .*; put that model back"):
        launch(replace(config, steps=6), "cpu")
