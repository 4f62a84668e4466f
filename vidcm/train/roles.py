"""Several networks trained in turns: one engine per role, and one that looks like a single engine.

Only the student has an average, and only its weights are exported; a checkpoint holds all roles.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import cast

import torch
from torch import Tensor, nn

from vidcm.config import TrainConfig
from vidcm.data.batch import Batch, MicroBatch
from vidcm.errors import UsageError
from vidcm.objectives.base import STUDENT, Joint, Loss, Objective, Role, roles_of, target_network_of
from vidcm.rng import SampleRng
from vidcm.train.engine import Engine, StepReport, TrainStep
from vidcm.train.holding import Holding

Start = Callable[[TrainStep, TrainConfig, bool], Engine]  # the flag: whether to keep an average


def assemble(
    student: nn.Module,
    objective: Objective,
    config: TrainConfig,
    device: torch.device,
    start: Start,
) -> Engine:
    """The engine of a run, each role's made by `start`; an objective of one role gets its engine
    bare. Raises UsageError for several roles, or a held copy of the student, under ZeRO 3."""
    roles, held = roles_of(objective), target_network_of(objective)
    if roles and config.zero == 3:
        names = ", ".join(roles)
        raise UsageError(
            f"zero=3 shards one trained network, but this objective trains {names} too; use zero=2"
        )
    if held and config.zero == 3:
        raise UsageError(
            "zero=3 shards the student, but this objective holds a whole copy of it; use zero=2"
        )
    if held:
        held.start(student)  # while it is whole and fp32
    first = start(TrainStep(student, objective, device), config, True)
    if held:
        first = Holding(first, held, student)
    if not roles:
        return first

    def engine(role: Role) -> Engine:
        def loss(model: nn.Module, batch: Batch, progress: float, rng: SampleRng) -> Loss:
            return role.objective(student, batch, progress, rng)

        betas = role.betas or config.optimizer.betas
        own = replace(config, optimizer=replace(config.optimizer, betas=betas))
        return start(TrainStep(role.module.to(device), loss, device), own, False)

    others = {name: engine(role) for name, role in roles.items()}
    rates = {name: role.lr_scale for name, role in roles.items()}
    return Ensemble(first, others, rates, cast(Joint, objective).turn)


class Ensemble:
    """The engines of all roles as one; see `Engine` for the methods. A step is one role's turn."""

    def __init__(
        self,
        student: Engine,
        others: Mapping[str, Engine],
        rates: Mapping[str, float],
        turn: Callable[[int, float], str],
    ):
        self.student, self.others, self.rates, self.turn = student, others, rates, turn
        self.rank, self.world = student.rank, student.world

    def step(
        self, parts: Sequence[MicroBatch], progress: float, lr: float, step: int
    ) -> StepReport:
        name = self.turn(step, progress)
        if name == STUDENT:
            return self.student.step(parts, progress, lr, step)
        report = self.others[name].step(parts, progress, lr * self.rates[name], step)
        return replace(report, role=name)

    def weights(self, *, ema: bool) -> dict[str, Tensor]:
        return self.student.weights(ema=ema)

    def state(self) -> dict:
        state = self.student.state()
        roles = {name: engine.state() for name, engine in self.others.items()}
        return {**state, "roles": roles} if state else {}

    def load(self, state: dict) -> None:
        self.student.load(state)
        for name, engine in self.others.items():
            engine.load(state["roles"][name])

    def agree(self, value: int) -> int:
        return self.student.agree(value)
