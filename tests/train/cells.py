"""Every way of training every objective, for tests of which go together: objective, ZeRO stage,
low-rank updates, checkpointing, compilation.

`cells.py MODE FOLDER`, run as one of several ranks, writes what it found to
`FOLDER/MODE-rank<N>.pt`. MODE is eager, compiled, sequence, or resumed: every objective from the
half-way state of one process, and its own half-way state for one process to go on from. Cells are
compiled once, not each: networks of
one class share their graphs, of which there are few.
"""

import sys
from collections.abc import Iterable
from contextlib import suppress
from functools import cache
from importlib import import_module
from itertools import product
from pathlib import Path
from typing import Any, cast

import tiny
import torch
from torch import nn

from vidcm.config import LoraConfig, OptimizerConfig, TrainConfig
from vidcm.data.batch import Batch, MicroBatch
from vidcm.data.loader import positions
from vidcm.diffusion.denoiser import Denoiser
from vidcm.errors import UsageError
from vidcm.objectives.base import Objective
from vidcm.registry import build
from vidcm.rng import SampleRng
from vidcm.store import load_model
from vidcm.train.engine import Engine, LocalEngine
from vidcm.train.lora import adapt
from vidcm.train.roles import Start, assemble
from vidcm.train.sequence import check_sequence, parallelize, sequence_group
from vidcm.train.setup import apply_memory_options, init_from

CPU = torch.device("cpu")
STAGES, BATCH = (0, 1, 2, 3), 4
PROMPTS = ["an orc walks left", "a lady in a red dress", "a man falls", ""]
STUDENT = tiny.denoiser(guidance_embed=True, two_times=True)
# Wide steps, so that differences between two ends of one do not magnify rounding.
WIDE = {"name": "finite_difference", "h": 0.1}
COARSE = {"intervals": 4, "huber_c": 0.1}
ROWS: dict[str, dict[str, Any]] = {
    "flow_matching": {},
    "consistency_tuning": {"stages": 4},
    "latent_consistency": COARSE,
    "latent_consistency, averaged target": {**COARSE, "target_decay": 0.5},
    "phased_consistency": {},
    "progressive_distillation": {"halvings": 2},
    "flow_map": {},
    "flow_map, finite difference": {"derivative": WIDE},
    "continuous_consistency": {},
    "continuous_consistency, finite difference": {"derivative": WIDE},
    "distribution_matching": {"student_update_freq": 2, "steps": [1, 2]},
    "adversarial": {"student_update_freq": 2, "blocks": [0, 1]},
    "rcm": {
        "student_update_freq": 3,
        "consistency": {"name": "consistency_tuning"},
        "matching": {"steps": [1, 2]},
        "adversarial": {"blocks": [1]},
    },
}
BF16 = "latent_consistency"  # the row that is run in bf16 too
Steps = list[tuple[str, float, float]]  # whose turn, loss, gradient norm


@cache
def updates() -> tuple[bool, ...]:
    """Without low-rank updates and, where peft can be had, with them."""
    try:
        import_module("peft")
    except ImportError:
        return (False,)
    return (False, True)


def settings(row: str, folder: Path, zero: int, lora: bool, **changes: Any) -> TrainConfig:
    """The config of a cell; the teacher lies in `folder`."""
    keys: dict[str, Any] = dict(output="", steps=12, batch_size=BATCH, ema_decay=0.7, zero=zero)
    return TrainConfig(
        model=STUDENT,
        objective={"name": row.partition(",")[0], **ROWS[row]},
        data={"name": "cells"},
        teacher=str(folder),
        init=str(folder),
        lora=LoraConfig(rank=3, alpha=6) if lora else None,
        optimizer=OptimizerConfig(lr=1e-4, max_grad_norm=0.5),
        **keys,
        **changes,
    )


class Cell:
    """One cell, ready to run: the networks of a real run on small latents."""

    def __init__(self, config: TrainConfig, start: Start):
        torch.manual_seed(0)
        assert config.teacher and config.start
        teacher = self.teacher = load_model(config.teacher, Denoiser)
        student = build("model", config.model)
        init_from(student, config.start)
        if config.lora:
            adapt(student, config.lora)
        apply_memory_options(tiny.shaken(student, 0.05, seed=3), config)

        def make_fake() -> Denoiser:
            fake = tiny.shaken(build("model", config.model), seed=4)
            apply_memory_options(fake, config)
            return cast(Denoiser, fake)

        spec = config.objective
        self.objective: Objective = build("objective", spec, teacher=teacher, make_fake=make_fake)
        self.objective.check(config)
        check_sequence(config, self.objective)
        self.lr = config.optimizer.lr
        if start is not LocalEngine and (group := sequence_group(config, CPU)):
            for network in (student, teacher):
                parallelize(network, group)
        self.engine: Engine = assemble(student, self.objective, config, CPU, start)
        self.groups = config.sequence_parallel
        others = [role.module for role in self.objective.roles.values()]
        self.networks: list[nn.Module] = [student, *others]

    def run(self, *, again: bool = False, halves: Iterable[int] = (0, 1)) -> Steps:
        """Two turns of every network, in the first and the second half of a run; again: the second
        ones with checkpointing."""
        found, period = [], self.objective.student_update_freq
        for step in (half * period + turn for half in halves for turn in range(period)):
            for network in self.networks:
                if backbone := getattr(network, "backbone", None):
                    backbone.activation_checkpointing = again and step >= period
            world, rank = (n // self.groups for n in (self.engine.world, self.engine.rank))
            places = positions(step, BATCH, world, rank)
            x = SampleRng(77, places).normal(5, 2, 3, 4)
            batch = Batch([PROMPTS[p % 4] for p in places], latents=x)
            part = MicroBatch(batch, 5, places)
            report = self.engine.step([part], step / (2 * period), self.lr, step)
            found.append((report.role, report.loss, report.grad_norm))
        return found


def refusal(row: str, folder: Path, zero: int, lora: bool, **changes: Any) -> str | None:
    """Why such a run is refused before it starts, or None."""
    try:
        Cell(settings(row, folder, zero, lora, **changes), LocalEngine)
    except UsageError as error:
        return str(error)
    return None


def on_rank(mode: str, folder: Path) -> None:
    import torch.distributed as dist

    from vidcm.train import deepspeed_setup
    from vidcm.train.launch import start_on_ranks

    # Else all stays whole at stage 3; below are vectors and small matrices.
    deepspeed_setup.PERSISTENT = 1500
    if mode == "compiled":
        from torch._dynamo import config as limits

        # Of all cells together. Past the usual limit what is left would run uncompiled, unnoticed.
        limits.recompile_limit, limits.fail_on_recompile_limit_hit = 64, True
    results: dict[tuple, Steps] = {}
    for row, zero, lora in product(ROWS, STAGES, updates()):
        with suppress(UsageError):
            changes = {"sequence": {"sequence_parallel": 2}, "compiled": {"compile": True}}
            config = settings(row, folder / "teacher", zero, lora, **changes.get(mode, {}))
            results[row, zero, lora] = Cell(config, start_on_ranks).run(again=True)
    for zero in STAGES if mode == "eager" else ():
        config = settings(BF16, folder / "teacher", zero, False, precision="bf16")
        results["bf16", zero, False] = Cell(config, start_on_ranks).run(again=True)
    if mode == "compiled":
        from torch._dynamo.utils import counters

        assert counters["stats"]["unique_graphs"] > 0, "nothing was compiled"
    torch.save(results, folder / f"{mode}-rank{dist.get_rank()}.pt")
    dist.destroy_process_group()


def resumed(folder: Path) -> None:
    import torch.distributed as dist

    from vidcm.train import deepspeed_setup
    from vidcm.train.launch import start_on_ranks

    deepspeed_setup.PERSISTENT = 1500
    results = {}
    for row, zero in product(ROWS, STAGES[1:]):
        with suppress(UsageError):
            config = settings(row, folder / "teacher", zero, False)
            begun = Cell(config, start_on_ranks)
            begun.run(halves=[0])
            state = begun.engine.state()
            if begun.engine.rank == 0:
                torch.save(state, folder / f"{row}-{zero}.pt")
            taken = Cell(config, start_on_ranks)
            taken.engine.load(torch.load(folder / f"{row}.pt", weights_only=True))
            results[row, zero] = taken.run(halves=[1]), taken.engine.weights(ema=True)
    torch.save(results, folder / f"resumed-rank{dist.get_rank()}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    torch.set_num_threads(1)
    if sys.argv[1] == "resumed":
        resumed(Path(sys.argv[2]))
    else:
        on_rank(sys.argv[1], Path(sys.argv[2]))
