"""The engine over DeepSpeed ranks: data parallelism with ZeRO stages 0 to 3, on CPUs and GPUs.

The state between steps is sharded as the stage says; a checkpoint is not. It holds full fp32
tensors by parameter name, gathered on rank 0's CPU, in the format of `LocalEngine`: a run may
resume with another number of ranks, at another stage, or in one process. That is meant for models
whose masters, two moments and average (16 bytes per parameter) fit into that memory.

Written against DeepSpeed 0.19.8, and setup.cfg allows 0.19 only: it relies on names that are not
public, here on `fp32_partitioned_groups_flat` (the fp32 shards of stage 3) and on
`safe_get_full_fp32_param` with its kin; others are in `deepspeed_setup`.
"""

import copy
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from io import StringIO
from itertools import chain
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from vidcm.config import TrainConfig
from vidcm.data.batch import MicroBatch
from vidcm.data.loader import positions
from vidcm.train.deepspeed_setup import (
    import_deepspeed,
    let_tangents_through,
    meet,
    reduce_max,
    settings,
)
from vidcm.train.engine import StepReport, TrainStep, copied, frozen_hash, mean_logs
from vidcm.train.optimizers import make_optimizer

MOMENTS = ("exp_avg", "exp_avg_sq")


class DeepSpeedEngine:
    """One rank of a run started by `deepspeed` or `torchrun`; see `Engine` for the methods.

    With precision bf16 the weights are bf16 over fp32 masters; ZeRO 0 then runs as ZeRO 1, because
    DeepSpeed's unsharded bf16 sums gradients in bf16. Buffers keep their own precision.

    Args:
        step: Model and objective.
        config: Of the run.
        averaged: Keep an average of the weights.

    Raises:
        UsageError: The global batch does not divide into ranks x gradient_accumulation_steps.
        VidcmError: The ranks do not find each other.
    """

    def __init__(self, step: TrainStep, config: TrainConfig, averaged: bool = True):
        self.deepspeed = import_deepspeed(step.device)
        meet(self.deepspeed, config.rank_timeout)
        self.rank, self.world = dist.get_rank(), dist.get_world_size()
        self.device, self.decay = step.device, config.ema_decay
        self.clip = config.optimizer.max_grad_norm
        step.bf16 = config.precision == "bf16"
        self.stage = config.zero or int(step.bf16)
        self.module, self.model = step, step.model
        self.frozen = frozen_hash(step.model) if self.rank == 0 else ""
        self.parameters: dict[str, Any] = {
            n: p for n, p in step.model.named_parameters() if p.requires_grad
        }
        frozen = {n: p for n, p in step.model.named_parameters() if not p.requires_grad}
        # Copied before they are rounded or sharded.
        kept = frozen if self.rank == 0 else {}
        self.frozen_weights = {n: p.detach().to("cpu", copy=True) for n, p in kept.items()}
        buffers = {n: b.clone() for n, b in step.model.named_buffers()}

        self.optimizer = make_optimizer(step, config.optimizer)
        names = {p: n for n, p in self.parameters.items()}
        self.order = [names[p] for g in self.optimizer.param_groups for p in g["params"]]
        self.groups = self.optimizer.state_dict()["param_groups"]
        groups = self.world // config.sequence_parallel
        micro = len(positions(0, config.batch_size, groups * config.gradient_accumulation_steps, 0))
        with redirect_stdout(StringIO()):  # a part of it prints, whatever the log level
            self.engine, *_ = self.deepspeed.initialize(
                model=step,
                optimizer=self.optimizer,
                config=settings(config, self.stage, micro, self.parameters.values()),
                dist_init_required=False,
            )
        if self.stage == 3:
            let_tangents_through(self.model)
        for name, buffer in self.model.named_buffers():  # rounded to bf16 with the weights
            buffer.data = buffers[name]
        self.shards = self._shards()
        self.average = [s.detach().clone() for s in self.shards] if averaged else []

    def step(
        self, parts: Sequence[MicroBatch], progress: float, lr: float, step: int
    ) -> StepReport:
        self.module.before_step(progress)
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
        every = list(chain.from_iterable(ranks))
        loss = sum(x.pop("loss") for x in every) / len(every)
        return StepReport(loss, mean_logs(every), float(norm), applied)

    def _clip(self) -> Tensor:
        """Stage 0 leaves norm and refusal to us; without gradients the optimizer does nothing."""
        norm = nn.utils.clip_grad_norm_(self.parameters.values(), self.clip)
        if not norm.isfinite():
            self.engine.zero_grad()
        return norm

    def weights(self, *, ema: bool) -> dict[str, Tensor]:
        gathered = self._gather(self.average if ema else self.shards)
        return self._buffers() | self.frozen_weights | gathered if self.rank == 0 else {}

    def state(self, *, copy: bool = True) -> dict:
        trained = self._gather(self.shards)
        average = self._gather(self.average) if self.average else {}
        optimizer = self._optimizer_state()
        if self.rank:
            return {}
        target = self.module.target_state()
        if copy:  # the others were gathered, so they are copies
            target = copied(target)
            optimizer = copied(optimizer) if self.stage == 0 else optimizer
        return {
            "model": self._buffers() | trained,
            "optimizer": optimizer,
            "average": average,
            "frozen": self.frozen,
            **target,
        }

    def _buffers(self) -> dict[str, Tensor]:
        named = dict(self.model.named_parameters())
        buffers = {k: v for k, v in self.model.state_dict().items() if k not in named}
        return {k: v.detach().to("cpu", copy=True) for k, v in buffers.items()}

    @torch.no_grad()
    def load(self, state: dict) -> None:
        self._load_optimizer(state)
        if self.average:
            self._scatter(state["average"], self.average)
        self._scatter(state["model"], self.shards)
        self._fill_module(state["model"])
        self.module.load_target(state)

    def _optimizer_state(self) -> dict:
        """The state as of `AdamW.state_dict()` for the model's own parameters, on rank 0."""
        if self.stage == 0:
            return self.optimizer.state_dict()
        if not self.optimizer.state:  # before the first step
            return {"state": {}, "param_groups": self.groups}
        states = [self.optimizer.state[s] for s in self.shards]
        moments = {k: self._gather([state[k] for state in states]) for k in MOMENTS}
        if self.rank:
            return {}
        entries = {
            i: {"step": states[0]["step"].clone(), **{k: moments[k][name] for k in MOMENTS}}
            for i, name in enumerate(self.order)
        }
        return {"state": entries, "param_groups": self.groups}

    def _load_optimizer(self, state: dict) -> None:
        if self.stage == 0:
            return self.optimizer.load_state_dict(copy.deepcopy(state["optimizer"]))
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

    def all_reduce_max(self, value: int) -> int:
        return reduce_max(value, self.device)

    def _shards(self) -> list[Tensor]:
        """The fp32 tensors that this rank's optimizer updates, in a fixed order."""
        if self.stage == 3:  # the optimizer's groups have one shard at a time there
            shards = self.engine.optimizer.fp32_partitioned_groups_flat
        else:
            shards = [p for g in self.optimizer.param_groups for p in g["params"]]
        return list(shards)

    @torch.no_grad()
    def _gather(self, tensors: list[Tensor]) -> dict[str, Tensor]:
        """Full tensors by name on rank 0's CPU, of tensors that are laid out like the shards."""
        if self.stage == 0:
            named = zip(self.order, tensors, strict=True)
            return {n: t.detach().to("cpu", copy=True) for n, t in named if self.rank == 0}
        # DeepSpeed knows how masters lie over the ranks: put the tensors in their place.
        masters = [s.clone() for s in self.shards]
        torch._foreach_copy_(self.shards, tensors)
        read = self.deepspeed.utils.safe_get_full_fp32_param
        full = {}
        for name, parameter in self.parameters.items():
            value = read(parameter)  # collective
            if self.rank == 0:
                full[name] = value.cpu()
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
        """Put saved weights and buffers into the module itself; frozen weights stay."""
        for name, parameter in self.parameters.items():
            gathered = self.deepspeed.zero.GatheredParameters
            with gathered(parameter, modifier_rank=0, enabled=self.stage == 3):
                if self.stage < 3 or self.rank == 0:
                    parameter.data.copy_(values[name])
        for name, tensor in self.model.state_dict().items():
            if name in values and name not in self.parameters:
                tensor.copy_(values[name])
