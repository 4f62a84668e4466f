"""The Gaussian world for students that jump: the exact flow map, and small networks of two times."""

from collections.abc import Callable, Sequence

import torch
from oracle import Gaussian, Said
from torch import Tensor, nn

from vidcm.data.batch import Batch
from vidcm.diffusion.base import Cond
from vidcm.diffusion.denoiser import Denoiser
from vidcm.diffusion.paths import RectifiedFlow
from vidcm.diffusion.times import T_START
from vidcm.objectives.base import Objective
from vidcm.objectives.common import PromptBatch, StudentObjective
from vidcm.rng import SampleRng

MEANS = {"": 0.2, "up": 0.9}
PLACES = range(64)


class Watching(Gaussian):
    """Keeps the times of its jumps, what it was told and whether a gradient was asked for."""

    def __init__(self):
        super().__init__(RectifiedFlow(), means=MEANS)
        self.seen, self.graded, self.told = [], [], []

    def encode(self, prompts, guidance_scale=None):
        self.told.append((list(prompts), guidance_scale))
        return super().encode(prompts, guidance_scale)

    def flow_map(self, x_t, t, s, cond):
        self.seen.append((t, s))
        self.graded.append(torch.is_grad_enabled())
        return super().flow_map(x_t, t, s, cond)


class Pointwise(nn.Module):
    """A backbone that acts on every element alone, which is all this world asks of one."""

    def __init__(self, channels: int, context: int, width: int = 32, two_times: bool = False):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(6 + context, width),
            nn.SiLU(),
            nn.Linear(width, width),
            nn.SiLU(),
            nn.Linear(width, 1),
        )

    def forward(self, x: Tensor, time: Tensor, cond: Cond, time_to: Tensor | None = None) -> Tensor:
        told = torch.zeros_like(time) if cond.guidance_scale is None else cond.guidance_scale
        span = torch.zeros_like(time) if time_to is None else time - time_to
        scalars = torch.stack([time, time.square(), span, span * time, told], dim=-1)
        known = torch.cat([scalars, cond.tokens[:, 0].to(scalars.dtype)], dim=-1)
        known = known.view(len(x), *[1] * (x.ndim - 1), -1).expand(*x.shape, -1)
        return self.layers(torch.cat([x.unsqueeze(-1), known], dim=-1)).squeeze(-1)


def student(two_times: bool = False) -> Denoiser:
    """A denoiser of single elements whose prompts are numbers."""
    torch.manual_seed(0)
    return Denoiser(Pointwise(1, 1, two_times=two_times), Said(), 1, two_times=two_times)


def points(places: range) -> Tensor:
    """Draws of N(0.9, 0.5^2), which the prompt "0.9" names."""
    return 0.9 + 0.5 * SampleRng(8, places).normal(1, 1, 1, 16)


def trained(
    model: Denoiser, objective: Objective, steps: int, data: Callable[[range], Tensor] = points
) -> Denoiser:
    """Adam over fresh batches of data whose prompt is "0.9"."""
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2, betas=(0.9, 0.99))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    if objective.target:
        objective.target.start(model)
    for step in range(steps):
        objective.before_step(model, step / steps)
        places = range(step * 32, step * 32 + 32)
        drawn = Batch(["0.9"] * 32, latents=data(places))
        total = objective(model, drawn, step / steps, SampleRng(1, places)).total
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        schedule.step()
    return model


@torch.no_grad()
def one_step(model: Denoiser, scale: float | None) -> tuple[float, float]:
    """Mean and spread of what one step makes of quantiles of the noise, over the exact map's."""
    eps = torch.linspace(-2, 2, 17).view(1, 1, 1, 1, 17)
    guidance = None if scale is None else torch.tensor([scale])
    cond = model.encode(["0.9"], guidance)
    x = model.predict_x0(eps * T_START, torch.tensor([T_START]), cond)
    mean = 0.9 if scale is None else 0.4 + scale * (0.9 - 0.4)
    return float(x.mean()) - mean, float(x.std() / (0.5 * eps).std())


def batch(places: Sequence[int] = PLACES, prompt: str = "up", width: int = 2) -> Batch:
    x0 = MEANS[prompt] + 0.5 * SampleRng(8, places).normal(2, 3, 2, width).double()
    return Batch([prompt] * len(x0), latents=x0)


def loss(model, objective: Objective, places: Sequence[int] = PLACES, width: int = 2) -> Tensor:
    return objective(model, batch(places, width=width), 0.0, SampleRng(1, places)).total


# --- planted mistakes: methods to put into a subclass of an objective -----------------------------


def scale_off_by_one(self, prompts, x_t, t):
    """`teacher_velocity` at guidance scales as the paper of latent consistency counts them."""
    wrong = PromptBatch(prompts.prompts, prompts.scale + 1)
    return StudentObjective.teacher_velocity(self, wrong, x_t, t)


def other_noise(self, path, x0, eps, r):
    """`data_step` that does not share the noise of x_t."""
    return path.add_noise(x0, SampleRng(99, range(len(x0))).normal(*x0.shape[1:]), r)
