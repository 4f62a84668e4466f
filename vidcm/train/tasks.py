"""From a config to a task: the model with its first weights, and the task that trains it."""

from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import nn

from vidcm.config import TrainConfig
from vidcm.errors import UsageError
from vidcm.objectives.base import Objective
from vidcm.registry import build, lookup
from vidcm.train import lora
from vidcm.train.loop import Task
from vidcm.train.setup import Models, apply_memory_options


def make_task(config: TrainConfig, device: torch.device) -> Task:
    """Build everything that a config names.

    Raises:
        UsageError: The parts do not fit together.
    """
    model = make_model(config, device, Models())
    data = build("data", config.data, batch_size=config.batch_size)
    task: Task = lookup("task_builder", config.model["name"])(config, model, data, device)
    if config.lora:
        task = replace(task, merge=partial(lora.merge, config=config.lora))
    return task


def make_model(config: TrainConfig, device: torch.device, models: Models) -> Any:
    """Build the network that is trained, with its first weights. Raises as `make_task`."""
    model = models.build(config.model)
    check_objective(model, config)
    if config.start:
        models.start(model, config.start)
    if config.init_text:
        models.start_text(model, config.init_text)
    if config.lora:
        lora.adapt(model, config.lora)
    apply_memory_options(model.to(device), config)
    return model


def check_objective(model: nn.Module, config: TrainConfig) -> None:
    """Raises UsageError where the objective is for other models, or takes no teacher."""
    objective: type[Objective] = lookup("objective", config.objective.get("name", ""))
    name = config.objective["name"]
    if not isinstance(model, objective.trains):
        raise UsageError(
            f"objective {name} trains a {objective.trains.__name__}, and model "
            f"{config.model['name']} is a {type(model).__name__}; choose an objective for it, or "
            "another model"
        )
    if config.teacher is not None and not objective.uses_teacher:
        raise UsageError(f"objective {name} takes no teacher; leave out teacher: {config.teacher}")
