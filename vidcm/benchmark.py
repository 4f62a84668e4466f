"""Latency: where the time of a clip goes, few steps beside many, and one measurement to another.

All rows are measured in one process and in turns, so that whatever else the machine does slows them
alike, and ratios are taken within a turn. What is timed is `VideoPipeline` itself, as users call it:
the device is drained at the end of every stage. Times are in seconds.
"""

import hashlib
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from vidcm.errors import UsageError, VidcmError

if TYPE_CHECKING:  # comparing and showing numbers measured before needs no torch
    import torch
    from torch import nn

    from vidcm.pipeline import VideoPipeline

SCHEMA = 1
STAGES = ("text", "denoise", "decode", "write")
TOTALS = ("dit_only", "latent_to_pixels", "end_to_end")
DEFINITION = {
    "text": "prompt to text tokens, the guidance scale among them",
    "denoise": "drawing noise and every network evaluation, to clean latents",
    "decode": "latents to uint8 frames in main memory",
    "write": "frames to a finished mp4 in a temporary folder, pixels enlarged as `scale` says",
    "dit_only": "denoise",
    "latent_to_pixels": "denoise and decode",
    "end_to_end": "one clock from the prompt to the finished mp4, models loaded",
    "network": "inside the network's forwards: CUDA events on a GPU, the clock on a CPU",
    "evaluations": "counted forwards of the network per clip; a guided step counts two",
    "flops": "two per multiply-add of every matrix product and attention, per evaluation",
    "cold": "a new process, files cached: `wall` from its start to the finished mp4; `start` until "
    "our first line runs, `load` until the models are in place, `first_call` to frames",
}
SCALE = 4  # what tools/generate.py enlarges pixels by
RELATIVE, ABSOLUTE = 0.08, 0.005  # a change counts beyond both: share of the older time, seconds
_COLD = "import sys; from vidcm.cli.generate import main; sys.exit(main(sys.argv[1:]))"


class Row(NamedTuple):
    """role: "student" or "teacher". steps: of its sampler."""

    role: str
    steps: int

    def __str__(self) -> str:
        return f"{self.role}-{self.steps}"


@dataclass(frozen=True)
class Plan:
    """What is made and how often: `warmup` turns (1 or more) are kept apart from the `repeats`;
    `cold` is a number of new processes per row. threads: None leaves torch's own number."""

    prompt: str = "a woman with purple hair walks left"
    batch: int = 1
    warmup: int = 2
    repeats: int = 10
    cold: int = 0
    seed: int = 0
    threads: int | None = None

    def turns(self, rows: int) -> int:
        """Calls of the pipeline or of processes in all."""
        return rows * (self.warmup + self.repeats + self.cold)


def measure(
    checkpoint: str | Path, device: str, rows: Sequence[Row], plan: Plan,
    tick: Callable[[str], None] = lambda row: None,
) -> dict:
    """Everything that the JSON holds. tick: told the row before each call.

    Raises UsageError for a bad prompt or checkpoint, VidcmError when a new process fails."""
    import torch

    from vidcm.pipeline import VideoPipeline, check_prompts

    shell = dict(os.environ)  # new processes start from it, not from what loading adds
    load_average = [os.getloadavg()]
    check_prompts([plan.prompt])
    if plan.threads:
        torch.set_num_threads(plan.threads)
        shell["OMP_NUM_THREADS"] = str(plan.threads)
    pipe = VideoPipeline.from_pretrained(checkpoint, device)
    roles = sorted({row.role for row in rows})
    backends = {role: attention_backends(pipe, role, plan) for role in roles}
    with tempfile.TemporaryDirectory(prefix="vidcm-bench-") as name:
        calls = _warm(pipe, rows, plan, Path(name), tick)
        cold = _cold(pipe, rows, plan, Path(name), shell, tick)
    cards = {part: read_card(pipe.folder / part) for part in ("codec", *roles)}
    recipe = {
        "device": pipe.device.type,
        "rows": [str(row) for row in rows],
        "models": {part: card["spec"] for part, card in cards.items()},
        "clip": {k: pipe.settings[k] for k in ("frames", "height", "width", "fps")},
        "guidance": {role: pipe.settings[role]["guidance"] for role in roles},
        "scale": SCALE,
        **{k: getattr(plan, k) for k in ("prompt", "batch", "seed", "warmup")},
    }
    made = {str(row): _facts(pipe, row, plan, calls[row]) for row in rows}
    for row in rows:
        made[str(row)]["attention"] = backends[row.role]
        if plan.cold:
            made[str(row)]["cold"] = summaries(cold[row])
    return {
        "schema_version": SCHEMA,
        "definition": DEFINITION,
        "recipe_hash": hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()[:16],
        "recipe": recipe,
        "repeats": plan.repeats,
        "environment": {
            **_machine(pipe.device),
            "load_average": [*load_average, os.getloadavg()],
            "checkpoint": str(checkpoint),
            "sha256": {part: card["sha256"] for part, card in cards.items()},
        },
        "rows": made,
        "ratios": ratios(made),
    }


def _warm(
    pipe: "VideoPipeline", rows: Sequence[Row], plan: Plan, folder: Path, tick: Callable
) -> dict[Row, list[dict]]:
    """The calls of every row, in turns."""
    calls: dict[Row, list[dict]] = {row: [] for row in rows}
    for turn in range(plan.warmup + plan.repeats):
        first = turn % len(rows)  # no row is always the first, or always after the same one
        for row in [*rows[first:], *rows[:first]]:
            tick(str(row))
            calls[row].append(_once(pipe, row, plan, folder))
    return calls


def _once(pipe: "VideoPipeline", row: Row, plan: Plan, folder: Path) -> dict[str, Any]:
    """One call, clocked, with what its network did."""
    import torch

    gpu = pipe.device.type == "cuda"
    if gpu:
        torch.cuda.synchronize(pipe.device)
        torch.cuda.reset_peak_memory_stats(pipe.device)
    with Watch(pipe.model(row.role).backbone, pipe.device) as watch:
        began = time.perf_counter()
        clips = _make(pipe, row, plan)
        shown = time.perf_counter()
        paths = clips.save(folder / "clip.mp4", scale=SCALE)
        ended = time.perf_counter()
    for path in paths:
        path.unlink()
    seconds = {**clips.seconds, "write": ended - shown, "dit_only": clips.seconds["denoise"]}
    seconds["latent_to_pixels"] = seconds["denoise"] + seconds["decode"]
    seconds["end_to_end"] = ended - began
    memory = {"resident": _peak_resident()}
    if gpu:
        memory["allocated"] = torch.cuda.max_memory_allocated(pipe.device)
        memory["reserved"] = torch.cuda.max_memory_reserved(pipe.device)
    return {
        "seconds": {**seconds, "network": watch.seconds()},
        "memory": memory,
        "forwards": watch.forwards,
        "evaluations": watch.samples / plan.batch,
        "dtype": watch.dtype,
        "clips": hashlib.sha256(clips.frames.tobytes()).hexdigest(),
    }


def _make(pipe: "VideoPipeline", row: Row, plan: Plan) -> "Clips":
    teacher = row.role == "teacher"
    return pipe(
        plan.prompt, steps=row.steps, seed=plan.seed, num_clips=plan.batch, teacher=teacher
    )


class Watch:
    """While entered, counts a network's forwards and their samples, and times them: by CUDA events
    on a GPU, which do not stop it, else by the clock."""

    def __init__(self, network: "nn.Module", device: "torch.device"):
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
        import torch

        if self.gpu is None:
            self._marks.append(time.perf_counter())
        else:
            event = torch.cuda.Event(enable_timing=True)
            event.record(torch.cuda.current_stream(self.gpu))
            self._marks.append(event)

    def _after(self, network: "nn.Module", inputs: tuple, output: "torch.Tensor") -> None:
        self._mark()
        self.forwards += 1
        self.samples += len(output)
        self.dtype = str(output.dtype).removeprefix("torch.")


def attention_backends(pipe: "VideoPipeline", role: str, plan: Plan) -> list[str]:
    """The kernels that torch chooses for the attention of one step: text tower and backbone."""
    import torch
    from torch.nn.attention import SDPBackend
    from torch.overrides import TorchFunctionMode

    seen = set()

    class Listen(TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            if func is torch.nn.functional.scaled_dot_product_attention:
                seen.add(SDPBackend(torch._fused_sdp_choice(*args, **kwargs or {})).name.lower())
            return func(*args, **kwargs or {})

    with Listen():
        _make(pipe, Row(role, 1), plan)
    return sorted(seen)


def _cold(
    pipe: "VideoPipeline", rows: Sequence[Row], plan: Plan, folder: Path, shell: dict, tick: Callable
) -> dict[Row, list[dict]]:
    """Each row in new processes, in turns: `tools/generate.py` as a user starts it."""
    paths = [str(Path(__file__).parents[1]), shell.get("PYTHONPATH")]
    shell = {**shell, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    runs: dict[Row, list[dict]] = {row: [] for row in rows}
    for row in [row for _ in range(plan.cold) for row in rows]:
        tick(str(row))
        options = {
            "prompt": plan.prompt, "checkpoint": pipe.folder.resolve(), "steps": row.steps,
            "seed": plan.seed, "num-clips": plan.batch, "device": pipe.device, "output": "cold.mp4",
        }
        words = [f"--{key}={value}" for key, value in options.items()]
        words += ["--json", "--overwrite", *(["--teacher"] if row.role == "teacher" else [])]
        runs[row].append(_process([sys.executable, "-c", _COLD, *words], shell, folder))
    return runs


def _process(command: list[str], shell: dict, folder: Path) -> dict[str, float]:
    with tempfile.TemporaryFile("w+") as said:
        began = time.perf_counter()
        child = subprocess.Popen(
            command, env=shell, cwd=folder, stdout=subprocess.PIPE, stderr=said, text=True
        )
        try:
            line = child.stdout.readline() if child.stdout else ""  # it comes right after the mp4
            wall = time.perf_counter() - began
        finally:
            if not sys.exc_info()[0]:
                child.wait()
            child.kill()
        if child.returncode:
            said.seek(0)
            last = (said.read().strip().splitlines() or ["it said nothing"])[-1]
            raise VidcmError(f"a new process ended with code {child.returncode}: {last}")
    own = json.loads(line)["seconds"]
    first = own["text"] + own["denoise"] + own["decode"]
    return {"wall": wall, "start": wall - own.pop("total"), **own, "first_call": first}


def _tokens(backbone: "nn.Module", shape: Sequence[int]) -> int:
    spans = zip(shape[1:], backbone.patch, strict=True)
    total = 1
    for span, patch in spans:
        total *= span // patch
    return total


def flops_per_evaluation(dit: "nn.Module", shape: Sequence[int], words: int) -> int:
    """Analytic floating-point operations of one `DiT` forward of one sample, a multiply-add two.

    shape: latents `(c, t, h, w)`. words: text tokens. With n tokens, width d, MLP width m, context
    c, P numbers per patch and L blocks, in multiply-adds:
        patches in and out   2 n P d
        a block              4 n d^2 + 2 n^2 d  (self-attention)
                             2 n d^2 + 2 words c d + 2 n words d  (cross-attention)
                             2 n d m  (MLP)
        once                 each scalar embedding f d + d^2, pooled text c d, modulations 11 d^2
    Norms, rotations and activations, a few per cent of a small network, are left out.
    """
    n, d, patch = _tokens(dit, shape), dit.width, dit.embed.in_features
    context, hidden = dit.pool.in_features, dit.blocks[0].mlp[0].out_features
    block = 6 * n * d**2 + 2 * n**2 * d + 2 * words * context * d + 2 * n * words * d
    block += 2 * n * d * hidden
    scalars = [e.map[0].in_features * d + d**2 for e in (dit.time, dit.guidance) if e is not None]
    once = sum(scalars) + context * d + 11 * d**2
    return 2 * (2 * n * patch * d + len(dit.blocks) * block + once)


def summary(samples: Sequence[float]) -> dict:
    """Median, 95th percentile (linear between samples), mean and ends; and the samples."""
    ranked = sorted(samples)
    place = 0.95 * (len(ranked) - 1)
    low = ranked[int(place)]
    high = ranked[min(int(place) + 1, len(ranked) - 1)]
    return {
        "p50": statistics.median(ranked), "p95": low + (place % 1) * (high - low),
        "mean": statistics.fmean(ranked), "min": ranked[0], "max": ranked[-1],
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


def compare():
    pass
