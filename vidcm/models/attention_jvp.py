"""Attention and its forward-mode derivative, chunked over queries: the reference of kernels."""

import torch
from torch import Tensor

CHUNK = 256


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
    """Attention and its derivative along the tangents.

    With S = q k' / sqrt(d), P = softmax(S) and r the row sums of P dS: o = P v and
    do = P dv + P (dS - r) v, element by element in P (...). The softmax is in float32 or wider.

    Args:
        q: Queries `(b, heads, n, d)`.
        k: Keys `(b, heads, m, d)`.
        v: Values `(b, heads, m, d)`.
        tq: Tangent of q; None stands for zero. At least one of the three tangents is not None.
        tk: Tangent of k.
        tv: Tangent of v.
        mask: bool `(b, m)`, True for keys to attend to.
        chunk: Queries at a time.

    Returns:
        Value and derivative, both `(b, heads, n, d)`.
    """
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
