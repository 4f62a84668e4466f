"""The cost of network evaluations: counted, timed, in floating-point operations, summarised."""

import math
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

from vidcm.diffusion.base import Cond
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
    """Floating-point operations of one `DiT` forward of one sample, as torch counts them.

    Two per multiply-add of every matrix product and attention; norms, rotations and activations are
    left out. Counted on tensors without data, so that it takes neither time nor memory.

    Args:
        dit: the network.
        shape: latents `(c, t, h, w)`.
        words: text tokens.
    """
    values = [*dit.named_parameters(), *dit.named_buffers()]
    weights = {name: value.to("meta") for name, value in values}
    one = torch.empty(1, device="meta")
    tokens = one.new_empty(1, words, dit.pool.in_features)
    cond = Cond(tokens, one.new_empty(1, words, dtype=torch.bool), one if dit.guidance else None)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        functional_call(dit, weights, (one.new_empty(1, *shape), one, cond))
    return counter.get_total_flops()


def summarize_times(samples: Sequence[float]) -> dict:
    """Median, 95th percentile (linear between samples), mean, extremes, and the samples."""
    return {
        "p50": statistics.median(samples),
        "p95": float(np.percentile(samples, 95)),
        "mean": statistics.fmean(samples),
        "min": min(samples),
        "max": max(samples),
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
        By student row: `of`, the teacher row; `denoise`, the ratio of medians; `low` and `high`,
        the extremes of the ratio within single turns. Empty without a teacher.
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
