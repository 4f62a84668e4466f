"""Consistency distillation on a fixed grid of times.

Song et al. 2023, arXiv 2303.01469, algorithm 2; Luo et al. 2023, arXiv 2310.04378, latent
consistency models; RECIPES B.2. f(x_t, t) is regressed on f(x_r, r), x_r one step of the guided
teacher down the grid from x_t. The target is the student itself without gradient (Song & Dhariwal
2023, arXiv 2310.14189, section 3.2), or, as in the first two papers, an average of its weights.
Without a teacher x_r shares the noise of x_t, which is consistency training.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from vidcm.data.batch import Batch
from vidcm.diffusion.denoiser import Denoiser
from vidcm.diffusion.shapes import like
from vidcm.diffusion.times import SHIFT, shifted_timesteps, to_path_time
from vidcm.errors import UsageError
from vidcm.objectives.base import Loss
from vidcm.objectives.common import SOLVERS, StudentObjective
from vidcm.objectives.target_network import EmaTarget
from vidcm.rng import SampleRng


@dataclass(eq=False, kw_only=True)
class LatentConsistency(StudentObjective):
    """Latent consistency distillation, or consistency training without a teacher.

    Args:
        teacher: A frozen denoiser on the student's path, or None.
        intervals: Of the grid of times.
        skip: Intervals that one step of the teacher covers.
        shift: Factor on sigma / alpha of the grid.
        solver: Of the teacher, "euler" or "heun".
        guidance_range: Scales of teacher and student.
        huber_c: c of the pseudo-Huber loss of every latent, above 0; None is the squared error.
        prompt_dropout: Share of empty prompts.
        target_decay: Of the average of the student's weights that is the target, such as 0.95;
            None: the target is the student itself.

    Raises:
        UsageError: An option makes no sense.
    """

    intervals: int = 48
    skip: int = 1
    shift: float = SHIFT
    solver: str = "euler"
    huber_c: float | None = 1e-3
    target_decay: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.skip <= self.intervals:
            raise UsageError(
                f"skip {self.skip} of {self.intervals} intervals: use 1 to {self.intervals}"
            )
        if self.shift <= 0:
            raise UsageError(f"shift is {self.shift}; it must be above 0 (1 is an even grid)")
        if self.solver not in SOLVERS:
            raise UsageError(f"unknown solver {self.solver!r} (known: {', '.join(SOLVERS)})")
        if self.huber_c is not None and self.huber_c <= 0:
            raise UsageError(
                f"huber_c is {self.huber_c}; it must be above 0, or null for the squared error"
            )
        self.trained_intervals = 0, self.intervals
        self.target = None if self.target_decay is None else EmaTarget(self.target_decay)

    def edge(self, index: Tensor) -> Tensor:
        """Return the grid index, 0 for data, that f leads to from the grid index `index`."""
        return torch.zeros_like(index)

    def __call__(self, model: Denoiser, batch: Batch, progress: float, rng: SampleRng) -> Loss:
        assert batch.latents is not None
        x0, path = batch.latents, model.path
        first, last = self.trained_intervals
        index = first + 1 + (rng.uniform() * (last - first)).long().clamp(max=last - first - 1)
        edge = self.edge(index)
        lower = torch.maximum(index - self.skip, edge)
        grid = to_path_time(path, shifted_timesteps(self.intervals, by=self.shift)).flip(0).to(x0)
        t, r, s = grid[index], grid[lower], grid[edge]
        eps = rng.normal(*x0.shape[1:])
        prompts = self.draw_prompts(batch, rng)

        x_t = path.add_noise(x0, eps, t)
        if self.teacher is None:
            x_r = self.data_step(path, x0, eps, r)
        else:
            x_r = self.teacher_step(prompts, x_t, t, r, self.solver)
        f_t = model.flow_map(x_t, t, s, self.encode(prompts, model))
        with torch.no_grad():
            network = model if self.target is None else self.target.network
            f_r = network.flow_map(x_r, r, s, self.encode(prompts, network))
            # At the edge f is the identity by construction.
            f_r = torch.where(like(lower == edge, x_r), x_r, f_r)
        size = torch.hypot(path.alpha(s), path.sigma(s))
        square = ((f_t - f_r) / like(size, x_t)).square()
        error = square.detach().flatten(1).mean(1).sqrt().mean()
        return Loss(self.reduce(square), {"consistency_error": error})

    def reduce(self, square: Tensor) -> Tensor:
        """Return the loss of squared errors `(b c t h w)`."""
        c = self.huber_c
        return (square if c is None else (square + c**2).sqrt() - c).mean()
