"""Measures how long a save holds up a run of some 80 million parameters, with and without a thread.

    python tests/checkpoint_trial.py FOLDER

One process, fp32, a step of matrix products on small batches; FOLDER is where checkpoints go and is
left empty. Ways alternate. `docs/results/checkpoints.json` is written.
"""

import json
import os
import shutil
import statistics
import sys
import time
from pathlib import Path

import torch
from torch import Tensor, nn

REPO = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(REPO), str(REPO / "tests")]

from train.ranks import Plain  # noqa: E402

from vidcm.config import OptimizerConfig, TrainConfig  # noqa: E402
from vidcm.data.batch import Batch, MicroBatch  # noqa: E402
from vidcm.evaluation.environment import machine  # noqa: E402
from vidcm.files import write_text  # noqa: E402
from vidcm.objectives.base import Loss  # noqa: E402
from vidcm.rng import SampleRng  # noqa: E402
from vidcm.train.checkpoint_writer import CheckpointWriter, state_size  # noqa: E402
from vidcm.train.engine import LocalEngine, TrainStep  # noqa: E402

RESULT = REPO / "docs" / "results" / "checkpoints.json"
WIDTH, LAYERS, BATCH = 2048, 20, 64
ROUNDS, STEPS = 4, 12  # saves of each way; steps after each


class Layers(nn.Module):
    """Linear layers with residual connections."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(LAYERS))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = x + layer(nn.functional.silu(x)) / LAYERS
        return x


def loss(model: nn.Module, batch: Batch, progress: float, rng: SampleRng) -> Loss:
    assert batch.latents is not None
    x = batch.latents.flatten(1)
    return Loss((model(x) - x.sin()).square().mean(), {})


def main(folder: Path) -> None:
    torch.manual_seed(0)
    model, objective = Layers(), Plain(loss)
    names = dict.fromkeys(("model", "objective", "data"), {"name": "trial"})
    config = TrainConfig(**names, output=str(folder), steps=1000, optimizer=OptimizerConfig())
    size = state_size(model, objective)
    engine = LocalEngine(TrainStep(model, objective, torch.device("cpu")), config)
    latents = torch.randn(BATCH, WIDTH, 1, 1, 1)
    part = MicroBatch(Batch([""] * BATCH, latents=latents), 0, list(range(BATCH)))
    done = 0

    def steps(count: int) -> float:
        """Train; returns seconds a step."""
        nonlocal done
        start = time.perf_counter()
        for _ in range(count):
            engine.step([part], 0.0, 1e-4, done)
            done += 1
        return (time.perf_counter() - start) / count

    steps(3)
    found: dict[str, dict[str, list[float]]] = {
        way: {"blocked": [], "step_after": [], "save_and_steps": []}
        for way in ("waiting", "in a thread")
    }
    calm = steps(STEPS)
    for turn in range(ROUNDS + 1):
        for way, numbers in found.items():
            background = way == "in a thread"
            writer = CheckpointWriter(folder, {}, keep=1, size=size if background else None)
            start = time.perf_counter()
            writer.save(done, engine.state(copy=background), copied=background)
            blocked = time.perf_counter() - start
            step = steps(STEPS)
            writer.wait()
            whole = time.perf_counter() - start
            if turn:  # the first of each is not counted
                numbers["blocked"].append(blocked)
                numbers["step_after"].append(step)
                numbers["save_and_steps"].append(whole)
    shutil.rmtree(folder / "checkpoints")
    result = {
        "command": "python tests/checkpoint_trial.py FOLDER",
        **machine(torch.device("cpu")),
        "load_average": os.getloadavg(),
        "parameters": sum(p.numel() for p in model.parameters()),
        "checkpoint_bytes": size,
        "step_without_saving": calm,
        "ways": {
            way: {f"{k}_median": statistics.median(v) for k, v in numbers.items()} | numbers
            for way, numbers in found.items()
        },
    }
    write_text(RESULT, json.dumps(result, indent=1) + "\n")
    print(json.dumps(result["ways"], indent=1))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
