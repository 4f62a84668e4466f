"""What saves memory or time changes no number: activation_checkpointing of blocks, and compilation."""

import shutil
from collections.abc import Callable
from typing import Any

import pytest
import tiny
import torch
from torch import Tensor, nn

from vidcm.config import TrainConfig
from vidcm.diffusion.denoiser import Denoiser
from vidcm.diffusion.derivative import Exact
from vidcm.errors import UsageError
from vidcm.registry import build
from vidcm.train.setup import apply_memory_options

PROMPTS = ["an orc walks", "a lady in a red dress"]


def network(*, depth: int = 2, **keys: Any) -> Denoiser:
    torch.manual_seed(0)
    model: Denoiser = build("model", tiny.denoiser(guidance_embed=True, num_layers=depth))
    tiny.shaken(model)
    apply_memory_options(model, TrainConfig({}, {}, {}, "", 1, **keys))
    return model


def place() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(5)
    return torch.randn(2, 5, 3, 2, 4, generator=generator), torch.tensor([0.3, 0.9])


def said(model: Denoiser, prompts: list[str] = PROMPTS) -> Tensor:
    return model.velocity(*place(), model.encode(prompts, torch.tensor([1.5, 3.0])))


def gradients(model: Denoiser) -> dict[str, Tensor]:
    said(model).square().mean().backward()
    return {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


def derivative(model: Denoiser) -> Tensor:
    x, t = place()
    cond = model.encode(PROMPTS, torch.tensor([1.5, 3.0]))
    along = (torch.ones_like(x), torch.ones_like(t))
    return Exact()(lambda x, t: model.velocity(x, t, cond), (x, t), along)[1]


def kept(run: Callable[[], Tensor]) -> int:
    """Numbers that a forward pass keeps for the backward pass."""
    count = 0

    def pack(x: Tensor) -> Tensor:
        nonlocal count
        count += x.numel()
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        run()
    return count


def test_checkpointing_keeps_less_and_changes_no_gradient() -> None:
    plain, spared = network(), network(activation_checkpointing=True)
    expected, found = gradients(plain), gradients(spared)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[n], g) for n, g in expected.items())
    deep = [network(depth=6, activation_checkpointing=on) for on in (False, True)]
    without, with_it = (kept(lambda model=m: said(model)) for m in deep)
    assert with_it < 0.4 * without


def test_what_needs_no_gradient_is_computed_once() -> None:
    model, calls = network(activation_checkpointing=True), 0

    def count(*_: object) -> None:
        nonlocal calls
        calls += 1

    model.backbone.blocks[0].attention.register_forward_hook(count)
    with torch.no_grad():
        said(model)
    assert calls == 1
    derivative(model)
    assert calls == 2
    said(model).square().mean().backward()
    assert calls == 4


def test_the_exact_derivative_passes_through_checkpointing() -> None:
    assert torch.equal(derivative(network(activation_checkpointing=True)), derivative(network()))


@pytest.mark.slow  # a minute of the C++ compiler
def test_compiled_it_computes_the_same() -> None:
    """With the compiler that training uses: gradients, and the exact derivative, which runs what
    is compiled as it was written."""
    from torch._dynamo.utils import counters

    plain, compiled = network(depth=1), network(depth=1, compile=True)
    assert plain.state_dict().keys() == compiled.state_dict().keys()
    counters.clear()
    torch.testing.assert_close(derivative(compiled), derivative(plain), rtol=0, atol=0)
    assert not counters["stats"], "nothing was compiled for it"
    expected, found = gradients(plain), gradients(compiled)
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-5)
    assert counters["stats"]["unique_graphs"] == 1 and not counters["graph_break"]
    torch.testing.assert_close(derivative(compiled), derivative(plain), rtol=0, atol=0)


@pytest.mark.slow
def test_prompts_of_every_length_share_two_graphs() -> None:
    from torch._dynamo.utils import counters

    counters.clear()
    plain, compiled = network(depth=1), network(depth=1, compile=True)
    for words in range(2, 11):
        prompts = ["an orc", " ".join(["walks"] * words)]
        torch.testing.assert_close(
            said(compiled, prompts), said(plain, prompts), rtol=1e-4, atol=1e-4
        )
    assert counters["stats"]["unique_graphs"] == 2


def test_networks_that_cannot_are_refused(monkeypatch) -> None:
    def refused(model: nn.Module, **keys: Any) -> str:
        with pytest.raises(UsageError) as caught:
            apply_memory_options(model, TrainConfig({}, {}, {}, "", 1, **keys))
        return str(caught.value)

    codec = build("model", tiny.CODEC)
    assert refused(codec, activation_checkpointing=True).endswith(
        "set activation_checkpointing=false"
    )
    assert refused(codec, compile=True).endswith("set compile=false")
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert "there is no g++" in refused(network(), compile=True)
