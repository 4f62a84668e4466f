"""Several networks trained in turns: one engine per role, and one that looks like a single engine.

Only the student has an average, and only its weights are exported; a checkpoint holds all roles.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from vidcm.config import TrainConfig
from vidcm.data.batch import Batch, MicroBatch
from vidcm.errors import UsageError
from vidcm.objectives.base import STUDENT, Loss, Objective, Role
from vidcm.rng import SampleRng
from vidcm.train.engine import Engine, StepReport, TrainStep

Start = Callable[[TrainStep, TrainConfig, bool], Engine]  # the flag: whether to keep an average


def assemble(
    student: nn.Module,
    objective: Objective,
    config: TrainConfig,
    device: torch.device,
    start: Start,
) -> Engine:
    """Build the engine of a run.

    Args:
        student: The network that is exported.
        objective: It may train further networks.
        config: Of the run.
        device: Of all networks.
        start: Builds the engine of one network.

    Returns:
        The student's engine, or one of all roles.

    Raises:
        UsageError: ZeRO 3 with several networks or a target network.
    """
    if objective.role_names and config.zero == 3:
        names = ", ".join(objective.role_names)
        raise UsageError(
            f"zero=3 shards one trained network, but this objective trains {names} too; use zero=2"
        )
    if objective.target and config.zero == 3:
        raise UsageError(
            "zero=3 shards the student, but this objective needs a full copy of it; use zero=2"
        )
    first = start(TrainStep(student, objective, device), config, True)
    if not (roles := objective.roles):
        return first

    def engine(role: Role) -> Engine:
        betas = role.betas or config.optimizer.betas
        own = replace(config, optimizer=replace(config.optimizer, betas=betas))
        module = role.module.to(device)
        return start(TrainStep(module, RoleObjective(role, student), device), own, False)

    return Ensemble(first, {name: engine(role) for name, role in roles.items()}, objective)


class RoleObjective(Objective):
    """The loss of a role's turns, which gets the student."""

    def __init__(self, role: Role, student: nn.Module):
        self.role, self.student = role, student

    def __call__(self, model: nn.Module, batch: Batch, progress: float, rng: SampleRng) -> Loss:
        return self.role.loss(self.student, batch, progress, rng)


class Ensemble:
    """The engines of all roles as one; see `Engine` for the methods. A step is one role's turn.

    Args:
        student: The engine of the network that is exported.
        others: Engines of the further networks, by role.
        objective: Decides whose turn it is, and the roles' learning rates.
    """

    def __init__(self, student: Engine, others: Mapping[str, Engine], objective: Objective):
        self.student, self.others, self.turn = student, others, objective.turn
        self.lr_scales = {name: role.lr_scale for name, role in objective.roles.items()}
        self.rank, self.world, self.frozen = student.rank, student.world, student.frozen

    def step(
        self, parts: Sequence[MicroBatch], progress: float, lr: float, step: int
    ) -> StepReport:
        name = self.turn(step, progress)
        if name == STUDENT:
            return self.student.step(parts, progress, lr, step)
        report = self.others[name].step(parts, progress, lr * self.lr_scales[name], step)
        return replace(report, role=name)

    def weights(self, *, ema: bool) -> dict[str, Tensor]:
        return self.student.weights(ema=ema)

    def state(self, *, copy: bool = True) -> dict:
        state = self.student.state(copy=copy)
        roles = {name: engine.state(copy=copy) for name, engine in self.others.items()}
        return {**state, "roles": roles} if state else {}

    def load(self, state: dict) -> None:
        self.student.load(state)
        for name, engine in self.others.items():
            engine.load(state["roles"][name])

    def all_reduce_max(self, value: int) -> int:
        return self.student.all_reduce_max(value)
