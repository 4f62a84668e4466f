"""Phased consistency (Wang et al. 2024, arXiv 2405.18407): a trajectory in phases, each with a
consistency function of its own that leads to the phase's lower edge.

As many deterministic steps as phases go from noise to data, each by the map x_t -> x_s of the
predicted data and noise, DDIM's. One phase is latent consistency.
"""

from torch import Tensor

from vidcm.diffusion.denoiser import Denoiser
from vidcm.diffusion.times import SHIFT, shifted_timesteps
from vidcm.errors import UsageError
from vidcm.objectives.latent_consistency import LatentConsistency


class PhasedConsistency(LatentConsistency):
    """phases: how many, of equally many intervals each. The other options and refusals are those
    of LatentConsistency; the error is measured at the phase's edge, in units of a noisy latent's
    spread there. Raises UsageError when the phases do not divide the intervals."""

    sampling = {"sampler": "flow_map"}

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
        edges = shifted_timesteps(phases, by=shift)[:-1].tolist()
        self.sampling = self.sampling | {"phases": phases, "timesteps": edges}

    def edge(self, index: Tensor) -> Tensor:
        """The lower edge of the phase whose upper edge or inside `index` is."""
        length = self.intervals // self.phases
        return (index - 1) // length * length
