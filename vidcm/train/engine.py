"""One optimiser step, in one process: forward and backward over micro-batches, clip, update, EMA.

`vidcm.train.deepspeed` holds the same engine over DeepSpeed ranks; the loop cannot tell them apart.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from vidcm.config import OptimizerConfig
from vidcm.data.batch import MicroBatch
from vidcm.objectives.base import STUDENT, Objective
from vidcm.rng import SampleRng


@dataclass
class StepReport:
    """loss and logs averaged over the global batch; applied: False when a value was not finite;
    role: whose turn it was."""

    loss: float
    logs: dict[str, float]
    grad_norm: float
    applied: bool
    role: str = STUDENT


class Engine(Protocol):
    """rank, world: this process and how many there are. All methods are collective: every rank
    calls them, in the same order."""

    rank: int
    world: int

    def step(
        self, parts: Sequence[MicroBatch], progress: float, lr: float, step: int
    ) -> StepReport:
        """One update over this rank's parts of the global batch, or none when a loss or gradient
        is not finite on any rank; the report is the same on every rank. step: its number in the
        run, which says whose turn it is where several networks are trained."""
        ...

    def weights(self, *, ema: bool) -> dict[str, Tensor]:
        """Full state dict of the model on the CPU, on every rank; what is trained is fp32."""
        ...

    def state(self) -> dict:
        """Everything an exact resume needs, as tensors and plain data: whole on rank 0, empty on
        the others. Engines write one format, so that a run may go on in another."""
        ...

    def load(self, state: dict) -> None:
        """Take what `state` gave; every rank is handed the whole of it."""
        ...

    def agree(self, value: int) -> int:
        """The largest of the ranks' values; also a barrier."""
        ...


class TrainStep(nn.Module):
    """Model and objective as one module, so that wrappers see every forward of a step.

    bf16: run under autocast; the engine sets it. Returns the scalar loss and the logs of a
    `Loss`, as plain tensors that a wrapper can hook."""

    def __init__(self, model: nn.Module, objective: Objective, device: torch.device):
        super().__init__()
        self.model, self.objective, self.device = model, objective, device
        self.bf16 = False

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


def mean_logs(parts: Iterable[dict[str, float]]) -> dict[str, float]:
    """The mean of each name over the parts that have it: what a part logs may depend on its data."""
    values: dict[str, list[float]] = {}
    for part in parts:
        for name, value in part.items():
            values.setdefault(name, []).append(value)
    return {name: sum(v) / len(v) for name, v in values.items()}


def make_optimizer(module: nn.Module, config: OptimizerConfig) -> torch.optim.AdamW:
    """AdamW; matrices decay, vectors (norms, biases) do not."""
    parameters = [p for p in module.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    groups = [g for g in groups if g["params"]]
    return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, eps=1e-8)


class LocalEngine:
    """The engine of one process, on a CPU or one GPU (bf16 autocast over fp32 weights there).

    ema_decay: decay of the average, None to keep none."""

    rank, world = 0, 1

    def __init__(
        self,
        step: TrainStep,
        config: OptimizerConfig,
        *,
        ema_decay: float | None,
        precision: str = "fp32",
    ):
        self.module, self.config, self.decay = step, config, ema_decay
        step.bf16 = precision == "bf16"
        self.optimizer = make_optimizer(step, config)
        self.parameters = {n: p for n, p in step.model.named_parameters() if p.requires_grad}
        averaged = {} if ema_decay is None else self.parameters
        self.average = {n: p.detach().clone() for n, p in averaged.items()}

    def step(
        self, parts: Sequence[MicroBatch], progress: float, lr: float, step: int
    ) -> StepReport:
        each = []
        self.optimizer.zero_grad()
        for part in parts:
            loss, logs = self.module(part, progress)
            (loss / len(parts)).backward()
            each.append({"loss": loss.item()} | {k: float(v) for k, v in logs.items()})
        means = mean_logs(each)
        total = means.pop("loss")
        norm = nn.utils.clip_grad_norm_(self.parameters.values(), self.config.max_grad_norm)
        applied = bool(norm.isfinite()) and math.isfinite(total)
        if applied:
            for group in self.optimizer.param_groups:
                group["lr"] = lr
            self.optimizer.step()
            self._update_average()
        return StepReport(total, means, float(norm), applied)

    @torch.no_grad()
    def _update_average(self) -> None:
        if self.decay is None:
            return
        torch._foreach_lerp_(
            list(self.average.values()),
            [p.detach() for p in self.parameters.values()],
            1 - self.decay,
        )

    def weights(self, *, ema: bool) -> dict[str, Tensor]:
        tensors = self.module.model.state_dict() | (self.average if ema else {})
        return {k: v.detach().to("cpu", copy=True) for k, v in tensors.items()}

    def state(self) -> dict:
        return {
            "model": self.module.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "average": self.average,
        }

    def load(self, state: dict) -> None:
        self.module.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        for name, tensor in state["average"].items():
            self.average[name].copy_(tensor)

    def agree(self, value: int) -> int:
        return value
