"""Phased consistency: a trajectory in phases, each with a consistency function to its lower edge.

Wang et al. 2024, arXiv 2405.18407. As many deterministic steps as phases lead from noise to data,
each by the map x_t -> x_s of the predicted data and noise, which is DDIM's. One phase is latent
consistency.
"""

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from vidcm.diffusion.times import shifted_timesteps
from vidcm.errors import UsageError
from vidcm.objectives.latent_consistency import LatentConsistency


@dataclass(eq=False, kw_only=True)
class PhasedConsistency(LatentConsistency):
    """Latent consistency within each of `phases` phases.

    The error is measured at the phase's edge, in units of a noisy latent's deviation there.
    The other options are those of `LatentConsistency`.

    Args:
        phases: How many, of equally many intervals each; a skip is at most a phase.
        trained_phases: The first and the last phase to train, counted from the data from 0 on
            (default: all). A network for a range of noise is trained on the phases in it.

    Raises:
        UsageError: The phases do not divide the intervals, or an option makes no sense.
    """

    phases: int = 4
    trained_phases: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        length, rest = divmod(self.intervals, self.phases) if self.phases > 0 else (0, 1)
        if rest:
            divisors = [n for n in range(1, self.intervals + 1) if self.intervals % n == 0]
            raise UsageError(
                f"{self.phases} phases do not divide {self.intervals} intervals; use "
                f"{', '.join(map(str, divisors))}"
            )
        if self.skip > length:
            raise UsageError(f"skip {self.skip} is longer than a phase of {length} intervals")
        first, last = self.trained_phases or (0, self.phases - 1)
        if not 0 <= first <= last < self.phases:
            raise UsageError(
                f"trained_phases are {first} to {last}; use a first and a last one of 0 to "
                f"{self.phases - 1}"
            )
        self.trained_intervals = first * length, (last + 1) * length

    @property
    def sampling(self) -> dict[str, Any]:
        return phased_sampling(self.phases, self.shift)

    def edge(self, index: Tensor) -> Tensor:
        """Return the lower edge of the phase that `index` is in, or is the upper edge of."""
        length = self.intervals // self.phases
        return (index - 1) // length * length


def phased_sampling(phases: int, shift: float) -> dict[str, Any]:
    """Return the sampling settings of students that take `phases` deterministic steps only."""
    timesteps = shifted_timesteps(phases, by=shift)[:-1].tolist()
    return {"sampler": "flow_map", "phases": phases, "timesteps": timesteps}
