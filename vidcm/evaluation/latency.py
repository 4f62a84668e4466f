"""Latency of a clip by stage, few steps beside many.

All rows are measured in one process and take turns, so that other load on the machine slows them
alike, and ratios are taken within a turn. `VideoPipeline` itself is timed, as users call it: the
device is synchronised at the end of every stage. Times are in seconds.
"""

import hashlib
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from vidcm.conditioning.prompts import check_prompts
from vidcm.errors import VidcmError
from vidcm.evaluation.cost import (
    NetworkTimer,
    attention_backends,
    flops_per_evaluation,
    speedups,
    summarize_calls,
    tokens_of,
)
from vidcm.evaluation.environment import machine
from vidcm.evaluation.rows import Row
from vidcm.media.clips import Clips
from vidcm.pipeline import VideoPipeline
from vidcm.store import read_card

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
    "peak_memory": "bytes; `process` is main memory since the start, all rows together; on a GPU "
    "`allocated` and `reserved` are a row's own, the codec in it",
    "cold": "a new process, files cached: `wall` from its start to the finished mp4; `start` until "
    "our first line runs, `load` until the models are in place, `first_call` to frames",
}
SCALE = 4  # factor by which `vidcm generate` enlarges pixels
_GENERATE = ("-m", "vidcm", "generate")


@dataclass(frozen=True)
class LatencyPlan:
    """Calls to measure.

    Attributes:
        prompt: of every clip.
        batch: clips per call.
        warmup: turns recorded apart, 1 or more.
        repeats: turns measured.
        cold: new processes per row.
        seed: of the first clip.
        threads: of the CPU; None leaves torch's own number.
    """

    prompt: str = "a woman with purple hair walks left"
    batch: int = 1
    warmup: int = 2
    repeats: int = 10
    cold: int = 0
    seed: int = 0
    threads: int | None = None

    def calls(self, rows: int) -> int:
        """Number of calls of the pipeline and of new processes."""
        return rows * (self.warmup + self.repeats + self.cold)


def measure_latency(
    checkpoint: str | Path,
    device: str,
    rows: Sequence[Row],
    plan: LatencyPlan,
    tick: Callable[[str], None] = lambda row: None,
) -> dict:
    """Measure rows of roles "student" and "teacher".

    Args:
        checkpoint: a bundled model or a pipeline folder.
        device: as `runtime.pick_device` takes it.
        rows: student and teacher rows.
        plan: number and kind of the calls.
        tick: called with the row's name before each call.

    Returns:
        All numbers, ready for JSON.

    Raises:
        UsageError: for a bad prompt or checkpoint.
        VidcmError: when a new process fails.
    """
    shell = dict(os.environ)  # new processes start from it, not from what loading adds
    load_average = [os.getloadavg()]
    check_prompts([plan.prompt])
    if plan.threads:
        torch.set_num_threads(plan.threads)
        shell["OMP_NUM_THREADS"] = str(plan.threads)
    pipe = VideoPipeline.from_pretrained(checkpoint, device=device)
    roles = sorted({row.role for row in rows})
    for role in roles:
        pipe.model(role)
    with tempfile.TemporaryDirectory(prefix="vidcm-bench-") as name:
        calls = _warm(pipe, rows, plan, Path(name), tick)
        cold = _cold(pipe, rows, plan, Path(name), shell, tick)
    cards = {part: read_card(pipe.part(part)) for part in ("codec", *roles)}
    recipe = {
        "device": pipe.device.type,
        "rows": [str(row) for row in rows],
        "models": {part: card["spec"] for part, card in cards.items()},
        "clip": {k: getattr(pipe.settings, k) for k in ("num_frames", "height", "width", "fps")},
        "guidance": {role: pipe.settings.of(role).guidance_scale for role in roles},
        "scale": SCALE,
        **{k: getattr(plan, k) for k in ("prompt", "batch", "seed", "warmup")},
    }
    measured = {str(row): _row_results(pipe, row, plan, calls[row]) for row in rows}
    for row, runs in cold.items():
        measured[str(row)]["cold"] = summarize_calls(runs)
    return {
        "definition": DEFINITION,
        "recipe_hash": hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()[:16],
        "recipe": recipe,
        "repeats": plan.repeats,
        "environment": {
            **machine(pipe.device),
            "load_average": [*load_average, os.getloadavg()],
            "checkpoint": str(checkpoint),
            "sha256": {part: card["sha256"] for part, card in cards.items()},
        },
        "rows": measured,
        "ratios": speedups(measured),
    }


def _warm(
    pipe: VideoPipeline, rows: Sequence[Row], plan: LatencyPlan, folder: Path, tick: Callable
) -> dict[Row, list[dict]]:
    """The calls of every row, in turns."""
    calls: dict[Row, list[dict]] = {row: [] for row in rows}
    for turn in range(plan.warmup + plan.repeats):
        first = turn % len(rows)  # no row is always the first, or always after the same one
        for row in [*rows[first:], *rows[:first]]:
            tick(str(row))
            calls[row].append(_once(pipe, row, plan, folder))
    return calls


def _once(pipe: VideoPipeline, row: Row, plan: LatencyPlan, folder: Path) -> dict[str, Any]:
    """Time one call and count its network's forwards."""
    gpu = pipe.device.type == "cuda"
    if gpu:
        torch.cuda.synchronize(pipe.device)
        torch.cuda.reset_peak_memory_stats(pipe.device)
    with NetworkTimer(pipe.model(row.role).backbone, pipe.device) as timer:
        began = time.perf_counter()
        clips = _generate(pipe, row, plan)
        generated = time.perf_counter()
        paths = clips.save(folder / "clip.mp4", scale=SCALE)
        ended = time.perf_counter()
    for path in paths:
        path.unlink()
    seconds = {**clips.seconds, "write": ended - generated, "dit_only": clips.seconds["denoise"]}
    seconds["latent_to_pixels"] = seconds["denoise"] + seconds["decode"]
    seconds["end_to_end"] = ended - began
    memory = {"process": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}
    if gpu:
        memory["allocated"] = torch.cuda.max_memory_allocated(pipe.device)
        memory["reserved"] = torch.cuda.max_memory_reserved(pipe.device)
    return {
        "seconds": {**seconds, "network": timer.seconds()},
        "memory": memory,
        "forwards": timer.forwards,
        "evaluations": timer.samples / plan.batch,
        "dtype": timer.dtype,
        "clips": hashlib.sha256(clips.frames.tobytes()).hexdigest(),
    }


def _generate(pipe: VideoPipeline, row: Row, plan: LatencyPlan) -> Clips:
    teacher = row.role == "teacher"
    return pipe(
        plan.prompt,
        num_inference_steps=row.num_inference_steps,
        seed=plan.seed,
        num_videos_per_prompt=plan.batch,
        use_teacher=teacher,
        batch_size=plan.batch,
    )


def _cold(
    pipe: VideoPipeline,
    rows: Sequence[Row],
    plan: LatencyPlan,
    folder: Path,
    shell: dict,
    tick: Callable,
) -> dict[Row, list[dict]]:
    """Each row in new processes, in turns: `vidcm generate` as a user starts it."""
    paths = [str(Path(__file__).parents[2]), shell.get("PYTHONPATH")]
    shell = {**shell, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    runs: dict[Row, list[dict]] = {}
    for row in [*rows] * plan.cold:
        tick(str(row))
        options = {
            "prompt": plan.prompt,
            "checkpoint": pipe.folder.resolve(),
            "steps": row.num_inference_steps,
            "seed": plan.seed,
            "num-clips": plan.batch,
            "device": pipe.device,
            "output": "cold.mp4",
        }
        words = [f"--{key}={value}" for key, value in options.items()]
        words += ["--json", "--overwrite", *(["--teacher"] if row.role == "teacher" else [])]
        run = _process([sys.executable, *_GENERATE, *words], shell, folder)
        runs.setdefault(row, []).append(run)
    return runs


def _process(command: list[str], shell: dict, folder: Path) -> dict[str, float]:
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "text": True}
    with tempfile.TemporaryFile("w+") as errors:
        began = time.perf_counter()
        with subprocess.Popen(command, env=shell, cwd=folder, stderr=errors, **pipes) as child:
            try:
                line = child.stdout.readline() if child.stdout else ""  # comes right after the mp4
                wall = time.perf_counter() - began
                child.wait()
            finally:
                child.kill()
        if child.returncode:
            errors.seek(0)
            last = (errors.read().strip().splitlines() or ["without a message"])[-1]
            raise VidcmError(f"a new process ended with code {child.returncode}: {last}")
    own = json.loads(line)["seconds"]
    first = own["text"] + own["denoise"] + own["decode"]
    return {"wall": wall, "start": wall - own.pop("total"), **own, "first_call": first}


def _row_results(pipe: VideoPipeline, row: Row, plan: LatencyPlan, calls: list[dict]) -> dict:
    """A row of the results, from its calls."""
    kept, last, model = calls[plan.warmup :], calls[-1], pipe.model(row.role)
    seconds = summarize_calls([call["seconds"] for call in kept])
    size = pipe.settings.size
    shape, words = pipe.codec.latent_shape(*size), len(model.encode([plan.prompt]).tokens[0])
    flops = flops_per_evaluation(model.backbone, shape, words)
    total, evaluations = seconds["end_to_end"]["p50"], last["evaluations"]
    work = flops * evaluations * plan.batch
    return {
        "steps": row.num_inference_steps,
        **{k: last[k] for k in ("evaluations", "forwards", "dtype")},
        "attention": attention_backends(lambda: _generate(pipe, Row(row.role, 1), plan)),
        "tokens": tokens_of(model.backbone, shape),
        "text_tokens": words,
        "parameters": sum(p.numel() for p in model.backbone.parameters()),
        "flops_per_evaluation": flops,
        "gflops_per_second": work / seconds["network"]["p50"] / 1e9,
        "realtime_factor": plan.batch * size[0] / pipe.settings.fps / total,
        "clips_per_second": plan.batch / total,
        "seconds": seconds,
        "warmup": summarize_calls([call["seconds"] for call in calls[: plan.warmup]]),
        "peak_memory": {k: max(call["memory"][k] for call in kept) for k in last["memory"]},
        "clips_sha256": last["clips"],
    }
