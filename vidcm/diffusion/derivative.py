"""Derivatives along a direction: exact, or by two more evaluations. Two objects with one call.

Both give `(f(x), df(x) . dx)` without a gradient graph: an objective takes its gradient from an
ordinary forward afterwards, which is the form that goes with sharded optimisers, bf16 and
activation checkpointing.
"""

import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

import torch
import torch.autograd.forward_ad as forward_ad
from torch import Tensor

from vidcm.errors import UsageError

Function = Callable[..., Tensor]


class Derivative(Protocol):
    """A function's value and its derivative along a direction, without a gradient graph.

    Called with the function of tensors, `primals` (where) and `tangents` (which way, of the same
    shapes and dtypes); returns value and directional derivative, both of the value's shape.
    """

    def __call__(
        self, function: Function, primals: tuple[Tensor, ...], tangents: tuple[Tensor, ...]
    ) -> tuple[Tensor, Tensor]: ...


class Exact:
    """Forward-mode automatic differentiation, for two to three times the price of the function.

    In bf16 it errs by one to three hundredths. Dual tensors go through the network as it stands,
    with the hooks of whatever has wrapped it, and through compiled parts as they were written.
    """

    def __call__(
        self, function: Function, primals: tuple[Tensor, ...], tangents: tuple[Tensor, ...]
    ) -> tuple[Tensor, Tensor]:
        with torch.no_grad(), _uncompiled(), forward_ad.dual_level():
            pairs = zip(primals, tangents, strict=True)
            out = function(*(forward_ad.make_dual(p, t) for p, t in pairs))
            value, tangent = forward_ad.unpack_dual(out)
        return value, torch.zeros_like(value) if tangent is None else tangent


def _uncompiled() -> AbstractContextManager:
    """Run compiled parts eagerly: torch.compile loses tangents silently."""
    if "torch._dynamo" not in sys.modules:
        return nullcontext()
    return torch.compiler.set_stance("force_eager")


class FiniteDifference:
    """Central difference, (f(x + h dx) - f(x - h dx)) / 2h, at the price of three calls.

    Its error is of order h^2 from curvature and of order 1e-7 / h from float32; bf16 would leave a
    tenth of error at best.

    Args:
        h: Step along the tangents, above 0.

    Raises:
        UsageError: h is not above 0.
    """

    def __init__(self, h: float = 2e-3):
        if not h > 0:
            raise UsageError(f"h is {h}; the step of a finite difference must be above 0")
        self.h = h

    def __call__(
        self, function: Function, primals: tuple[Tensor, ...], tangents: tuple[Tensor, ...]
    ) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            ahead, behind = (
                function(*(p + h * t for p, t in zip(primals, tangents, strict=True)))
                for h in (self.h, -self.h)
            )
            return function(*primals), (ahead - behind) / (2 * self.h)
