"""Attention and its derivative in one Triton kernel: memory linear in tokens, one pass over keys.

The forward of FlashAttention-2 (Dao 2023, arXiv 2307.08691) with a second accumulator, the idea of
rCM (arXiv 2510.08431). With s = q k' / sqrt(d), ds = (dq k' + q dk') / sqrt(d) and p = softmax(s):
o = p v and do = p (ds - c) v + p dv, where c = sum p ds. The mean c of a row is known only at the
end, so the accumulator is centred at the mean so far and shifted as that moves (Welford's update):
in bf16 a derivative that all scores share costs no digits.

`python -m vidcm.evaluation.attention_speed` times it on a GPU.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from vidcm.models.attention_jvp import attend_jvp as chunked

WIDEST = 128  # of a head
DTYPES = (torch.float32, torch.float16, torch.bfloat16)


@triton.jit
def _kernel(
    q, k, v, tq, tk, tv, mask, o, to,
    heads, queries, keys, scale,
    q_batch, q_head, q_row, k_batch, k_head, k_row, v_batch, v_head, v_row, mask_batch,
    D: tl.constexpr, E: tl.constexpr,  # width of queries and keys, of values
    PAD_D: tl.constexpr, PAD_E: tl.constexpr,  # the next powers of two
    BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    blocks = tl.cdiv(queries, BLOCK_Q)
    block, pair = tl.program_id(0) % blocks, (tl.program_id(0) // blocks).to(tl.int64)
    batch, head = pair // heads, pair % heads
    rows = block.to(tl.int64) * BLOCK_Q + tl.arange(0, BLOCK_Q)
    columns, d, e = tl.arange(0, BLOCK_K), tl.arange(0, PAD_D), tl.arange(0, PAD_E)
    in_q = (rows < queries)[:, None] & (d < D)[None, :]
    at_q = batch * q_batch + head * q_head + rows[:, None] * q_row + d[None, :]
    at_k = batch * k_batch + head * k_head + columns[None, :] * k_row + d[:, None]
    at_v = batch * v_batch + head * v_head + columns[:, None] * v_row + e[None, :]

    queried = tl.load(q + at_q, mask=in_q, other=0.0)
    if tq is not None:
        moved = tl.load(tq + at_q, mask=in_q, other=0.0)
    highest = tl.full([BLOCK_Q], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_Q], tl.float32)
    mean = tl.zeros([BLOCK_Q], tl.float32)  # of the scores' derivatives, so far
    value = tl.zeros([BLOCK_Q, PAD_E], tl.float32)
    change = tl.zeros([BLOCK_Q, PAD_E], tl.float32)

    for start in range(0, keys, BLOCK_K):
        seen = start + columns < keys
        in_k = seen[None, :] & (d < D)[:, None]
        in_v = seen[:, None] & (e < E)[None, :]
        if mask is not None:
            seen &= tl.load(mask + batch * mask_batch + start + columns, mask=seen, other=0) != 0
        keyed = tl.load(k + at_k, mask=in_k, other=0.0)
        valued = tl.load(v + at_v, mask=in_v, other=0.0)

        scores = tl.dot(queried, keyed, input_precision=PRECISION) * (scale * 1.4426950408889634)
        scores = tl.where(seen[None, :], scores, float("-inf"))
        top = tl.maximum(highest, tl.max(scores, 1))
        base = tl.where(top == float("-inf"), 0.0, top)  # nothing seen yet: no inf - inf
        weights = tl.exp2(scores - base[:, None])
        fade = tl.exp2(highest - base)
        highest = top
        total = total * fade + tl.sum(weights, 1)
        weighed = weights.to(valued.dtype)

        if tq is not None or tk is not None:
            push = tl.zeros([BLOCK_Q, BLOCK_K], tl.float32)
            if tq is not None:
                push = tl.dot(moved, keyed, push, input_precision=PRECISION)
            if tk is not None:
                other = tl.load(tk + at_k, mask=in_k, other=0.0)
                push = tl.dot(queried, other, push, input_precision=PRECISION)
            push = push * scale - mean[:, None]
            shift = tl.sum(weights * push, 1) / tl.where(total > 0, total, 1.0)
            mean += shift
            change = (change - shift[:, None] * value) * fade[:, None]
            pushed = (weights * (push - shift[:, None])).to(valued.dtype)
            change = tl.dot(pushed, valued, change, input_precision=PRECISION)
        else:
            change *= fade[:, None]
        if tv is not None:
            other = tl.load(tv + at_v, mask=in_v, other=0.0)
            change = tl.dot(weighed, other, change, input_precision=PRECISION)
        value = tl.dot(weighed, valued, value * fade[:, None], input_precision=PRECISION)
        at_k += BLOCK_K * k_row
        at_v += BLOCK_K * v_row

    share = 1.0 / tl.where(total > 0, total, 1.0)[:, None]  # who sees nothing gets nothing
    at_o = (pair * queries + rows)[:, None] * E + e[None, :]
    in_o = (rows < queries)[:, None] & (e < E)[None, :]
    tl.store(o + at_o, (value * share).to(o.dtype.element_ty), mask=in_o)
    tl.store(to + at_o, (change * share).to(to.dtype.element_ty), mask=in_o)


def blocks(width: int, dtype: torch.dtype, shared: int = 232448) -> dict[str, int]:
    """Tile sizes that fit the registers and the shared memory of a block (bytes)."""
    if dtype == torch.float32:
        return {"BLOCK_Q": 32, "BLOCK_K": 32, "num_warps": 4, "num_stages": 1}
    if width <= 64:
        return {"BLOCK_Q": 64, "BLOCK_K": 64, "num_warps": 4, "num_stages": 2}
    if shared >= 131072:
        return {"BLOCK_Q": 128, "BLOCK_K": 32, "num_warps": 8, "num_stages": 2}
    return {"BLOCK_Q": 64, "BLOCK_K": 32, "num_warps": 4, "num_stages": 2}


def _shared_memory(device: torch.device) -> int:
    if device.type != "cuda":
        return 0  # the interpreter, for which any tiles do
    return torch.cuda.get_device_properties(device).shared_memory_per_block_optin


def _together(x: Tensor, tangent: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """One set of strides serves both, with rows that are contiguous."""
    if x.stride(-1) == 1 and (tangent is None or tangent.stride() == x.stride()):
        return x, tangent
    return x.contiguous(), None if tangent is None else tangent.contiguous()


# A custom operator, so that torch.func.jvp and torch.compile see two outputs and nothing within.
@torch.library.custom_op("vidcm::attend_jvp", mutates_args=())
def _attend_jvp(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    tq: Tensor | None,
    tk: Tensor | None,
    tv: Tensor | None,
    mask: Tensor | None,
) -> tuple[Tensor, Tensor]:
    (b, heads, queries, d), (keys, e) = q.shape, v.shape[-2:]
    (q, tq), (k, tk), (v, tv) = (_together(*pair) for pair in ((q, tq), (k, tk), (v, tv)))
    o, to = (v.new_empty(b, heads, queries, e) for _ in range(2))
    if mask is not None:
        mask = mask.contiguous().view(torch.uint8)
    pads = [max(16, triton.next_power_of_2(n)) for n in (d, e)]
    tiles = blocks(max(pads), q.dtype, _shared_memory(q.device))
    if o.numel():
        launch: Any = _kernel[(triton.cdiv(queries, tiles["BLOCK_Q"]) * b * heads,)]
        launch(
            q, k, v, tq, tk, tv, mask, o, to,
            heads, queries, keys, d**-0.5,
            *q.stride()[:3], *k.stride()[:3], *v.stride()[:3], keys,
            D=d, E=e, PAD_D=pads[0], PAD_E=pads[1],
            PRECISION="tf32x3" if torch.get_float32_matmul_precision() == "highest" else "tf32",
            **tiles,
        )  # fmt: skip
    return o, to


@_attend_jvp.register_fake
def _(q, k, v, tq, tk, tv, mask):
    o = v.new_empty(*q.shape[:-1], v.shape[-1])
    return o, torch.empty_like(o)


def _save(ctx, inputs, output):
    ctx.save_for_backward(*inputs)


def _backward(ctx, grad_o: Tensor, grad_to: Tensor):
    """Through the chunked form, computed again: gradients are seldom wanted along a derivative."""
    saved: tuple[Any, ...] = ctx.saved_tensors
    *inputs, mask = saved
    with torch.enable_grad():
        given: list[Any] = [None if x is None else x.detach().requires_grad_() for x in inputs]
        q, k, v, tq, tk, tv = given
        found = chunked(q, k, v, tq, tk, tv, mask)
        wanted = [x for x in given if x is not None]
        grads = iter(torch.autograd.grad(found, wanted, (grad_o, grad_to), allow_unused=True))
    return *(None if x is None else next(grads) for x in inputs), None


_attend_jvp.register_autograd(_backward, setup_context=_save)


def attend_jvp(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    tq: Tensor | None,
    tk: Tensor | None,
    tv: Tensor | None,
    mask: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The kernel's form of `vidcm.models.attention_jvp.attend_jvp`, with the same arguments.

    It takes float32, float16 or bfloat16 and heads of at most 128. Sums are in float32, and float32
    is multiplied as torch's matmul precision says. Gradients take as much memory as the chunked
    form.

    Raises:
        ValueError: Shapes or dtypes do not go together.
    """
    if torch.is_autocast_enabled(q.device.type):
        dtype = torch.get_autocast_dtype(q.device.type)
        q, k, v = (x.to(dtype) for x in (q, k, v))
        tq, tk, tv = (None if x is None else x.to(dtype) for x in (tq, tk, tv))
    # A kernel reads past the end of what is shorter than it was told.
    pairs = [(x, tx) for x, tx in ((q, tq), (k, tk), (v, tv)) if tx is not None]
    shapes = [tuple(x.shape) for x in (q, k, v)]
    if any(x.shape != tx.shape for x, tx in pairs):
        raise ValueError(f"tangents of other shapes than their tensors, {shapes}")
    if q.shape[:2] != k.shape[:2] or k.shape[:3] != v.shape[:3] or q.shape[3] != k.shape[3]:
        raise ValueError(f"queries, keys and values of {shapes} do not go together")
    if max(q.shape[3], v.shape[3]) > WIDEST:
        raise ValueError(f"heads of {shapes} are wider than {WIDEST}")
    found = {x.dtype for x in (q, k, v, *(tx for _, tx in pairs))}
    if len(found) > 1 or q.dtype not in DTYPES:
        raise ValueError(f"dtypes {found}; the kernel takes one of {DTYPES} for all")
    if mask is not None and (mask.dtype != torch.bool or mask.shape != (len(k), k.shape[2])):
        raise ValueError(f"a {mask.dtype} mask of {tuple(mask.shape)} over keys of {shapes[1]}")
    return _attend_jvp(q, k, v, tq, tk, tv, mask)
