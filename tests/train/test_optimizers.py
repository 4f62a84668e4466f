"""Which parameters decay, and optimizers of other libraries."""

import sys
from types import ModuleType, SimpleNamespace

import pytest
import tiny
import torch

from vidcm.config import OptimizerConfig
from vidcm.errors import UsageError
from vidcm.registry import build
from vidcm.train.optimizers import decays, make_optimizer

BLOCK = {
    *("attention.queries", "attention.keys_values", "attention.out"),
    *("text.queries", "text.keys_values", "text.out", "mlp.0", "mlp.2"),
}
DENOISER = {
    *("backbone.embed", "backbone.modulation.1", "backbone.pool"),
    *("backbone.head.0", "backbone.head.2", "backbone.head_modulation.1"),
    *(f"backbone.{name}.map.{i}" for name in ("time", "guidance", "span") for i in (0, 2)),
}
TOWER = {n for n in BLOCK if not n.startswith("text.")}


def names(spec: dict) -> tuple[set[str], set[str]]:
    """Names of the parameters that decay, and of those that do not but for biases."""
    model = build("model", spec)
    chosen = decays(model)
    others = {n for n, _ in model.named_parameters()} - chosen
    assert not any(n.endswith(".bias") for n in chosen)
    return chosen, {n for n in others if not n.endswith(".bias")}


def test_all_that_decays_of_a_denoiser_and_its_text_tower():
    """Weights of layers, no norm, no scale-shift table, no single token."""
    chosen, others = names(tiny.denoiser(guidance_embed=True, two_times=True))
    layers = {n.removesuffix(".weight") for n in chosen}
    blocks = {f"backbone.blocks.{i}.{n}" for i in (0, 1) for n in BLOCK}
    tower = {f"conditioner.blocks.0.{n}" for n in TOWER} | {"conditioner.pieces"}
    assert layers == DENOISER | blocks | tower
    tables = {f"backbone.blocks.{i}.offset" for i in (0, 1)} | {"conditioner.empty"}
    assert tables < others and all("norm" in n for n in others - tables)


def test_all_that_decays_of_a_codec():
    """Kernels, and no norm's scale, though it has four dimensions."""
    chosen, others = names(tiny.CODEC)
    assert chosen and all(n.endswith(".weight") for n in chosen)
    assert others and all(n.endswith("norm.scale") for n in others)


def test_groups_are_what_decays_and_what_does_not():
    model = build("model", tiny.denoiser())
    decayed, others = make_optimizer(model, OptimizerConfig(weight_decay=0.3)).param_groups
    assert (decayed["weight_decay"], others["weight_decay"]) == (0.3, 0.0)
    chosen = {id(p) for n, p in model.named_parameters() if n in decays(model)}
    assert {id(p) for p in decayed["params"]} == chosen
    assert not {id(p) for p in others["params"]} & chosen


def test_an_optimizer_of_timm_gets_the_same_groups(monkeypatch):
    calls = {}

    def create_optimizer_v2(groups, opt, lr, **options):
        calls.update(opt=opt, lr=lr, **options)
        return torch.optim.NAdam(groups, lr=lr)

    package, module = ModuleType("timm"), ModuleType("timm.optim")
    module.__dict__.update(
        list_optimizers=lambda: ["nadamw", "sgd"],
        get_optimizer_info=lambda name: SimpleNamespace(has_betas=name == "nadamw"),
        create_optimizer_v2=create_optimizer_v2,
    )
    package.__dict__["optim"] = module
    monkeypatch.setitem(sys.modules, "timm", package)
    monkeypatch.setitem(sys.modules, "timm.optim", module)
    model = build("model", tiny.denoiser())
    optimizer = make_optimizer(model, OptimizerConfig("nadamw", lr=0.2, betas=(0.7, 0.8)))
    assert calls == {"opt": "nadamw", "lr": 0.2, "betas": (0.7, 0.8)}
    assert [g["weight_decay"] for g in optimizer.param_groups] == [0.01, 0.0]
    make_optimizer(model, OptimizerConfig("sgd"))
    with pytest.raises(UsageError, match="unknown optimizer.name 'nadam'; did you mean 'nadamw'"):
        make_optimizer(model, OptimizerConfig("nadam"))


def test_without_timm_another_optimizer_is_refused(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm.optim", None)
    with pytest.raises(
        UsageError, match="optimizers but adamw are timm's, which cannot be imported"
    ):
        make_optimizer(build("model", tiny.denoiser()), OptimizerConfig("lion"))


@pytest.mark.parametrize("name", ["lion", "nadamw"])
def test_timm_s_own(name):
    optim = pytest.importorskip("timm.optim", exc_type=Exception)
    assert name in optim.list_optimizers()
    model = build("model", tiny.denoiser())
    make_optimizer(model, OptimizerConfig(name)).step()
