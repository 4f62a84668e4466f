"""Attention of diffusers' networks through ours, which has a forward-mode derivative.

diffusers' processors call a dispatcher of fused kernels, which have none, and every switch of
diffusers and torch that would replace them is process-wide. A processor here keeps the code of
diffusers' own, with the name of the attention function bound to `attend`: nothing but the network
at hand changes.
"""

from collections.abc import Callable
from types import FunctionType, SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from vidcm.errors import UsageError
from vidcm.models.attention import attend
from vidcm.models.nag import AttentionGuidance
from vidcm.models.sequence_parallel import SequenceGroup

Attend = Callable[..., Tensor]  # of `(b, heads, n, d)`, as `scaled_dot_product_attention`


def scaled_dot_product_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
    backend: Any = None,
    parallel_config: Any = None,
    attention: Attend = attend,
) -> Tensor:
    """torch's function over `(b, heads, n, d)`, of what public video networks use of it."""
    if dropout_p or is_causal or scale is not None or enable_gqa or parallel_config is not None:
        raise UsageError(
            "this network's attention has dropout, a causal mask, a scale or a parallel "
            "configuration of its own, for which vidcm has no derivative"
        )
    return attention(query, key, value, _key_mask(attn_mask))


def _key_mask(mask: Tensor | None) -> Tensor | None:
    """A mask of keys `(b, keys)` from one that is the same for all heads and queries."""
    if mask is None:
        return None
    rows = mask.reshape(mask.shape[0], -1, mask.shape[-1])[:, 0]
    return rows if rows.dtype == torch.bool else rows > -1.0


def with_attend(network: nn.Module) -> None:
    """Let a network of diffusers attend through `attend`.

    Raises:
        UsageError: A processor calls no attention function that vidcm knows.
    """
    for module in network.modules():
        processor = getattr(module, "processor", None)
        if processor is not None:
            module.processor = rebound(processor, scaled_dot_product_attention)


def guided(guidance: AttentionGuidance, length: int) -> Attend:
    """Attention to two texts, one behind the other, guided against the second.

    Args:
        guidance: How.
        length: Tokens of the second text.
    """

    def attention(
        query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, **options: Any
    ) -> Tensor:
        first = key.shape[-2] - length
        parts = []
        for part in (slice(None, first), slice(first, None)):
            mask = None if attn_mask is None else attn_mask[..., part]
            k, v = key[..., part, :], value[..., part, :]
            found = scaled_dot_product_attention(query, k, v, mask, **options)
            parts.append(rearrange(found, "b heads n d -> b n (heads d)"))
        return rearrange(guidance(*parts), "b n (h d) -> b h n d", h=query.shape[1])

    return attention


def ulysses(group: SequenceGroup) -> Attend:
    """Self-attention among the tokens of all ranks of a group."""

    def attention(
        query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, **options: Any
    ) -> Tensor:
        return scaled_dot_product_attention(
            query, key, value, attn_mask, **options, attention=group.attend
        )

    return attention


def rebound(processor: Any, attention: Attend) -> Any:
    """A processor with the code of another one, whose attention function is `attention`."""

    def dispatch(
        query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, **options: Any
    ) -> Tensor:
        """diffusers' `dispatch_attention_fn` over `(b, n, heads, d)`."""
        q, k, v = (x.transpose(1, 2) for x in (query, key, value))
        return attention(q, k, v, attn_mask, **options).transpose(1, 2)

    call: Any = type(processor).__call__  # a function
    names = call.__code__.co_names
    replaced: dict[str, Any] = {}
    if "dispatch_attention_fn" in names:
        replaced["dispatch_attention_fn"] = dispatch
    if "scaled_dot_product_attention" in names:
        functions = {**vars(F), "scaled_dot_product_attention": attention}
        replaced["F"] = SimpleNamespace(**functions)
    if not replaced:
        raise UsageError(
            f"diffusers' {type(processor).__name__} calls no attention function that vidcm knows"
        )
    own: Any = FunctionType(
        call.__code__,
        {**call.__globals__, **replaced},
        call.__name__,
        call.__defaults__,
        call.__closure__,
    )
    own.__kwdefaults__ = call.__kwdefaults__
    kind = type(type(processor).__name__, (type(processor),), {"__call__": own})
    rebound = kind.__new__(kind)
    rebound.__dict__.update(processor.__dict__)
    return rebound
