"""Peaks of memory that torch's allocator sees, of real steps of small denoisers.

`peaks.py FOLDER` runs on a rank of a launcher: the config in `FOLDER/config.json`, its peak to
`FOLDER/peak-RANK.json`.
"""

import gc
import json
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import tiny
import torch
from torch.profiler import ProfilerActivity, profile

from vidcm.config import TrainConfig
from vidcm.data.batch import Batch, MicroBatch
from vidcm.data.loader import positions
from vidcm.schema import from_dict
from vidcm.train.denoiser_task import denoiser_parts
from vidcm.train.engine import Engine, LocalEngine
from vidcm.train.launch import start_on_ranks
from vidcm.train.roles import Start, assemble
from vidcm.train.setup import Models
from vidcm.train.tasks import make_model

CPU, CLIP = torch.device("cpu"), (9, 32, 48)


def config(models: dict[str, str], **changes: Any) -> TrainConfig:
    """A run of consistency tuning of a student of two blocks."""
    plain = dict(
        model=tiny.denoiser(guidance_embed=True, hidden_size=128, num_layers=2),
        objective={"name": "consistency_tuning", "guidance_range": [1.0, 2.0]},
        data={"name": "latents", "path": "none"},
        output="none",
        steps=10,
        batch_size=4,
        codec=models["codec"],
        teacher=models["teacher"],
    )
    return TrainConfig(**plain | changes)


def peak(work: Callable[[], Any]) -> int:
    """The most bytes that were allocated at once during `work`, of those that it allocates."""
    # What an earlier work left in cycles would be freed during this one, and taken off.
    gc.collect()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        kept = work()
    events = [e for e in seen.profiler.kineto_results.events() if e.name() == "[memory]"]
    now = most = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        now += event.nbytes()
        most = max(most, now)
    del kept
    return most


def steps(config: TrainConfig, start: Start, clip: Sequence[int] = CLIP) -> Engine:
    """Build a run and take its first steps, two of the student with its optimizer's state."""
    model = make_model(config, CPU, Models())
    found = denoiser_parts(config, model, CPU, Models())
    engine = assemble(model, found.objective, config, CPU, start)
    gc.collect()  # what DeepSpeed's start leaves in cycles would be freed at any time
    shape, count = found.codec.latent_shape(*clip), config.gradient_accumulation_steps
    prompts = [" ".join(["word"] * tiny.TEXT["max_words"])]
    for step in range(2 * found.objective.student_update_freq + 1):
        parts = []
        for part in range(count):
            places = positions(0, config.batch_size, engine.world * count, part)
            latents = torch.randn(len(places), *shape)
            parts.append(MicroBatch(Batch(prompts * len(places), latents=latents), 0, places))
        engine.step(parts, 0.9, 1e-3, step)
    engine.found = found  # type: ignore[attr-defined]  # so that it lives as long
    return engine


def of_a_run(config: TrainConfig, clip: Sequence[int] = CLIP) -> int:
    """The peak of a run in one process."""
    return peak(lambda: steps(config, LocalEngine, clip))


def of_ranks(config: TrainConfig, folder: Path) -> int:
    """The peak of two ranks, the lower one of both and of two launches.

    By chance, gloo's threads hold a buffer of gradients for longer than its collective takes.
    """
    (folder / "config.json").write_text(json.dumps(asdict(config)), "utf-8")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    launcher = ["torch.distributed.run", "--nproc_per_node=2", f"--master_port={port}"]
    found = []
    for _ in range(2):
        subprocess.run([sys.executable, "-m", *launcher, __file__, str(folder)], check=True)
        found += [json.loads((folder / f"peak-{r}.json").read_text("utf-8")) for r in (0, 1)]
    return min(found)


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    chosen = from_dict(TrainConfig, json.loads((folder / "config.json").read_text("utf-8")), "")
    most = peak(lambda: steps(chosen, start_on_ranks))
    rank = torch.distributed.get_rank()
    (folder / f"peak-{rank}.json").write_text(json.dumps(most), "utf-8")
    torch.distributed.destroy_process_group()
