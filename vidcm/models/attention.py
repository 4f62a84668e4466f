"""Attention, in one place: every backbone's queries, keys and values meet here.

Fused attention has no forward-mode derivative, so `attend` takes another way under one: the
derivative-capable `attend_jvp`, which is chunked over queries (memory linear in tokens). It is an
explicit function of values and tangents rather than a rule of `torch.autograd.Function`, because
torch.compile drops such rules without a word.
"""

from importlib.util import find_spec

import torch
import torch.autograd.forward_ad as forward_ad
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from vidcm.models.rope import rotate

CHUNK = 256
TRITON = find_spec("triton") is not None  # imported only when a GPU wants a derivative


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """softmax(q k' / sqrt(d)) v over `(b, heads, n, d)`; mask: bool `(b, keys)`, True to attend.

    Inside `torch.func.jvp` the result carries its derivative."""
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


def attend_jvp(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    tq: Tensor | None,
    tk: Tensor | None,
    tv: Tensor | None,
    mask: Tensor | None = None,
    chunk: int = CHUNK,
) -> tuple[Tensor, Tensor]:
    """`attend` and its derivative along the tangents, both `(b, heads, n, d)`; a tangent of None is
    zero, one of the three is not. chunk: queries at a time.

    With S = q k' / sqrt(d), P = softmax(S) and r the row sums of P dS:
    o = P v and do = P dv + P (dS - r) v, element by element in P (...). The softmax is in float32
    or wider."""
    scale, outputs = q.shape[-1] ** -0.5, []
    hidden = None if mask is None else ~mask[:, None, None, :]
    tangents = tq.split(chunk, -2) if tq is not None else [None] * -(-q.shape[-2] // chunk)
    for part, moved in zip(q.split(chunk, -2), tangents, strict=True):
        scores = _wide(part @ k.mT) * scale
        if hidden is not None:
            scores = scores.masked_fill(hidden, -torch.inf)
        weights = scores.softmax(-1)
        if hidden is not None:  # a row that may see nothing gives zero, as the fused kernels do
            weights = weights.masked_fill(hidden, 0)
        o = weights.to(v.dtype) @ v
        to = torch.zeros_like(o) if tv is None else weights.to(v.dtype) @ tv
        pushes = [] if moved is None else [moved @ k.mT]
        pushes += [] if tk is None else [part @ tk.mT]
        if pushes:
            push = _wide(sum(pushes[1:], pushes[0])) * scale
            push = push - (weights * push).sum(-1, keepdim=True)
            to = to + (weights * push).to(v.dtype) @ v
        outputs.append((o, to))
    o, to = (torch.cat(parts, -2) for parts in zip(*outputs, strict=True))
    return o, to


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


class Attention(nn.Module):
    """Multi-head attention with RMS-normalised queries and keys (Dehghani et al. 2023, arXiv
    2302.05442). context: width of the keys' source for cross-attention, None for self-attention.
    """

    def __init__(self, width: int, heads: int, context: int | None = None):
        super().__init__()
        self.heads, self.self_attention = heads, context is None
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
        source = x if context is None else context
        split = "b n (heads d) -> b heads n d"
        q = self.query_norm(rearrange(self.queries(x), split, heads=self.heads))
        k, v = (
            rearrange(y, split, heads=self.heads) for y in self.keys_values(source).chunk(2, -1)
        )
        k = self.key_norm(k)
        if angles is not None:
            q, k = rotate(q, angles), rotate(k, angles)
        return self.out(rearrange(attend(q, k, v, mask), "b heads n d -> b n (heads d)"))
