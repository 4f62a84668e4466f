"""One optimizer step, in one process: forward and backward over micro-batches, clip, update, EMA.

`vidcm.train.deepspeed` has the same engine over DeepSpeed ranks; the loop cannot tell them apart.
"""

import copy
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from vidcm.config import TrainConfig
from vidcm.data.batch import MicroBatch
from vidcm.objectives.base import STUDENT, Objective
from vidcm.rng import SampleRng
from vidcm.train.optimizers import make_optimizer


@dataclass
class StepReport:
    """What a step did.

    Attributes:
        loss: Mean over the global batch.
        logs: Means of the objective's logs; tensors wait on the device until a line is written.
        grad_norm: Before clipping.
        applied: False when a value was not finite and the step was skipped.
        role: The network that was trained.
    """

    loss: float
    logs: Mapping[str, float | Tensor]
    grad_norm: float
    applied: bool
    role: str = STUDENT


class Engine(Protocol):
    """Trains a network. All methods are collective: every rank calls them, in the same order.

    Attributes:
        rank: Of this process.
        world: Number of processes.
        frozen: sha256 of the tensors that are not trained, on rank 0; "" if there are none.
    """

    rank: int
    world: int
    frozen: str

    def step(
        self, parts: Sequence[MicroBatch], progress: float, lr: float, step: int
    ) -> StepReport:
        """Update once, or not at all when a loss or gradient is not finite on any rank.

        Args:
            parts: This rank's parts of the global batch.
            progress: Share of the run that is over.
            lr: Learning rate of the student.
            step: Number of the step in the run; it determines whose turn it is.

        Returns:
            The same report on every rank.
        """
        ...

    def weights(self, *, ema: bool) -> dict[str, Tensor]:
        """Return the full state dict on rank 0's CPU, empty elsewhere; trained tensors are fp32."""
        ...

    def state(self, *, copy: bool = True) -> dict:
        """Return the state of an exact resume on rank 0, empty elsewhere.

        It has tensors and plain data; frozen tensors are left out. Engines write one format, so
        that a run may resume in another.

        Args:
            copy: The state is on the CPU and stays as it is while training goes on. Without, it may
                hold the tensors that are trained, which saves memory.
        """
        ...

    def load(self, state: dict) -> None:
        """Restore what `state` returned; every rank gets all of it."""
        ...

    def all_reduce_max(self, value: int) -> int:
        """Return the largest of the ranks' values; also a barrier."""
        ...


class TrainStep(nn.Module):
    """Model and objective as one module, so that wrappers see every forward of a step.

    Returns the loss and the logs as plain tensors, which a wrapper can hook.

    Args:
        model: The network that is trained.
        objective: Its loss. A target network starts as a copy of the model.
        device: Of the model.
    """

    def __init__(self, model: nn.Module, objective: Objective, device: torch.device):
        super().__init__()
        self.model, self.objective, self.device = model, objective, device
        self.bf16 = False  # autocast; the engine sets it
        if objective.target:
            objective.target.start(model)
        named = dict(model.named_parameters())
        frozen = {n for n, p in named.items() if not p.requires_grad}
        self.saved = set(model.state_dict()) - frozen

    def forward(self, part: MicroBatch, progress: float) -> tuple[Tensor, dict[str, Tensor]]:
        rng = SampleRng(part.seed, part.positions, self.device)
        batch = part.batch.to(self.device)
        # No cache: before torch 2.11, a weight that is cast under no_grad first, as by a target, is
        # kept so for the forward that follows and gets no gradient (pytorch#158232).
        with torch.autocast(
            self.device.type, torch.bfloat16, enabled=self.bf16, cache_enabled=False
        ):
            loss = self.objective(self.model, batch, progress, rng)
        return loss.total, loss.logs

    def before_step(self, progress: float) -> None:
        """Let the objective act before an update, as on its target network."""
        self.objective.before_step(self.model, progress)

    def target_state(self) -> dict:
        """Return the target network's part of a checkpoint, {} without one."""
        target = self.objective.target
        return {"target": target.state(self.saved)} if target else {}

    def load_target(self, state: dict) -> None:
        if self.objective.target:
            self.objective.target.load(state["target"])


def mean_logs(parts: Iterable[Mapping[str, float | Tensor]]) -> dict[str, float]:
    """Return the mean of each name over the parts that have it; NaN counts as not having it."""
    values: dict[str, list[float]] = {}
    for part in parts:
        for name, value in part.items():
            if (number := float(value)) == number:
                values.setdefault(name, []).append(number)
    return {name: sum(v) / len(v) for name, v in values.items()}


def frozen_hash(model: nn.Module) -> str:
    """Return the sha256 of the parameters that are not trained, "" if there are none."""
    frozen = {n: p for n, p in model.named_parameters() if not p.requires_grad}
    total = hashlib.sha256()
    for name in sorted(frozen):
        total.update(name.encode())
        values = frozen[name].detach().cpu().contiguous().reshape(-1)
        total.update(values.view(torch.uint8).numpy().data)
    return total.hexdigest() if frozen else ""


class LocalEngine:
    """The engine of one process, on a CPU or one GPU; bf16 is autocast over fp32 weights.

    Args:
        step: Model and objective.
        config: Its optimizer, ema_decay and precision are used.
        averaged: Keep an average of the weights.
    """

    rank, world = 0, 1

    def __init__(self, step: TrainStep, config: TrainConfig, averaged: bool = True):
        self.module, self.config = step, config
        step.bf16 = config.precision == "bf16"
        self.optimizer = make_optimizer(step, config.optimizer)
        self.parameters = {n: p for n, p in step.model.named_parameters() if p.requires_grad}
        self.average = {n: p.detach().clone() for n, p in self.parameters.items() if averaged}
        self.frozen = frozen_hash(step.model)

    def step(
        self, parts: Sequence[MicroBatch], progress: float, lr: float, step: int
    ) -> StepReport:
        self.module.before_step(progress)
        self.optimizer.zero_grad()
        each = []
        for part in parts:
            loss, logs = self.module(part, progress)
            (loss / len(parts)).backward()
            each.append({"loss": loss.detach(), **logs})
        loss = torch.stack([x.pop("loss") for x in each]).mean()
        clip = self.config.optimizer.max_grad_norm
        norm = nn.utils.clip_grad_norm_(self.parameters.values(), clip)
        total, size = torch.stack([loss.float(), norm.float()]).tolist()  # the one wait of a step
        applied = _finite(total) and _finite(size)
        if applied:
            for group in self.optimizer.param_groups:
                group["lr"] = lr
            self.optimizer.step()
            self._update_average()
        return StepReport(total, _means(each), size, applied)

    @torch.no_grad()
    def _update_average(self) -> None:
        if self.average:
            current = [p.detach() for p in self.parameters.values()]
            torch._foreach_lerp_(list(self.average.values()), current, 1 - self.config.ema_decay)

    def weights(self, *, ema: bool) -> dict[str, Tensor]:
        tensors = self.module.model.state_dict() | (self.average if ema else {})
        return {k: v.detach().to("cpu", copy=True) for k, v in tensors.items()}

    def state(self, *, copy: bool = True) -> dict:
        tensors = self.module.model.state_dict()
        state = {
            "model": {k: v for k, v in tensors.items() if k in self.module.saved},
            "optimizer": self.optimizer.state_dict(),
            "average": self.average,
            "frozen": self.frozen,
            **self.module.target_state(),
        }
        return copied(state) if copy else state

    def load(self, state: dict) -> None:
        self.module.model.load_state_dict(state["model"], strict=False)
        self.optimizer.load_state_dict(copy.deepcopy(state["optimizer"]))  # else it is adopted
        for name, tensor in state["average"].items():
            self.average[name].copy_(tensor)
        self.module.load_target(state)

    def all_reduce_max(self, value: int) -> int:
        return value


def copied(state: Any) -> Any:
    """Return a copy of a state on the CPU. Tensors that share their memory share it in the copy."""
    return _copied(state, {})


def _copied(value: Any, done: dict[tuple, Tensor]) -> Any:
    if isinstance(value, dict):
        return {k: _copied(v, done) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_copied(v, done) for v in value)
    if not isinstance(value, Tensor):
        return value
    place = (value.data_ptr(), value.dtype, tuple(value.shape), value.stride(), value.device)
    if place not in done:
        done[place] = value.detach().to("cpu", copy=True)
    return done[place]


def _finite(value: float) -> bool:
    return abs(value) < float("inf")  # NaN compares false


def _means(parts: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Means by name without waiting for the device; NaN counts as missing."""
    names = dict.fromkeys(name for part in parts for name in part)
    return {n: torch.stack([p[n].float() for p in parts if n in p]).nanmean() for n in names}
