"""What evaluations of a network cost: counted, timed, in arithmetic, and over many calls."""

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

from vidcm.models.dit import DiT


class Watch:
    """While entered, counts a network's forwards and their samples, and times them: by CUDA events
    on a GPU, which do not stop it, else by the clock."""

    def __init__(self, network: nn.Module, device: torch.device):
        self.network, self.gpu = network, device if device.type == "cuda" else None
        self.forwards, self.samples, self.dtype = 0, 0, ""
        self._marks: list[Any] = []

    def __enter__(self) -> "Watch":
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


class _Listen(TorchFunctionMode):
    def __init__(self):
        super().__init__()
        self.heard: set[str] = set()

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            choice = torch._fused_sdp_choice(*args, **kwargs)
            self.heard.add(SDPBackend(choice).name.lower())
        return func(*args, **kwargs)


def attention_backends(run: Callable[[], object]) -> list[str]:
    """The kernels torch chooses for the fused attention in `run()`, sorted: "math" and so on."""
    with _Listen() as mode:
        run()
    return sorted(mode.heard)


def tokens_of(dit: DiT, shape: Sequence[int]) -> int:
    """Spacetime patches of latents `(c, t, h, w)`."""
    return math.prod(n // p for n, p in zip(shape[1:], dit.patch_size, strict=True))


def flops_per_evaluation(dit: DiT, shape: Sequence[int], words: int) -> int:
    """Analytic floating-point operations of one `DiT` forward of one sample, a multiply-add two.

    shape: latents `(c, t, h, w)`. words: text tokens. With n tokens, width d, MLP width m, context
    c, P numbers per patch and L blocks, in multiply-adds:
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


def summary(samples: Sequence[float]) -> dict:
    """Median, 95th percentile (linear between samples), mean and ends; and the samples."""
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


def summaries(calls: Sequence[dict[str, float]]) -> dict[str, dict]:
    """A summary of each key over calls."""
    return {key: summary([call[key] for call in calls]) for key in calls[0]}


def ratios(rows: dict[str, dict]) -> dict[str, dict]:
    """Denoise time of the teacher row of most steps over each student row's: of the medians, and
    between which ends the ratio lies within single turns. Empty without a teacher."""
    teachers = [name for name in rows if name.startswith("teacher")]
    if not teachers:
        return {}
    of = max(teachers, key=lambda name: rows[name]["steps"])
    slow = rows[of]["seconds"]["denoise"]
    found = {}
    for name in rows:
        if name.startswith("student"):
            fast = rows[name]["seconds"]["denoise"]
            pairs = [a / b for a, b in zip(slow["samples"], fast["samples"], strict=True)]
            ratio = slow["p50"] / fast["p50"]
            found[name] = {"of": of, "denoise": ratio, "low": min(pairs), "high": max(pairs)}
    return found
