"""Consistency distillation on a fixed grid of times (Song et al. 2023, arXiv 2303.01469, algorithm
2; Luo et al. 2023, arXiv 2310.04378, latent consistency models; RECIPES B.2).

f(x_t, t) is drawn to f(x_r, r), x_r one guided teacher's step down the grid from x_t. The target is
the student itself without gradient (Song & Dhariwal 2023, arXiv 2310.14189, section 3.2), or, as in
the first two papers, an average of its weights. Without a teacher x_r shares the noise of x_t, which is consistency training.
"""

import torch
from torch import Tensor

from vidcm.data.batch import Batch
from vidcm.diffusion.denoiser import Denoiser
from vidcm.diffusion.shapes import like
from vidcm.diffusion.times import SHIFT, shifted_timesteps, to_path_time
from vidcm.errors import UsageError
from vidcm.objectives.base import Loss
from vidcm.objectives.common import SOLVERS, PromptBatch, check_dropout, check_guidance
from vidcm.objectives.target_network import average
from vidcm.rng import SampleRng


class LatentConsistency:
    """teacher: a frozen denoiser on the same path, or None. intervals, shift: of the grid of times.
    skip: intervals that one step covers. solver: of the teacher, "euler" or "heun". guidance: range
    of the scales that teacher and student are told. huber: c of the pseudo-Huber loss of every
    latent; null is the squared error. dropout: share of empty prompts. target_decay: of the average
    of the student's weights that is the target, such as 0.95; null: the student itself is.

    Raises UsageError for an unknown solver, or a range, count or decay that makes no sense.
    """

    def __init__(
        self,
        teacher: Denoiser | None,
        intervals: int = 48,
        skip: int = 1,
        shift: float = SHIFT,
        solver: str = "euler",
        guidance_range: tuple[float, float] | list[float] = (1.0, 5.0),
        huber_c: float | None = 1e-3,
        prompt_dropout: float = 0.1,
        target_decay: float | None = None,
    ):
        if not 1 <= skip <= intervals:
            raise UsageError(f"skip {skip} of {intervals} intervals: use 1 to {intervals}")
        if shift <= 0:
            raise UsageError(f"shift is {shift}; it must be above 0 (1 is an even grid)")
        if solver not in SOLVERS:
            raise UsageError(f"unknown solver {solver!r} (known: {', '.join(SOLVERS)})")
        if huber_c is not None and huber_c <= 0:
            raise UsageError(
                f"huber_c is {huber_c}; it must be above 0, or null for the squared error"
            )
        self.teacher, self.intervals, self.skip, self.shift = teacher, intervals, skip, shift
        self.solver, self.huber_c, self.prompt_dropout = (
            solver,
            huber_c,
            check_dropout(prompt_dropout),
        )
        self.guidance_range = check_guidance(guidance_range)
        self.held = average(target_decay)

    def edge(self, index: Tensor) -> Tensor:
        """The place in the grid, 0 being data, that f leads to from the place `index`."""
        return torch.zeros_like(index)

    def __call__(self, model: Denoiser, batch: Batch, progress: float, rng: SampleRng) -> Loss:
        assert batch.latents is not None
        x0, path = batch.latents, model.path
        index = 1 + (rng.uniform() * self.intervals).long().clamp(max=self.intervals - 1)
        edge = self.edge(index)
        lower = torch.maximum(index - self.skip, edge)
        grid = to_path_time(path, shifted_timesteps(self.intervals, by=self.shift)).flip(0).to(x0)
        t, r, s = grid[index], grid[lower], grid[edge]
        eps = rng.normal(*x0.shape[1:])
        prompts = PromptBatch.draw(batch, rng, self.prompt_dropout, self.guidance_range)

        x_t = path.add_noise(x0, eps, t)
        if self.teacher is None:
            x_r = path.add_noise(x0, eps, r)
        else:
            x_r = prompts.step(self.teacher, x_t, t, r, self.solver)
        taught = self.teacher is not None
        start = model.flow_map(x_t, t, s, prompts.encode(model, with_guidance=taught))
        with torch.no_grad():
            aim = model if self.held is None else self.held.network
            target = aim.flow_map(x_r, r, s, prompts.encode(aim, with_guidance=taught))
            # At the edge f is the identity by construction.
            target = torch.where(like(lower == edge, x_r), x_r, target)
        size = torch.hypot(path.alpha(s), path.sigma(s))
        square = ((start - target) / like(size, x_t)).square()
        c = self.huber_c
        losses = square if c is None else (square + c**2).sqrt() - c
        error = square.detach().flatten(1).mean(1).sqrt().mean()
        return Loss(losses.mean(), {"consistency_error": error})
