"""An engine whose objective holds a copy of the student: it moves the copy and saves it along."""

from collections.abc import Sequence

from torch import Tensor, nn

from vidcm.data.batch import MicroBatch
from vidcm.objectives.target_network import TargetNetwork
from vidcm.train.engine import Engine, StepReport


class Holding:
    """The student's engine with what its objective holds; see `Engine` for the methods. A
    checkpoint has the copy beside the student, under `held`."""

    def __init__(self, engine: Engine, held: TargetNetwork, student: nn.Module):
        self.engine, self.held, self.student = engine, held, student
        self.rank, self.world = engine.rank, engine.world

    def step(
        self, parts: Sequence[MicroBatch], progress: float, lr: float, step: int
    ) -> StepReport:
        self.held.before_step(self.student, progress)
        return self.engine.step(parts, progress, lr, step)

    def weights(self, *, ema: bool) -> dict[str, Tensor]:
        return self.engine.weights(ema=ema)

    def state(self) -> dict:
        state = self.engine.state()
        return {**state, "held": self.held.state()} if state else {}

    def load(self, state: dict) -> None:
        self.engine.load(state)
        self.held.load(state["held"])

    def agree(self, value: int) -> int:
        return self.engine.agree(value)
