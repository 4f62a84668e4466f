"""Phased consistency: a trajectory in phases, each with a consistency function to its lower edge.

Wang et al. 2024, arXiv 2405.18407. As many deterministic steps as phases lead from noise to data,
each by the map x_t -> x_s of the predicted data and noise, which is DDIM's. One phase is latent
consistency.
"""

from typing import Any

from torch import Tensor

from vidcm.diffusion.denoiser import Denoiser
from vidcm.diffusion.times import SHIFT, shifted_timesteps
from vidcm.errors import UsageError
from vidcm.objectives.latent_consistency import LatentConsistency


class PhasedConsistency(LatentConsistency):
    """Latent consistency within each of `phases` phases.

    The error is measured at the phase's edge, in units of a noisy latent's deviation there.

    Args:
        teacher: A frozen denoiser on the student's path, or None.
        phases: How many, of equally many intervals each.
        intervals: As of `LatentConsistency`, like all that follow.
        skip: At most a phase.
        shift: See there.
        solver: See there.
        guidance_range: See there.
        huber_c: See there.
        prompt_dropout: See there.
        target_decay: See there.

    Raises:
        UsageError: The phases do not divide the intervals, or an option makes no sense.
    """

    def __init__(
        self,
        teacher: Denoiser | None,
        phases: int = 4,
        intervals: int = 48,
        skip: int = 1,
        shift: float = SHIFT,
        solver: str = "euler",
        guidance_range: tuple[float, float] | list[float] = (1.0, 5.0),
        huber_c: float | None = 1e-3,
        prompt_dropout: float = 0.1,
        target_decay: float | None = None,
    ):
        super().__init__(
            teacher,
            intervals,
            skip,
            shift,
            solver,
            guidance_range,
            huber_c,
            prompt_dropout,
            target_decay,
        )
        if phases < 1 or intervals % phases:
            divisors = [str(n) for n in range(1, intervals + 1) if intervals % n == 0]
            raise UsageError(
                f"{phases} phases do not divide {intervals} intervals; use {', '.join(divisors)}"
            )
        if skip > intervals // phases:
            raise UsageError(
                f"skip {skip} is longer than a phase of {intervals // phases} intervals"
            )
        self.phases = phases

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
