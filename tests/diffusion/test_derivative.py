"""Derivatives along a direction: through every part of the network, and how exact each way is."""

from collections.abc import Callable

import pytest
import tiny
import torch
from torch import Tensor

from vidcm.diffusion.base import Cond
from vidcm.diffusion.denoiser import Denoiser
from vidcm.diffusion.derivative import Exact, FiniteDifference
from vidcm.errors import UsageError
from vidcm.models.dit import DiT
from vidcm.registry import build

Pair = tuple[Tensor, Tensor]


def relative(found: Tensor, expected: Tensor) -> float:
    return float((found.double() - expected).norm() / expected.norm())


def network(dtype: torch.dtype = torch.float64, **options) -> Callable[..., Tensor]:
    """A DiT whose gates are open, seen as a function of latents and time; text stays as it is."""
    torch.manual_seed(0)
    options = {
        "hidden_size": 32,
        "num_heads": 2,
        "patch_size": (1, 1, 1),
        "guidance_embed": True,
        **options,
    }
    model = tiny.shaken(DiT(3, 11, num_layers=2, **options)).to(dtype)
    mask = torch.arange(7) < torch.tensor([[7], [2]])
    cond = Cond(torch.randn(2, 7, 11).to(dtype), mask, torch.tensor([1.5, 4.0]))
    return lambda x, time: model(x, time, cond)


def place(dtype: torch.dtype = torch.float64, frames: int | None = None) -> tuple[Pair, Pair]:
    generator = torch.Generator().manual_seed(5)
    x, dx = torch.randn(2, 2, 3, 4, 2, 3, generator=generator).to(dtype)
    time = torch.tensor([0.3, 0.97], dtype=dtype)
    time = time if frames is None else time[:, None] - 0.05 * torch.arange(frames)
    return (x, time), (dx, torch.ones_like(time))


@pytest.mark.parametrize(
    "options, frames", [({}, None), ({"patch_size": (2, 1, 3), "two_times": True}, 4)]
)
def test_exact_is_the_limit_of_differences_through_a_whole_network(options, frames):
    """Self- and cross-attention with padded words, rotary, norms, modulation by time and scale."""
    function, (primals, tangents) = network(**options), place(frames=frames)
    value, exact = Exact()(function, primals, tangents)
    torch.testing.assert_close(value, function(*primals))
    errors = [
        relative(FiniteDifference(h)(function, primals, tangents)[1], exact)
        for h in (2e-4, 1e-4, 1e-5)
    ]
    assert errors[2] < 1e-6
    assert errors[0] / errors[1] == pytest.approx(4, rel=0.02)  # the error is of second order


@pytest.mark.parametrize("moved", [0, 1], ids=["latents", "time"])
def test_one_tangent_of_zero(moved):
    function, (primals, tangents) = network(), place()
    tangents = tuple(t if i == moved else torch.zeros_like(t) for i, t in enumerate(tangents))
    found = Exact()(function, primals, tangents)[1]
    assert relative(FiniteDifference(1e-5)(function, primals, tangents)[1], found) < 1e-6


@pytest.mark.parametrize("way", [Exact(), FiniteDifference()])
def test_what_does_not_depend_on_its_place_has_no_derivative(way):
    primals, tangents = place()
    value, moved = way(lambda x, time: torch.full((2, 3), 7.0), primals, tangents)
    assert (value == 7).all() and moved.equal(torch.zeros(2, 3))


def test_what_precision_costs():
    """float32 is all but exact; bf16 weights cost a few hundredths; a difference of float32
    stays below half of that at its default step, and a difference of bf16 is of no use."""
    primals, tangents = place()
    truth = Exact()(network(), primals, tangents)[1]
    error = {}
    for dtype in (torch.float32, torch.bfloat16):
        primals, tangents = place(torch.float32)
        given = [relative(d(network(dtype), primals, tangents)[1], truth) for d in WAYS]
        error[dtype] = given
    assert error[torch.float32][0] < 1e-5 and error[torch.float32][1] < 5e-3
    assert error[torch.bfloat16][0] < 0.05 and error[torch.bfloat16][1] > 0.1


WAYS = (Exact(), FiniteDifference())


def denoiser() -> Denoiser:
    return tiny.shaken(build("model", tiny.denoiser(guidance_embed=True)), 0.05)


@pytest.mark.parametrize("bf16", [False, True], ids=["fp32", "autocast"])
def test_through_a_denoiser(bf16):
    """The ways agree; under autocast the exact one is off by what bf16 is off by, no more. The
    gradient of a forward that follows is not touched."""
    model = denoiser()
    generator = torch.Generator().manual_seed(3)
    x, dx = torch.randn(2, 2, 5, 3, 2, 4, generator=generator)
    primals = (x, torch.tensor([0.3, 0.97]))
    tangents = (dx, torch.ones(2))
    cond = model.encode(["an orc walks", "a lady"], torch.tensor([1.5, 3.0]))

    def function(x: Tensor, t: Tensor) -> Tensor:
        return model.velocity(x, t, cond)

    difference = FiniteDifference(1e-3)(function, primals, tangents)[1].double()
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16, cache_enabled=False):
        value, exact = Exact()(function, primals, tangents)
        again = function(*primals)
    assert value.dtype == exact.dtype == torch.float32 and not exact.requires_grad
    tolerance = 1e-2 if bf16 else 1e-4
    torch.testing.assert_close(value, again, rtol=tolerance, atol=tolerance)
    assert relative(exact, difference) < (0.03 if bf16 else 2e-3)
    again.square().mean().backward()
    bare = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.abs().max() > 0]
    assert bare == ["conditioner.empty"]  # which no prompt of no words has used


def test_a_step_of_nothing_is_refused():
    for h, message in ((0.0, "above 0"), (-1e-3, "above 0"), (float("nan"), "not a finite")):
        with pytest.raises(UsageError, match=message):
            build("derivative", {"name": "finite_difference", "h": h})
