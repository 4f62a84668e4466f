"""Bytes of the tensors that a computation holds, counted without computing it.

Networks on the meta device have shapes and no data. Their code runs as it stands, forward, backward
and derivatives, and every storage is counted from its birth to its end. What depends on no weight,
such as times and draws, is computed, since methods decide by it.
"""

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

META = torch.device("meta")


class Meter(TorchDispatchMode):
    """Counts storages that operations make while it is entered; those made before are not counted.

    An operation that reads a meta tensor gives meta tensors, whatever the devices of the others.

    Attributes:
        now: Bytes that are held.
        peak: The most that were held at once.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._storages: dict[int, weakref.ref] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        given = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        if any(x.is_meta for x in given):
            args, kwargs = tree_map_only(Tensor, _without_data, (args, kwargs))
            if "device" in kwargs:
                kwargs["device"] = META
        out = func(*args, **kwargs)
        known = {x.untyped_storage()._cdata for x in given}
        for x in tree_leaves(out):
            if isinstance(x, Tensor) and x.untyped_storage()._cdata not in known:
                self._hold(x.untyped_storage())
        return out

    def _hold(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._storages:
            return

        def free(_: Any) -> None:
            del self._storages[key]
            self.now -= size

        self._storages[key] = weakref.ref(storage, free)
        self.now += size
        self.peak = max(self.peak, self.now)


def _without_data(x: Tensor) -> Tensor:
    return x if x.is_meta else torch.empty_like(x, device=META)


class _OnMeta(TorchFunctionMode):
    """Fused attention and the casts of autocast, which the meta device lacks; data stay data."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if torch.is_autocast_enabled("cpu") and func in _CASTS:
            args, kwargs = tree_map_only(Tensor, _CASTS[func], (args, kwargs))
        if func is F.scaled_dot_product_attention and args[0].is_meta:
            return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(*args[:3])[0]
        if func is Tensor.to and len(args) == 2 and isinstance(args[1], Tensor):
            if not args[0].is_meta:
                args = args[0], args[1].dtype
        if func in (torch.tensor, torch.as_tensor) and str(kwargs.get("device")) == "meta":
            kwargs.pop("device")
        return func(*args, **kwargs)


def _narrow(x: Tensor) -> Tensor:
    return x.to(torch.bfloat16) if x.is_meta and x.is_floating_point() else x


def _wide(x: Tensor) -> Tensor:
    return x.float() if x.is_meta and x.is_floating_point() else x


# Those of CUDA's lists that our networks and diffusers' call.
_CASTS: dict[Any, Callable[[Tensor], Tensor]] = dict.fromkeys(
    (
        *(F.linear, torch.matmul, Tensor.matmul, Tensor.__matmul__, torch.bmm, torch.baddbmm),
        *(F.conv1d, F.conv2d, F.conv3d, F.scaled_dot_product_attention),
    ),
    _narrow,
) | dict.fromkeys((F.layer_norm, F.group_norm, F.softmax, torch.softmax, Tensor.softmax), _wide)


@contextmanager
def metered() -> Iterator[Meter]:
    """Count what the block holds; its networks are on the meta device."""
    meter = Meter()
    with _OnMeta(), meter:
        yield meter


def backward(loss: Tensor) -> None:
    """`loss.backward()` in `metered`, in which blocks that are computed again see the same modes.

    The method is a function that modes see, which hides them from all below it; the engine is none.
    """
    engine: Any = torch.autograd.Variable._execution_engine
    engine.run_backward((loss,), (torch.ones_like(loss),), False, False, (), True, True)
