"""Attention under forward-mode differentiation: the formula's derivative, in linear memory."""

import pytest
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from vidcm.models.attention import attend
from vidcm.models.attention_jvp import attend_jvp


def naive(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    scores = q @ k.mT / q.shape[-1] ** 0.5
    if mask is not None:
        scores = scores.masked_fill(~mask[:, None, None, :], -torch.inf)
    return scores.softmax(-1) @ v


def inputs(queries: int, keys: int, dtype=torch.float32) -> tuple[list[Tensor], list[Tensor]]:
    """Queries, keys, values and tangents of each, `(2, 3, n, 8)`; values of another width."""
    shapes = [(2, 3, queries, 8), (2, 3, keys, 8), (2, 3, keys, 5)]
    return tuple([torch.randn(s, dtype=dtype) for s in shapes] for _ in range(2))  # type: ignore


def masks(keys: int) -> list[Tensor | None]:
    return [None, torch.arange(keys) < torch.tensor([[keys], [2]])]


@pytest.mark.parametrize("queries, keys", [(1, 7), (11, 7), (13, 13), (5, 17)])
@pytest.mark.parametrize("masked", [False, True])
def test_it_is_the_derivative_of_the_formula(queries, keys, masked):
    primals, tangents = inputs(queries, keys)
    mask = masks(keys)[masked]
    wide = [tuple(x.double() for x in xs) for xs in (primals, tangents)]
    expected = torch.func.jvp(lambda q, k, v: naive(q, k, v, mask), *wide)
    ways = [attend_jvp(*primals, *tangents, mask, chunk=c) for c in (4, 5, 256)]
    ways.append(
        torch.func.jvp(lambda q, k, v: attend(q, k, v, mask), tuple(primals), tuple(tangents))
    )
    for found in ways:
        for got, want in zip(found, expected, strict=True):
            assert got.dtype == torch.float32 and got.shape == (2, 3, queries, 5)
            torch.testing.assert_close(got.double(), want, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("moved", range(7))
def test_what_does_not_move_needs_no_tangent(moved):
    """Text tokens stay while the latents move, and the other way round."""
    primals, tangents = inputs(11, 7, torch.float64)
    some = [i for i in range(3) if (moved + 1) >> i & 1]
    mask = masks(7)[1]
    zeros = [t if i in some else torch.zeros_like(t) for i, t in enumerate(tangents)]

    def along(*parts: Tensor) -> Tensor:
        given = list(primals)
        for i, part in zip(some, parts, strict=True):
            given[i] = part
        return attend(*given, mask)

    found = torch.func.jvp(along, tuple(primals[i] for i in some), tuple(tangents[i] for i in some))
    expected = torch.func.jvp(lambda q, k, v: naive(q, k, v, mask), tuple(primals), tuple(zeros))
    torch.testing.assert_close(found, expected)


def test_who_may_see_nothing_gets_nothing():
    primals, tangents = inputs(5, 7)
    mask = torch.tensor([[True] * 7, [False] * 7])
    o, to = attend_jvp(*primals, *tangents, mask)
    torch.testing.assert_close(o, attend(*primals, mask))
    assert o[1].abs().max() == to[1].abs().max() == 0


def test_large_scores_do_not_overflow():
    (q, k, v), tangents = inputs(11, 7)
    found = attend_jvp(100 * q, 100 * k, v, *tangents)
    assert all(x.isfinite().all() for x in found)
    torch.testing.assert_close(found[0], attend(100 * q, 100 * k, v))


def test_bf16_errs_by_its_own_rounding():
    primals, tangents = inputs(37, 29)
    exact = attend_jvp(*primals, *tangents)
    rounded = attend_jvp(*(x.bfloat16() for x in (*primals, *tangents)))
    for got, want in zip(rounded, exact, strict=True):
        assert got.dtype == torch.bfloat16
        assert (got.float() - want).norm() < 0.02 * want.norm()


def test_outside_a_derivative_it_is_the_fused_kernel():
    """And inside, gradients still flow to what is differentiated both ways."""
    (q, k, v), (tq, _, _) = inputs(11, 7)
    with torch.profiler.profile(activities=[ProfilerActivity.CPU]) as seen:
        attend(q, k, v)
    assert any("scaled_dot_product" in e.key for e in seen.key_averages())
    k.requires_grad_()
    o, to = torch.func.jvp(lambda q: attend(q, k, v), (q,), (tq,))
    expected = torch.func.jvp(lambda q: naive(q, k, v), (q,), (tq,))
    (grad,), (wanted,) = (
        torch.autograd.grad(o.sum() + to.square().sum(), k) for o, to in ((o, to), expected)
    )
    torch.testing.assert_close(grad, wanted, atol=1e-5, rtol=1e-4)


def peak_bytes(tokens: int) -> int:
    """The most memory that a derivative of self-attention over so many tokens holds at a time."""
    primals = tuple(torch.randn(3, 1, 1, tokens, 16).unbind(0))
    with torch.no_grad(), profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        torch.func.jvp(attend, primals, primals)
    events = [e for e in seen.profiler.kineto_results.events() if e.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


def test_memory_is_linear_in_tokens():
    few, many = peak_bytes(1024), peak_bytes(4096)
    assert few > 1024 * 256 * 4  # the scores of a chunk, at the least
    assert many < 4.5 * few


@pytest.mark.parametrize("autocast", [False, True])
def test_on_a_cpu_matrix_products_of_bf16_inputs_are_fp32(autocast):
    """Only the result is rounded: within half a unit of bf16's eight bits of the exact one."""
    (q, k, v), _ = inputs(11, 7)
    q, k, v = (x.bfloat16() for x in (q, k, v))
    exact = naive(q.double(), k.double(), v.double())
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        found = attend(q.float() if autocast else q, k, v)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.double(), exact, rtol=2**-8, atol=1e-6)
