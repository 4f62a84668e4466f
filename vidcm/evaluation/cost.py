"""The cost of network evaluations: counted, timed, in floating-point operations, summarised."""

import math
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.attention import SDPBackend
from torch.overrides import TorchFunctionMode

from vidcm.evaluation.rows import Row
from vidcm.models.dit import DiT


class NetworkTimer:
    """Counts and times a network's forwards while entered.

    Times are CUDA events on a GPU, which do not stall it, and the clock elsewhere.

    Attributes:
        forwards, samples: counted so far.
        dtype: of the last output.
    """

    def __init__(self, network: nn.Module, device: torch.device):
        self.network, self.gpu = network, device if device.type == "cuda" else None
        self.forwards, self.samples, self.dtype = 0, 0, ""
        self._marks: list[Any] = []

    def __enter__(self) -> "NetworkTimer":
        self._hooks = [
            self.network.register_forward_pre_hook(lambda *_: self._mark()),
            self.network.register_forward_hook(self._after),
        ]
        return self

    def __exit__(self, *_: object) -> None:
        for hook in self._hooks:
            hook.remove()

    def seconds(self) -> float:
        """Inside forwards so far."""
        pairs = list(zip(self._marks[::2], self._marks[1::2], strict=True))
        if self.gpu is None:
            return sum(end - start for start, end in pairs)
        pairs[-1][1].synchronize()
        return sum(start.elapsed_time(end) for start, end in pairs) / 1000

    def _mark(self) -> None:
        if self.gpu is None:
            self._marks.append(time.perf_counter())
        else:
            event = torch.cuda.Event(enable_timing=True)
            event.record(torch.cuda.current_stream(self.gpu))
            self._marks.append(event)

    def _after(self, network: nn.Module, inputs: tuple, output: torch.Tensor) -> None:
        self._mark()
        self.forwards += 1
        self.samples += len(output)
        self.dtype = str(output.dtype).removeprefix("torch.")


class _AttentionListener(TorchFunctionMode):
    def __init__(self):
        super().__init__()
        self.backends: set[str] = set()

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            choice = torch._fused_sdp_choice(*args, **kwargs)
            self.backends.add(SDPBackend(choice).name.lower())
        return func(*args, **kwargs)


def attention_backends(run: Callable[[], object]) -> list[str]:
    """Sorted names of the kernels that torch chooses for the attention in `run()`, as "math"."""
    with _AttentionListener() as listener:
        run()
    return sorted(listener.backends)


def tokens_of(dit: DiT, shape: Sequence[int]) -> int:
    """Spacetime patches of latents `(c, t, h, w)`."""
    return math.prod(n // p for n, p in zip(shape[1:], dit.patch_size, strict=True))


def flops_per_evaluation(dit: DiT, shape: Sequence[int], words: int) -> int:
    """Analytic floating-point operations of one `DiT` forward of one sample; a multiply-add is two.

    Args:
        dit: the network.
        shape: latents `(c, t, h, w)`.
        words: text tokens.

    With n tokens, width d, MLP width m, context c, P numbers per patch and L blocks, in
    multiply-adds:

        patches in and out   n P d + n h (d + P), h the wider of P and d
        a block              4 n d^2 + 2 n^2 d  (self-attention)
                             2 n d^2 + 2 words c d + 2 n words d  (cross-attention)
                             2 n d m  (MLP)
        once                 each embedding of f frequencies 2 f d + d^2,
                             pooled text c d, modulations 11 d^2 + P d
    Norms, rotations and activations are left out.
    """
    n, d, patch = tokens_of(dit, shape), dit.hidden_size, dit.embed.in_features
    context = dit.pool.in_features
    hidden = cast(nn.Linear, dit.get_submodule("blocks.0.mlp.0")).out_features
    block = 6 * n * d**2 + 2 * n**2 * d + 2 * words * context * d + 2 * n * words * d
    block += 2 * n * d * hidden
    scalars = [2 * len(e.frequencies) * d + d**2 for e in (dit.time, dit.guidance) if e is not None]
    once = sum(scalars) + context * d + 11 * d**2 + patch * d
    wide = max(d, patch)
    ends = n * patch * d + n * wide * (d + patch)
    return 2 * (ends + len(dit.blocks) * block + once)


def summarize_times(samples: Sequence[float]) -> dict:
    """Median, 95th percentile (linear between samples), mean, extremes, and the samples."""
    ranked = sorted(samples)
    place = 0.95 * (len(ranked) - 1)
    low = ranked[int(place)]
    high = ranked[min(int(place) + 1, len(ranked) - 1)]
    return {
        "p50": statistics.median(ranked),
        "p95": low + (place % 1) * (high - low),
        "mean": statistics.fmean(ranked),
        "min": ranked[0],
        "max": ranked[-1],
        "samples": list(samples),
    }


def summarize_calls(calls: Sequence[dict[str, float]]) -> dict[str, dict]:
    """`summarize_times` of each key over calls."""
    return {key: summarize_times([call[key] for call in calls]) for key in calls[0]}


def speedups(rows: dict[str, dict]) -> dict[str, dict]:
    """Denoising time of the teacher row of most steps over that of each student row.

    Args:
        rows: measurements by name of their `Row`.

    Returns:
        By student row: `of`, the teacher row; `denoise`, the ratio of medians; `low` and `high`, the
        extremes of the ratio within single turns. Empty without a teacher.
    """
    named = [(Row.parse(name), name) for name in rows]
    teachers = [(row.num_inference_steps, name) for row, name in named if row.role == "teacher"]
    if not teachers:
        return {}
    _, of = max(teachers)
    slow = rows[of]["seconds"]["denoise"]
    found = {}
    for row, name in named:
        if row.role == "student":
            fast = rows[name]["seconds"]["denoise"]
            pairs = [a / b for a, b in zip(slow["samples"], fast["samples"], strict=True)]
            ratio = slow["p50"] / fast["p50"]
            found[name] = {"of": of, "denoise": ratio, "low": min(pairs), "high": max(pairs)}
    return found
