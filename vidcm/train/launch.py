"""From a config to a finished run: devices, engine, task, loop, export."""

import os
import sys
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from vidcm.config import TrainConfig, to_dict
from vidcm.data.loader import positions
from vidcm.diffusion.denoiser import Denoiser
from vidcm.errors import UsageError
from vidcm.objectives.base import Objective
from vidcm.runtime import fast_cpu, pick_device
from vidcm.store import save_model
from vidcm.train import precision
from vidcm.train.engine import Engine, LocalEngine, TrainStep
from vidcm.train.loop import Export, Task, checkpoint_writer, train
from vidcm.train.roles import assemble
from vidcm.train.stop_signal import StopSignal
from vidcm.train.tasks import make_task
from vidcm.train.watchdog import Watchdog, WatchedEngine


def launch(config: TrainConfig, device_name: str = "auto", stop: StopSignal | None = None) -> int:
    """Train; under the `deepspeed` launcher over its ranks, else in this process.

    Args:
        config: Of the run.
        device_name: "auto", "cpu", "cuda", ...
        stop: Knows of signals since the start of the process; by default they count from here on.

    Returns:
        The exit code.

    Raises:
        UsageError: The config does not fit the machine or contradicts itself.
    """
    fast_cpu()
    torch.manual_seed(config.seed)
    distributed = "RANK" in os.environ
    if config.zero and not distributed:
        raise UsageError(
            f"zero={config.zero} needs ranks to share; start with: deepspeed --num_gpus N "
            "tools/train.py"
        )
    ranks = int(os.environ.get("WORLD_SIZE", "1")) if distributed else 1
    if ranks % config.sequence_parallel:
        raise UsageError(
            f"sequence_parallel={config.sequence_parallel} does not divide the {ranks} "
            f"rank{'s' * (ranks > 1)}; start with: deepspeed --num_gpus N tools/train.py"
        )
    # Refuses a batch that does not divide.
    groups = ranks // config.sequence_parallel
    positions(0, config.batch_size, groups * config.gradient_accumulation_steps, 0)
    device = pick_device(device_name)
    if distributed and device.type == "cuda":
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(device)
    config = replace(config, precision=precision.resolve(config.precision, device))
    stage = config.zero or int(config.precision == "bf16") if distributed else 0
    if stage and config.optimizer.name != "adamw":
        raise UsageError(
            f"optimizer.name is {config.optimizer.name}, and ZeRO {stage} shards the state of "
            "adamw alone; use adamw, or zero=0 with precision=fp32"
        )
    if int(os.environ.get("RANK", "0")) == 0:
        print(f"training on {device} in {config.precision}")
    if distributed:
        with ExitStack() as stack:
            return _on_ranks(config, device, stop or stack.enter_context(StopSignal()))
    task = make_task(config, device)
    engine = assemble(task.model, task.objective, config, device, LocalEngine)
    return train(config, task, engine, _exporter(config, task), stop=stop)


def _on_ranks(config: TrainConfig, device: torch.device, stop: StopSignal) -> int:
    """Train as one of the ranks, which meet before anything is loaded."""
    from vidcm.train.deepspeed_setup import import_deepspeed, meet, reduce_max

    meet(import_deepspeed(device), config.rank_timeout, stop)
    with Watchdog(dist.get_rank(), dist.get_world_size(), config.rank_timeout) as watchdog:
        with watchdog.call("the start"):
            if code := reduce_max(stop.code, device):
                stop.code = code
                if dist.get_rank() == 0:
                    text = "stopped before the first step; the same command begins it"
                    print(f"{config.output}: {text}", file=sys.stderr)
                reduce_max(0, device)
                return stop.code
            task = make_task(config, device)
            writer = checkpoint_writer(config, task)
            engine = assemble(task.model, task.objective, config, device, start_on_ranks)
        watchdog.last_act = writer.finish
        watched = WatchedEngine(engine, watchdog)
        code = train(config, task, watched, _exporter(config, task), writer, stop)
        watched.all_reduce_max(0)  # rank 0 has the store: it may not leave before all stop
    dist.destroy_process_group()
    return code


def _exporter(config: TrainConfig, task: Task) -> Export:
    def export(weights: dict[str, Tensor], folder: Path, step: int) -> None:
        metadata = {
            "config": to_dict(config),
            "step": step,
            **student_settings(task.objective, task.model),
        }
        save_model(folder, exported_spec(config, task.objective), weights, metadata=metadata)

    return export


def exported_spec(config: TrainConfig, objective: Objective) -> dict[str, Any]:
    """Return the spec of the model folder: the config's, with the kinds of given frames.

    The folder of a public model is absolute, since the run may be read from anywhere.
    """
    spec, kinds = dict(config.model), sorted(objective.given_mask.kinds)
    if kinds:
        spec["given_frames"] = kinds
    if base := spec.get("base"):
        spec["base"] = str(Path(base).resolve())
    return spec


def student_settings(objective: Objective, model: nn.Module) -> dict[str, Any]:
    """Return the settings of a student that `pipeline.json` takes over; {} of other models."""
    if objective.sampling is None:
        return {}
    facts = {"guidance_range": objective.guidance_range, **objective.sampling}
    own_times = facts.keys() & {"timesteps", "lowest_sigma"}
    if isinstance(model, Denoiser) and model.shift is not None and not own_times:
        facts["shift"] = model.shift
    return {"student": facts}


def start_on_ranks(step: TrainStep, config: TrainConfig, averaged: bool) -> Engine:
    """Build one network's engine over the ranks of a launcher; see `assemble`."""
    from vidcm.train.deepspeed import DeepSpeedEngine

    return DeepSpeedEngine(step, config, averaged)
