"""From a config to a finished run: devices, engine, task, loop, export."""

import os
from pathlib import Path

import torch
from torch import Tensor

from vidcm.config import TrainConfig
from vidcm.data.loader import positions
from vidcm.diffusion.given_frames import kinds_of_objective
from vidcm.errors import UsageError
from vidcm.runtime import fast_cpu, pick_device
from vidcm.store import save_model
from vidcm.train.engine import Engine, LocalEngine, TrainStep
from vidcm.train.loop import train
from vidcm.train.roles import assemble
from vidcm.train.tasks import make_task


def launch(config: TrainConfig, device_name: str = "auto") -> int:
    """Train; under the `deepspeed` launcher over its ranks, else in this process."""
    fast_cpu()
    torch.manual_seed(config.seed)
    distributed = "RANK" in os.environ
    if config.zero and not distributed:
        raise UsageError(
            f"zero={config.zero} needs ranks to share; start with: deepspeed --num_gpus N tools/train.py"
        )
    ranks = int(os.environ.get("WORLD_SIZE", "1")) if distributed else 1
    positions(
        0, config.batch_size, ranks * config.gradient_accumulation_steps, 0
    )  # refuses what does not divide
    device = pick_device(device_name)
    if config.precision == "bf16" and device.type == "cpu":
        raise UsageError(
            "precision bf16 needs a GPU (on CPUs it is slower than fp32); set precision=fp32"
        )
    if distributed and device.type == "cuda":
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(device)
    task = make_task(config, device)
    start = start_on_ranks if distributed else start_alone
    engine = assemble(task.model, task.objective, config, device, start)

    def export(weights: dict[str, Tensor], folder: Path, metadata: dict) -> None:
        kinds = kinds_of_objective(config.objective)
        spec = config.model | ({"given_frames": kinds} if kinds else {})
        save_model(folder, spec, weights, metadata=metadata)

    code = train(config, task, engine, export)
    if distributed:
        torch.distributed.destroy_process_group()
    return code


def start_on_ranks(step: TrainStep, config: TrainConfig, averaged: bool) -> Engine:
    """One network's engine over the ranks of a launcher; see `assemble`."""
    from vidcm.train.deepspeed import DeepSpeedEngine

    return DeepSpeedEngine(step, config, averaged)


def start_alone(step: TrainStep, config: TrainConfig, averaged: bool) -> Engine:
    """One network's engine in this process; see `assemble`."""
    ema_decay = config.ema_decay if averaged else None
    return LocalEngine(step, config.optimizer, ema_decay=ema_decay, precision=config.precision)
