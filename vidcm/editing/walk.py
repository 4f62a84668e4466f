"""From noise, or from a noisy clip, to clean latents: a student's sampler or a teacher's ODE walk,
with every guess of the clean latents projected."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vidcm import sampling
from vidcm.denoiser import Cond, Guided
from vidcm.editing.projection import Observing, ObservingFlow, Project
from vidcm.rng import SampleRng
from vidcm.shapes import like

if TYPE_CHECKING:
    from vidcm.pipeline import VideoPipeline


@dataclass(frozen=True)
class How:
    """Options of a pipeline's call: steps and guidance (None: the checkpoint's own), whether the
    teacher walks, and whom to tell of progress."""

    steps: int | None = None
    guidance: float | None = None
    teacher: bool = False
    progress: Callable[[int, int], None] | None = None

    def settled(self, pipe: "VideoPipeline") -> "How":
        """With numbers for what is left open. Raises UsageError when one is out of range."""
        steps, guidance = pipe.numbers(self.teacher, self.steps, self.guidance)
        return How(steps, guidance, self.teacher, self.progress)

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
) -> Tensor:
    """Clean latents `(b c t h w)`, projected.

    begin: latents noised with `noise`, unit or none, up to `until` in 0..1, a share of the way to
    noise in rectified-flow time; 0 is data. how: settled."""
    assert how.steps is not None and how.guidance is not None
    if until == 0:
        return project(begin)
    model, report = pipe.model(how.role), how.progress or (lambda step, steps: None)
    times = pipe.times(how.teacher, how.steps, until)
    t = torch.full((len(noise),), times[0], device=noise.device)
    if how.teacher:
        flow = Guided(model, how.guidance, model.encode([""] * len(noise)))
        x = model.path.noise(begin, noise, t)
        return sampling.euler(ObservingFlow(flow, project), x, times, cond, report)
    # Samplers of students scale unit noise by their first time and know no other beginning.
    lifted = noise + like(model.path.alpha(t) / model.path.sigma(t), begin) * begin
    sampler = sampling.SAMPLERS[pipe.settings["student"].get("sampler", "consistency")]
    return sampler(Observing(model, project), lifted, times, cond, rng, report)


def text(pipe: "VideoPipeline", how: How, prompts: list[str]) -> Cond:
    """Prompts as a condition; a student is told the guidance scale. how: settled."""
    assert how.guidance is not None
    told = None if how.teacher else torch.full((len(prompts),), how.guidance, device=pipe.device)
    return pipe.model(how.role).encode(prompts, told)
