"""From noise, or from a noisy clip, to clean latents: a student's sampler or a teacher's ODE walk,
with every guess of the clean latents projected."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vidcm.diffusion import samplers
from vidcm.diffusion.base import Cond
from vidcm.diffusion.guidance import CFGDenoiser
from vidcm.diffusion.paths import ProbPath
from vidcm.editing.conditioned import GivenFramesDenoiser, GivenLatents
from vidcm.editing.projection import Project, ProjectedDenoiser
from vidcm.errors import VidcmError
from vidcm.rng import SampleRng

if TYPE_CHECKING:
    from vidcm.pipeline import VideoPipeline


@dataclass(frozen=True)
class How:
    """Options of a pipeline's call: steps and guidance (None: the checkpoint's own), whether the
    teacher walks, and whom to tell of progress. zero_shot: projects guesses alone, also where the
    model was trained with given frames."""

    steps: int | None = None
    guidance: float | None = None
    teacher: bool = False
    progress: Callable[[int, int], None] | None = None
    zero_shot: bool = False

    def settled(self, pipe: "VideoPipeline", given: bool = False) -> "How":
        """With numbers for what is left open. given: whether something of the clip is; a student is
        then left to guess without guidance, which would only add grain to what follows from it.
        Raises UsageError when one is out of range."""
        steps, guidance = pipe.numbers(self.teacher, self.steps, self.guidance)
        if given and self.guidance is None and not self.teacher:
            lowest, _ = pipe.settings["student"].get("guidance_range", (1.0, 1.0))
            guidance = min(guidance, max(1.0, lowest))
        return replace(self, steps=steps, guidance=guidance)

    def evaluations(self, pipe: "VideoPipeline") -> int:
        """Network forwards of a clip, guidance's second one counted. self: settled."""
        assert self.steps is not None
        if not self.teacher:
            return self.steps
        return 2 * (2 * self.steps - 1 if solver(pipe) == "heun" else self.steps)

    @property
    def role(self) -> str:
        return "teacher" if self.teacher else "student"


def walk(
    pipe: "VideoPipeline",
    how: How,
    cond: Cond,
    begin: Tensor,
    noise: Tensor,
    until: float,
    project: Project,
    rng: SampleRng,
    shown: GivenLatents | None = None,
) -> Tensor:
    """Clean latents `(b c t h w)`, projected; of clips beyond what the network was trained on, it
    sees windows.

    begin: latents noised with `noise`, up to `until` in 0..1, a share of the way to noise in
    rectified-flow time; 0 is data. noise: unit; or zero, if `begin` holds it already, and then no
    more is added on the way. how: settled. shown: frames that a model trained for it is shown."""
    assert how.steps is not None and how.guidance is not None
    if until == 0:
        return project(begin)
    model, report = pipe.windowed(how.role), how.progress or (lambda step, steps: None)
    calm = not how.teacher and not noise.any()
    times = pipe.times(how.teacher, how.steps, 1.0 if calm else until)
    if calm:
        times = _lowered(model.path, times, until)
    t = torch.full((len(noise),), times[0], device=noise.device)
    x = model.path.add_noise(begin, noise, t)
    if how.teacher:
        empty = pipe.model(how.role).encode([""] * len(noise))
        denoiser = CFGDenoiser(model, how.guidance, empty)
        sampler = samplers.SOLVERS[solver(pipe)]
    else:
        denoiser, own = model, pipe.settings["student"].get("sampler", "consistency")
        sampler = samplers.SAMPLERS["flow_map" if calm else own]
    seeing = GivenFramesDenoiser(denoiser, shown) if shown else denoiser

    steps = how.steps

    def on_step(step: int, time: float, x: Tensor) -> Tensor:
        report(step + 1, steps)
        return x

    return sampler(ProjectedDenoiser(seeing, project), x, times, cond, rng, on_step)


def _lowered(path: ProbPath, times: list[float], until: float) -> list[float]:
    """A student's times, with sigma / alpha lowered by one factor to begin at `until`."""
    if until == 1:
        return times
    ratio = path.sigma_ratio(torch.tensor(times, dtype=torch.float64))
    return path.t_from_sigma(ratio * min(1.0, until / (1 - until) / float(ratio[0]))).tolist()


def solver(pipe: "VideoPipeline") -> str:
    """The teacher's, by its settings. Raises VidcmError for one that this version does not know."""
    name = pipe.settings["teacher"].get("solver", "euler")
    if name not in samplers.SOLVERS:
        raise VidcmError(
            f"{pipe.folder / 'pipeline.json'} asks for the solver {name!r}; this version knows "
            f"{', '.join(samplers.SOLVERS)}"
        )
    return name


def text(pipe: "VideoPipeline", how: How, prompts: list[str]) -> Cond:
    """Prompts as a condition; a student is told the guidance scale. how: settled."""
    assert how.guidance is not None
    told = None if how.teacher else torch.full((len(prompts),), how.guidance, device=pipe.device)
    return pipe.model(how.role).encode(prompts, told)
