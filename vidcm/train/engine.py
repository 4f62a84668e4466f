"""One optimiser step, in one process: forward and backward over micro-batches, clip, update, EMA.

`vidcm.train.deepspeed` holds the same engine over DeepSpeed ranks; the loop cannot tell them apart.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from vidcm.config import OptimizerConfig
from vidcm.data.batch import Batch
from vidcm.objectives.base import Loss, Objective
from vidcm.rng import SampleRng


@dataclass(frozen=True)
class MicroBatch:
    """A part of the global batch and its place in the run (for randomness and error messages)."""

    batch: Batch
    seed: int
    positions: list[int]


@dataclass
class StepReport:
    """loss and logs averaged over the global batch; applied: False when a value was not finite."""

    loss: float
    logs: dict[str, float]
    grad_norm: float
    applied: bool


class Engine(Protocol):
    """rank, world: this process and how many there are. All methods are collective."""

    rank: int
    world: int

    def step(self, parts: Sequence[MicroBatch], progress: float, lr: float) -> StepReport: ...

    def weights(self, *, ema: bool) -> dict[str, Tensor]:
        """Full fp32 state dict on the CPU, on every rank."""
        ...

    def state(self) -> dict:
        """Everything an exact resume needs, as tensors and plain data."""
        ...

    def load(self, state: dict) -> None: ...


class TrainStep(nn.Module):
    """Model and objective as one module, so that wrappers see every forward of a step."""

    def __init__(self, model: nn.Module, objective: Objective, device: torch.device):
        super().__init__()
        self.model, self.objective, self.device = model, objective, device

    def forward(self, part: MicroBatch, progress: float) -> Loss:
        rng = SampleRng(part.seed, part.positions, self.device)
        return self.objective(self.model, part.batch.to(self.device), progress, rng)


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
    """The engine of one process, on a CPU or one GPU (bf16 autocast over fp32 weights there)."""

    rank, world = 0, 1

    def __init__(
        self, step: TrainStep, config: OptimizerConfig, *, ema: float, precision: str = "fp32"
    ):
        self.module, self.config, self.decay = step, config, ema
        self.bf16 = precision == "bf16"
        self.optimizer = make_optimizer(step, config)
        self.parameters = {n: p for n, p in step.model.named_parameters() if p.requires_grad}
        self.average = {n: p.detach().clone() for n, p in self.parameters.items()}

    def step(self, parts: Sequence[MicroBatch], progress: float, lr: float) -> StepReport:
        total, logs = 0.0, {}
        self.optimizer.zero_grad()
        for part in parts:
            with torch.autocast(self.module.device.type, torch.bfloat16, enabled=self.bf16):
                loss = self.module(part, progress)
            (loss.total / len(parts)).backward()
            total += loss.total.item() / len(parts)
            for name, value in loss.logs.items():
                logs[name] = logs.get(name, 0.0) + float(value) / len(parts)
        norm = nn.utils.clip_grad_norm_(self.parameters.values(), self.config.clip)
        applied = bool(norm.isfinite()) and total == total
        if applied:
            for group in self.optimizer.param_groups:
                group["lr"] = lr
            self.optimizer.step()
            self._update_average()
        return StepReport(total, logs, float(norm), applied)

    @torch.no_grad()
    def _update_average(self) -> None:
        torch._foreach_lerp_(
            list(self.average.values()),
            [p.detach() for p in self.parameters.values()],
            1 - self.decay,
        )

    def weights(self, *, ema: bool) -> dict[str, Tensor]:
        state = {k: v.detach().cpu() for k, v in self.module.model.state_dict().items()}
        return state | ({k: v.cpu() for k, v in self.average.items()} if ema else {})

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
