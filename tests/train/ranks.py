"""A toy task for tests of training, and what they run elsewhere: `ranks.py MODE FOLDER`.

parity (on ranks): the same six steps at every ZeRO stage, once through, once resumed, once resumed
at another stage and once from one process, to `FOLDER/rank<N>.pt`. roles (on ranks): the like for
three networks that take turns. target (on ranks): for a student and its target network. train (on
ranks): a whole run through `launch`, as `tools/train.py` does it, whose ranks wait 10 s for each
other; failing: the same, and rank 1 cannot read step 7; short: the same, of 20 steps. killed: a run
in one process that dies while it saves.
"""

import os
import signal
import sys
import time
from argparse import Namespace
from collections.abc import Callable, Iterable
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vidcm.config import OptimizerConfig, TrainConfig
from vidcm.data.batch import Batch
from vidcm.data.loader import batches
from vidcm.errors import VidcmError
from vidcm.objectives.base import Loss, Objective, Role
from vidcm.objectives.target_network import EmaTarget, FrozenTarget, TargetNetwork
from vidcm.rng import SampleRng, mix
from vidcm.train.engine import Engine, LocalEngine, TrainStep
from vidcm.train.loop import Task
from vidcm.train.lr_schedule import learning_rate
from vidcm.train.roles import Ensemble, Start, assemble

CPU = torch.device("cpu")
BATCH, STEPS, HALF = 8, 6, 3
UNEVEN = 4  # a step that is not at the start of a period of three
BAD = 22  # a sample of step 2; with two ranks it is the second's, with or without accumulation
STAGES, ACCUMULATIONS = (0, 1, 2, 3), (1, 2)


class Tiny(nn.Module):
    """`(b, 7)` to `(b, 5)`: sizes that no number of ranks divides, a frozen layer, a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(7, 13), nn.Linear(13, 5, bias=False)
        self.scale = nn.Parameter(torch.ones(13))
        self.shortcut = nn.Linear(7, 5).requires_grad_(False)
        self.register_buffer("table", torch.linspace(0, 1, 5) / 3)

    def forward(self, x: Tensor) -> Tensor:
        hidden = nn.functional.silu(self.first(x)) * self.scale
        return self.last(hidden) + self.shortcut(x) + self.table


def regression(model: nn.Module, batch: Batch, progress: float, rng: SampleRng) -> Loss:
    """Reconstruct part of the input under noise that fades out."""
    assert batch.latents is not None
    x = batch.latents.flatten(1)
    error = model(x + 0.1 * (1 - progress) * rng.normal(7)).float() - x[:, :5].sin() * 3
    logs = {"absolute": error.detach().abs().mean()}
    if bool((x[:, 0] > 1.3).any()):  # as objectives that log by time: not every batch has all
        logs["large"] = x[:, 0].max()
    return Loss(error.square().mean(), logs)


class Points:
    """Gaussian latents `(b 7 1 1 1)`; those at `bad` positions are not a number."""

    def __init__(
        self, bad: Iterable[int] = (), delay: float = 0.0, unreadable: int | None = None
    ) -> None:
        self.bad, self.delay, self.unreadable = frozenset(bad), delay, unreadable

    def batch(self, seed: int, positions: Iterable[int]) -> Batch:
        time.sleep(self.delay)
        drawn = []
        for p in positions:
            if p == self.unreadable:
                raise VidcmError("the disk of this rank is gone")
            generator = torch.Generator().manual_seed(mix(seed, p, 1))
            drawn.append(torch.randn(7, 1, 1, 1, generator=generator))
            if p in self.bad:
                drawn[-1].fill_(torch.nan)
        return Batch([""] * len(drawn), latents=torch.stack(drawn))


def config(output: str = "", **changes: Any) -> TrainConfig:
    """A short run of the toy task, its gradients large enough to be clipped."""
    named = dict.fromkeys(("model", "objective", "data"), {"name": "toy"})
    optimizer = OptimizerConfig(lr=0.01, warmup_steps=2, max_grad_norm=0.5)
    plain = dict(
        steps=STEPS, batch_size=BATCH, seed=5, ema_decay=0.7, num_workers=0, optimizer=optimizer
    )
    return TrainConfig(**{**named, "output": output, **plain, **changes})


class Plain(Objective):
    """A loss function as an objective."""

    def __init__(self, loss: Callable[[nn.Module, Batch, float, SampleRng], Loss]) -> None:
        self.loss = loss

    def __call__(self, model: nn.Module, batch: Batch, progress: float, rng: SampleRng) -> Loss:
        return self.loss(model, batch, progress, rng)


class Trio(Objective):
    """A toy objective of three networks: the fake one follows the student, which is pulled to the
    fake one's output; the critic goes by its gradients' sign."""

    role_names = ("fake", "critic")
    student_update_freq = 3
    roles: dict[str, Role] = {}

    def __init__(self) -> None:
        self.fake, self.critic = Tiny(), nn.Linear(5, 1)
        self.roles = {
            "fake": Role(self.fake, self.follow, lr_scale=0.5),
            "critic": Role(self.critic, self.judge, betas=(0.0, 0.9)),
        }

    def __call__(self, model: nn.Module, batch: Batch, progress: float, rng: SampleRng) -> Loss:
        assert batch.latents is not None
        loss, x = regression(model, batch, progress, rng), batch.latents.flatten(1)
        with torch.no_grad():
            output = self.fake(x)
        return Loss(loss.total + 0.3 * (model(x).float() - output).square().mean(), loss.logs)

    def follow(self, model: nn.Module, batch: Batch, progress: float, rng: SampleRng) -> Loss:
        assert batch.latents is not None
        x = batch.latents.flatten(1)
        with torch.no_grad():
            output = model(x)
        error = self.fake(x + 0.1 * rng.normal(7)).float() - output
        return Loss(error.square().mean(), {"absolute": error.detach().abs().mean()})

    def judge(self, model: nn.Module, batch: Batch, progress: float, rng: SampleRng) -> Loss:
        assert batch.latents is not None
        x = batch.latents.flatten(1)
        with torch.no_grad():
            output = model(x)
        error = self.critic(output).float() - x.sum(1, keepdim=True)
        return Loss(error.square().mean(), {"absolute": error.detach().abs().mean()})


class WithTarget(Objective):
    """A toy objective whose student is pulled to a copy of it."""

    target: TargetNetwork

    def __init__(self, target: TargetNetwork) -> None:
        self.target = target

    def __call__(self, model: nn.Module, batch: Batch, progress: float, rng: SampleRng) -> Loss:
        assert batch.latents is not None
        loss, x = regression(model, batch, progress, rng), batch.latents.flatten(1)
        with torch.no_grad():
            output = self.target.network(x)
        return Loss(loss.total + 0.3 * (model(x).float() - output).square().mean(), loss.logs)


def task(data: Points, *, trio: bool = False) -> Task:
    """A fresh toy task, always from the same weights; its preview is a fact about the weights.
    trio: with the objective of three networks."""
    torch.manual_seed(0)
    objective: Objective = Trio() if trio else Plain(regression)
    return Task(
        Tiny(), objective, data, lambda weights, _: {"total": float(weights["scale"].sum())}, dict
    )


def local(config: TrainConfig) -> LocalEngine:
    """A fresh engine of one process."""
    return LocalEngine(TrainStep(task(Points()).model, Plain(regression), CPU), config)


def together(config: TrainConfig, start: Start) -> Engine:
    """A fresh engine of the three networks."""
    work = task(Points(), trio=True)
    return assemble(work.model, work.objective, config, CPU, start)


def with_target(kind: str) -> WithTarget:
    """The toy objective with a target that is an "average" or "frozen"."""
    return WithTarget(EmaTarget(0.7) if kind == "average" else FrozenTarget(3))


def targeting(kind: str, config: TrainConfig, start: Start) -> Engine:
    """A fresh engine of a student with such a target."""
    return assemble(task(Points()).model, with_target(kind), config, CPU, start)


def run(engine: Engine, config: TrainConfig, start: int = 0, stop: int = STEPS) -> list[tuple]:
    """Steps `start..stop`; loss, log, gradient norm and whether applied, of each."""
    stream = batches(
        Points({BAD}),
        seed=config.seed,
        start=start,
        stop=stop,
        batch_size=config.batch_size,
        gradient_accumulation_steps=config.gradient_accumulation_steps,
        rank=engine.rank,
        world=engine.world,
        num_workers=0,
    )
    reports = []
    for step, parts in enumerate(stream, start=start):
        lr = learning_rate(config.optimizer, step, config.steps)
        report = engine.step(parts, step / config.steps, lr, step)
        absolute = float(report.logs["absolute"])
        reports.append((report.loss, absolute, report.grad_norm, report.applied))
    return reports


def ends(engine: Engine) -> dict[str, Any]:
    """The state of a finished run; `module` are this rank's own weights (its shards, at stage 3)."""
    weights, average = engine.weights(ema=False), engine.weights(ema=True)
    student = engine.student if isinstance(engine, Ensemble) else engine
    named = student.module.model.named_parameters()  # type: ignore[attr-defined]
    module = {n: p.detach().clone() for n, p in named}
    return {"weights": weights, "average": average, "state": engine.state(), "module": module}


def parity(folder: Path) -> None:
    import torch.distributed as dist

    from vidcm.train import deepspeed_setup
    from vidcm.train.deepspeed import DeepSpeedEngine

    def start(**changes: Any) -> tuple[Engine, TrainConfig]:
        chosen = config(**changes)
        step = TrainStep(task(Points()).model, Plain(regression), CPU)
        return DeepSpeedEngine(step, chosen), chosen

    results: dict[tuple, dict] = {}
    kinds = [(s, a, "fp32") for s in STAGES for a in ACCUMULATIONS]
    for stage, accumulation, precision in [*kinds, *((s, 2, "bf16") for s in STAGES[1:])]:
        # Toy parameters would all stay whole: make ZeRO-3 shard them, in half of the cases.
        whole = accumulation > 1 and precision == "fp32"
        deepspeed_setup.PERSISTENT = 100_000 if whole else 0
        keys = dict(zero=stage, gradient_accumulation_steps=accumulation, precision=precision)
        engine, chosen = start(**keys)
        reports = run(engine, chosen, 0, HALF)
        path = folder / f"{stage}-{accumulation}-{precision}.pt"
        state = engine.state()
        reports += run(engine, chosen, HALF, STEPS)
        if engine.rank == 0:  # the steps in between did not change it
            torch.save(state, path)
        engine.all_reduce_max(0)
        whole = {"reports": reports, **ends(engine)}
        found = results[stage, accumulation, precision] = {"whole": whole}
        for name, other in (("resumed", stage), ("moved", (stage + 1) % 4)):
            if accumulation == 1 or (name == "resumed" and precision == "bf16"):
                engine, chosen = start(**{**keys, "zero": other})
                engine.load(torch.load(path, weights_only=True))
                found[name] = {"reports": run(engine, chosen, HALF, STEPS), **ends(engine)}
        if accumulation == 1:
            begun = local(config())
            run(begun, config(), 0, HALF)
            engine, chosen = start(**keys)
            engine.load(begun.state())
            found["taken"] = {"reports": run(engine, chosen, HALF, STEPS), **ends(engine)}
    torch.save(results, folder / f"rank{dist.get_rank()}.pt")
    dist.destroy_process_group()


def roles(folder: Path) -> None:
    """Three networks in turns: the same six steps at stages 0 to 2, through and resumed."""
    import torch.distributed as dist

    from vidcm.train.launch import start_on_ranks

    results: dict[tuple, dict] = {}
    for key in [(s, a) for s in STAGES[:3] for a in ACCUMULATIONS]:
        chosen = config(zero=key[0], gradient_accumulation_steps=key[1])
        engine = together(chosen, start_on_ranks)
        reports = run(engine, chosen, 0, UNEVEN)
        path = folder / "{}-{}.pt".format(*key)
        state = engine.state()
        reports += run(engine, chosen, UNEVEN, STEPS)
        if engine.rank == 0:  # the steps in between did not change it
            torch.save(state, path)
        engine.all_reduce_max(0)
        found = results[key] = {"whole": {"reports": reports, **ends(engine)}}
        engine = together(chosen, start_on_ranks)
        engine.load(torch.load(path, weights_only=True))
        found["resumed"] = {"reports": run(engine, chosen, UNEVEN, STEPS), **ends(engine)}
    torch.save(results, folder / f"rank{dist.get_rank()}.pt")
    dist.destroy_process_group()


def target(folder: Path) -> None:
    """A student and its target: the same six steps at stages 0 to 2, and in bf16 at 2, through and
    resumed."""
    import torch.distributed as dist

    from vidcm.train.launch import start_on_ranks

    results: dict[tuple, tuple] = {}
    places = [*((stage, "fp32") for stage in STAGES[:3]), (2, "bf16")]
    for kind, (stage, precision) in product(("average", "frozen"), places):
        chosen = config(zero=stage, precision=precision)
        engine = targeting(kind, chosen, start_on_ranks)
        reports = run(engine, chosen, 0, HALF)
        path, state = folder / f"{kind}-{stage}-{precision}.pt", engine.state()
        reports += run(engine, chosen, HALF, STEPS)
        if engine.rank == 0:  # the steps in between did not change it
            torch.save(state, path)
        engine.all_reduce_max(0)
        network = engine.module.objective.target.network  # type: ignore[attr-defined]
        whole = {"reports": reports, "target": network.state_dict(), **ends(engine)}
        engine = targeting(kind, chosen, start_on_ranks)
        engine.load(torch.load(path, weights_only=True))
        again = {"reports": run(engine, chosen, HALF), **ends(engine)}
        results[kind, stage, precision] = whole, again
    torch.save(results, folder / f"rank{dist.get_rank()}.pt")
    dist.destroy_process_group()


def train(folder: Path, unreadable: int | None = None, **changes: Any) -> int:
    """`launch`, with the toy task in the place of one from the registry; slow enough to stop."""
    from vidcm.cli import common as command
    from vidcm.train import launch

    launch.make_task = lambda *_: task(Points({BAD}, delay=0.05, unreadable=unreadable))
    launch.save_model = lambda folder, *_, **__: folder.mkdir(parents=True)
    chosen = config(str(folder), zero=2, rank_timeout=10, **{**LONG, **changes})
    return command.run(lambda _: launch.launch(chosen, "cpu"), Namespace())


def failing(folder: Path) -> int:
    return train(folder, unreadable=8 * BATCH - 1)


def short(folder: Path) -> int:
    return train(folder, **SHORT)


def killed(folder: Path) -> int:
    """A run in one process that is killed with half of its second checkpoint written."""
    from vidcm.train import checkpoint, loop

    def half(file: checkpoint.HashedFile, data: bytes | memoryview) -> int:
        whole = memoryview(data).cast("B")
        if "step-00000008" in str(file.file.name) and len(whole) > 100:
            write(file, whole[: len(whole) // 2])
            file.file.flush()
            os.kill(os.getpid(), signal.SIGKILL)
        return write(file, whole)

    write, checkpoint.HashedFile.write = checkpoint.HashedFile.write, half
    chosen = config(str(folder), **SHORT)
    return loop.train(chosen, task(Points({BAD})), local(chosen), lambda *_: None)


LONG: dict[str, Any] = dict(steps=400, save_every=50, log_every=1, sample_every=200)
SHORT: dict[str, Any] = dict(
    steps=20, save_every=4, log_every=1, sample_every=9, gradient_accumulation_steps=2
)


if __name__ == "__main__":
    names = [a for a in sys.argv[1:] if not a.startswith("--local_rank")]
    modes = {
        "parity": parity,
        "roles": roles,
        "target": target,
        "train": train,
        "failing": failing,
        "short": short,
        "killed": killed,
    }
    sys.exit(modes[names[0]](Path(names[1])))
