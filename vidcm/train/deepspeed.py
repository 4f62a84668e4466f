"""The engine over DeepSpeed ranks: data parallelism with ZeRO stages 0 to 3, on CPUs and GPUs.

What is kept between steps is sharded as the stage says; what is saved is not. A checkpoint holds
full fp32 tensors by parameter name, gathered on rank 0's CPU, in the format of `LocalEngine`: a run
may go on with another number of ranks, at another stage, or in one process. That is meant for
models whose masters, two moments and average (16 bytes per parameter) fit into that memory.

Written against DeepSpeed 0.19.8. It relies on: a client optimizer (a named one is compiled for
minutes), `safe_get_full_fp32_param` and its kin, where each stage keeps its fp32 shards, and what
ZeRO-3's hooks are called.
"""

import logging
import os
import warnings
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from importlib import import_module
from io import StringIO
from itertools import chain
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from vidcm.config import TrainConfig
from vidcm.data.batch import MicroBatch
from vidcm.data.loader import positions
from vidcm.train.engine import StepReport, TrainStep, make_optimizer, mean_logs

PERSISTENT = 100_000  # ZeRO-3: smaller parameters stay whole on every rank
MOMENTS = ("exp_avg", "exp_avg_sq")


class DeepSpeedEngine:
    """One rank of a run started by `deepspeed` or `torchrun`; see `Engine` for the methods.

    With precision bf16 the weights are bf16 over fp32 masters; ZeRO 0 then runs as ZeRO 1, because
    DeepSpeed's unsharded bf16 sums gradients in bf16. Buffers keep their own precision.
    averaged: keep an average of the weights.
    Raises UsageError when the global batch does not divide into ranks x gradient_accumulation_steps."""

    def __init__(self, step: TrainStep, config: TrainConfig, averaged: bool = True):
        self.deepspeed = _import(step.device)
        self.deepspeed.init_distributed(verbose=False)
        self.rank, self.world = dist.get_rank(), dist.get_world_size()
        self.device, self.decay, self.clip = (
            step.device,
            config.ema_decay,
            config.optimizer.max_grad_norm,
        )
        step.bf16 = config.precision == "bf16"
        self.stage = config.zero or int(step.bf16)
        self.model = step.model
        self.parameters: dict[str, Any] = {
            n: p for n, p in step.model.named_parameters() if p.requires_grad
        }
        frozen = {n: p for n, p in step.model.named_parameters() if not p.requires_grad}
        self.frozen = {n: p.detach().to("cpu", copy=True) for n, p in frozen.items()}
        buffers = {n: b.clone() for n, b in step.model.named_buffers()}

        self.optimizer = make_optimizer(step, config.optimizer)
        names = {p: n for n, p in self.parameters.items()}
        self.order = [names[p] for g in self.optimizer.param_groups for p in g["params"]]
        self.groups = self.optimizer.state_dict()["param_groups"]
        micro = len(
            positions(0, config.batch_size, self.world * config.gradient_accumulation_steps, 0)
        )
        with redirect_stdout(StringIO()):  # a part of it prints, whatever the log level
            self.engine, *_ = self.deepspeed.initialize(
                model=step,
                optimizer=self.optimizer,
                config=_settings(config, self.stage, micro),
                dist_init_required=False,
            )
        if self.stage == 3:
            _let_tangents_through(self.model)
        for name, buffer in self.model.named_buffers():  # rounded to bf16 with the weights
            buffer.data = buffers[name]
        self.shards = self._shards()
        self.average = [s.detach().clone() for s in self.shards] if averaged else []

    def step(
        self, parts: Sequence[MicroBatch], progress: float, lr: float, step: int
    ) -> StepReport:
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        each = []
        for turn, part in enumerate(parts, start=1):
            loss, logs = self.engine(part, progress)
            # A loss that is not finite makes its gradients so, and these reach every rank.
            self.engine.backward(loss * (loss.detach() * 0 + 1))
            each.append({"loss": loss.detach(), **logs})
            norm = self._clip() if self.stage == 0 and turn == len(parts) else None
            self.engine.step()  # does something after the last part only
        if norm is None:
            norm = torch.as_tensor(self.engine.get_global_grad_norm())
        applied = bool(norm.isfinite())
        if applied and self.average:
            with torch.no_grad():
                torch._foreach_lerp_(self.average, self.shards, 1 - self.decay)
        ranks: list[Any] = [None] * self.world
        dist.all_gather_object(ranks, [{k: float(v) for k, v in x.items()} for x in each])
        means = mean_logs(chain.from_iterable(ranks))
        return StepReport(means.pop("loss"), means, float(norm), applied)

    def _clip(self) -> Tensor:
        """Stage 0 leaves norm and refusal to us; without gradients the optimizer does nothing."""
        norm = nn.utils.clip_grad_norm_(self.parameters.values(), self.clip)
        if not norm.isfinite():
            self.engine.zero_grad()
        return norm

    def weights(self, *, ema: bool) -> dict[str, Tensor]:
        buffers = {k: v for k, v in self.model.state_dict().items() if k not in self.parameters}
        kept = {k: v.detach().to("cpu", copy=True) for k, v in buffers.items()} | self.frozen
        return kept | self._gather(self.average if ema else self.shards)

    def state(self) -> dict:
        model = self.weights(ema=False)
        average = self._gather(self.average) if self.average else {}
        optimizer = self._optimizer_state()
        return {} if self.rank else {"model": model, "optimizer": optimizer, "average": average}

    @torch.no_grad()
    def load(self, state: dict) -> None:
        self._load_optimizer(state)
        if self.average:
            self._scatter(state["average"], self.average)
        self._scatter(state["model"], self.shards)
        self._fill_module(state["model"])

    def _optimizer_state(self) -> dict:
        """As `AdamW.state_dict()` of the model's own parameters."""
        if self.stage == 0:
            return self.optimizer.state_dict()
        if not self.optimizer.state:  # no step was taken yet
            return {"state": {}, "param_groups": self.groups}
        held = [self.optimizer.state[s] for s in self.shards]
        moments = {k: self._gather([state[k] for state in held]) for k in MOMENTS}
        entries = {
            i: {"step": held[0]["step"].clone(), **{k: moments[k][name] for k in MOMENTS}}
            for i, name in enumerate(self.order)
        }
        return {"state": entries, "param_groups": self.groups}

    def _load_optimizer(self, state: dict) -> None:
        if self.stage == 0:
            return self.optimizer.load_state_dict(state["optimizer"])
        self.optimizer.state.clear()
        entries = state["optimizer"]["state"]
        if not entries:
            return
        count = max(entry["step"] for entry in entries.values())
        for shard in self.shards:
            moments = {k: torch.zeros_like(shard) for k in MOMENTS}
            self.optimizer.state[shard] = {"step": count.clone(), **moments}
        for key in MOMENTS:
            values = {n: torch.zeros_like(state["model"][n]) for n in self.order}
            values |= {self.order[i]: entry[key] for i, entry in entries.items()}
            self._scatter(values, [self.optimizer.state[s][key] for s in self.shards])

    def agree(self, value: int) -> int:
        tensor = torch.tensor(value, device=self.device)
        dist.all_reduce(tensor, dist.ReduceOp.MAX)
        return int(tensor)

    def _shards(self) -> list[Tensor]:
        """The fp32 tensors that this rank's optimizer updates, in a fixed order."""
        if self.stage == 3:  # there the optimizer is shown one shard at a time
            shards = self.engine.optimizer.fp32_partitioned_groups_flat
        else:
            shards = [p for g in self.optimizer.param_groups for p in g["params"]]
        return list(shards)

    @torch.no_grad()
    def _gather(self, tensors: list[Tensor]) -> dict[str, Tensor]:
        """Full tensors by name, on the CPU of every rank, of what is laid out like the shards."""
        if self.stage == 0:
            named = zip(self.order, tensors, strict=True)
            return {n: t.detach().to("cpu", copy=True) for n, t in named}
        # DeepSpeed knows how masters lie over the ranks: put the tensors in their place.
        masters = [s.clone() for s in self.shards]
        torch._foreach_copy_(self.shards, tensors)
        read = self.deepspeed.utils.safe_get_full_fp32_param
        full = {n: read(p).cpu() for n, p in self.parameters.items()}
        torch._foreach_copy_(self.shards, masters)
        return full

    @torch.no_grad()
    def _scatter(self, values: Mapping[str, Tensor], into: list[Tensor]) -> None:
        """The inverse of `_gather`. Overwrites the masters on the way."""
        if self.stage == 0:
            torch._foreach_copy_(into, [values[n].to(self.device) for n in self.order])
            return
        for name, parameter in self.parameters.items():
            value = values[name].to(self.device, torch.float32)
            if self.stage < 3:
                self.deepspeed.utils.safe_set_full_fp32_param(parameter, value)
                continue
            # The full form refuses a parameter that does not divide by the ranks.
            size = parameter.ds_tensor.numel()
            padded = value.new_zeros(size * self.world)
            padded[: value.numel()] = value.flatten()
            own = padded[self.rank * size : (self.rank + 1) * size]
            self.deepspeed.utils.safe_set_local_fp32_param(parameter, own)
        if into is not self.shards:
            torch._foreach_copy_(into, self.shards)

    def _fill_module(self, values: Mapping[str, Tensor]) -> None:
        self.frozen = {n: values[n].clone() for n in self.frozen}
        for name, parameter in self.model.named_parameters():
            whole = self.deepspeed.zero.GatheredParameters
            with whole(parameter, modifier_rank=0, enabled=self.stage == 3):
                if self.stage < 3 or self.rank == 0:
                    parameter.data.copy_(values[name])
        for name, tensor in self.model.state_dict().items():
            if name not in self.parameters and name not in self.frozen:
                tensor.copy_(values[name])


def _import(device: torch.device) -> Any:
    # The choice is ours, and DeepSpeed would announce its own.
    os.environ["DS_ACCELERATOR"] = device.type
    deepspeed: Any = import_module("deepspeed")
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    # It calls collectives by names that torch is about to change.
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")
    if device.type == "cpu":
        # Else it compiles a shared-memory all-reduce for most of a minute; gloo does without.
        deepspeed.ops.__compatible_ops__ = {}
    return deepspeed


def _let_tangents_through(model: nn.Module) -> None:
    """Hooks of ZeRO-3 send what goes into a module and comes out of it through functions that do
    nothing but watch for the backward pass. They lack the rule of forward-mode differentiation."""
    for module in model.modules():
        for name in ("pre_bwd_fn", "post_bwd_fn"):
            watch = vars(module).get(name)
            if watch is not None:
                watch.jvp = staticmethod(lambda _, tangent: tangent.view_as(tangent))


def _settings(config: TrainConfig, stage: int, micro: int) -> dict:
    bf16 = config.precision == "bf16"
    return {
        "train_micro_batch_size_per_gpu": micro,
        "gradient_accumulation_steps": config.gradient_accumulation_steps,
        "gradient_clipping": config.optimizer.max_grad_norm if stage else 0.0,
        "bf16": {"enabled": bf16},
        "data_types": {"grad_accum_dtype": "fp32"},
        "steps_per_print": None,
        "zero_optimization": {
            "stage": stage,
            "stage3_param_persistence_threshold": PERSISTENT,
            # Else F.linear is replaced for the whole process, by a form without forward-mode AD.
            "memory_efficient_linear": False,
        },
    }
