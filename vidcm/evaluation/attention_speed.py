"""Times attention's derivative on a GPU: `python -m vidcm.evaluation.attention_speed`."""

import json
import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
import triton
from torch.nn.attention import SDPBackend, sdpa_kernel

from vidcm.models.attention_jvp import attend_jvp as chunked
from vidcm.models.attention_triton import attend_jvp


def _milliseconds(run: Callable[[], object]) -> float | None:
    """Median of a call after warming up; None when the GPU has not the memory."""
    try:
        median: Any = triton.testing.do_bench(run, return_mode="median")
        return float(median)
    except torch.OutOfMemoryError:
        return None
    finally:
        torch.cuda.empty_cache()


def time_attention(
    tokens: Sequence[int] = (1024, 8192, 32768), heads: int = 12, width: int = 128
) -> list[dict[str, float | None]]:
    """Milliseconds of self-attention in bf16 on the GPU for each number of tokens.

    Measured are the fused forward pass without a derivative, then the derivative by torch's math
    attention, by chunks and by the Triton kernel.
    """
    rows = []
    for n in tokens:
        given = torch.randn(6, 1, heads, n, width, device="cuda", dtype=torch.bfloat16).unbind(0)
        primals, tangents = given[:3], given[3:]

        def math(primals=primals, tangents=tangents):
            with sdpa_kernel(SDPBackend.MATH):
                return torch.func.jvp(F.scaled_dot_product_attention, primals, tangents)

        ways = {
            "forward": lambda primals=primals: F.scaled_dot_product_attention(*primals),
            "math_jvp": math,
            "chunked_jvp": lambda given=given: chunked(*given),
            "triton_jvp": lambda given=given: attend_jvp(*given),
        }
        with torch.no_grad():
            rows.append({"tokens": n} | {name: _milliseconds(way) for name, way in ways.items()})
    return rows


if __name__ == "__main__":
    if not torch.cuda.is_available():
        sys.exit("error: timing attention needs a GPU, and torch sees none")
    print(json.dumps({"gpu": torch.cuda.get_device_name(), "milliseconds": time_attention()}))
