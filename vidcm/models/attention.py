"""Attention, in one place: every backbone's queries, keys and values meet here.

Fused attention has no forward-mode derivative, so under one `attend` calls `attend_jvp` on values
and tangents: chunked over queries (`attention_jvp.py`), or a Triton kernel (`attention_triton.py`).
Both take memory linear in tokens. They are explicit functions rather than rules of
`torch.autograd.Function`, because torch.compile drops such rules silently.
"""

from importlib.util import find_spec

import torch
import torch.autograd.forward_ad as forward_ad
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from vidcm.models.attention_jvp import attend_jvp
from vidcm.models.rope import rotate

TRITON = find_spec("triton") is not None  # imported only when a GPU wants a derivative


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """softmax(q k' / sqrt(d)) v over `(b, heads, n, d)`.

    Inside `torch.func.jvp` the result carries its derivative. On CPUs the matrix products are at
    least fp32: bf16 is slow there without instructions for it.

    Args:
        q: Queries.
        k: Keys.
        v: Values.
        mask: bool `(b, keys)`, True to attend.
    """
    if q.device.type == "cpu" and torch.bfloat16 in (q.dtype, k.dtype, v.dtype):
        with torch.autocast("cpu", enabled=False):
            return _attend(q.float(), k.float(), v.float(), mask).to(v.dtype)
    return _attend(q, k, v, mask)


def _attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    (q, tq), (k, tk), (v, tv) = (forward_ad.unpack_dual(x) for x in (q, k, v))
    if tq is None and tk is None and tv is None:
        bias = None if mask is None else mask[:, None, None, :]
        return F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
    if _fits_kernel(q, v):
        from vidcm.models import attention_triton

        return forward_ad.make_dual(*attention_triton.attend_jvp(q, k, v, tq, tk, tv, mask))
    return forward_ad.make_dual(*attend_jvp(q, k, v, tq, tk, tv, mask))


def _fits_kernel(q: Tensor, v: Tensor) -> bool:
    """Whether the Triton kernel takes these: on an NVIDIA GPU since Ampere, and not in float64."""
    if not (TRITON and q.is_cuda and torch.version.hip is None):
        return False
    narrow = max(q.shape[-1], v.shape[-1]) <= 128 and q.dtype != torch.float64
    return narrow and torch.cuda.get_device_capability(q.device) >= (8, 0)


class Attention(nn.Module):
    """Multi-head attention with RMS-normalised queries and keys.

    Dehghani et al. 2023, arXiv 2302.05442.

    Args:
        width: Channels of the tokens.
        heads: Number of heads, which divides `width`.
        context: Channels of the tokens that keys and values come from; None for self-attention.
    """

    def __init__(self, width: int, heads: int, context: int | None = None):
        super().__init__()
        self.heads, self.self_attention = heads, context is None
        self.attend = attend
        self.queries = nn.Linear(width, width, bias=False)
        self.keys_values = nn.Linear(context or width, 2 * width, bias=False)
        self.query_norm = nn.RMSNorm(width // heads, eps=1e-6)
        self.key_norm = nn.RMSNorm(width // heads, eps=1e-6)
        self.out = nn.Linear(width, width)

    def forward(
        self,
        x: Tensor,
        context: Tensor | None = None,
        mask: Tensor | None = None,
        angles: Tensor | None = None,
    ) -> Tensor:
        return self.out(self.mix(x, context, mask, angles))

    def mix(
        self,
        x: Tensor,
        context: Tensor | None = None,
        mask: Tensor | None = None,
        angles: Tensor | None = None,
    ) -> Tensor:
        """The values that tokens attend to, all heads together, before the output layer."""
        source = x if context is None else context
        split = "b n (heads d) -> b heads n d"
        q = self.query_norm(rearrange(self.queries(x), split, heads=self.heads))
        k, v = (
            rearrange(y, split, heads=self.heads) for y in self.keys_values(source).chunk(2, -1)
        )
        k = self.key_norm(k)
        if angles is not None:
            q, k = rotate(q, angles), rotate(k, angles)
        return rearrange(self.attend(q, k, v, mask), "b heads n d -> b n (heads d)")
