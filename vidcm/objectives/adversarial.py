"""An adversarial term in latent space: LADD (Sauer et al. 2024, arXiv 2403.12015), as SANA-Sprint
adds it to consistency (Chen et al. 2025, arXiv 2503.09641, section 3.3; RECIPES B.7).

Small heads on the frozen teacher's tokens, at a few of its blocks, tell noised data from noised
samples of the student's, by hinge losses. Alone, and from noise, it is a one-step GAN.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from vidcm.data.batch import Batch
from vidcm.diffusion.denoiser import Denoiser
from vidcm.diffusion.times import T_START, to_path_time
from vidcm.errors import UsageError
from vidcm.objectives.backward_simulation import sample_timesteps
from vidcm.objectives.base import Loss, Role, check_period, role_settings, whose_turn
from vidcm.objectives.common import PromptBatch, check_dropout, check_guidance, check_log_normal
from vidcm.rng import SampleRng


class Critic(nn.Module):
    """One head per block: tokens `(b, n, width)` each to a verdict per token, `(b, heads * n)`."""

    def __init__(self, widths: Sequence[int], hidden: int):
        super().__init__()
        self.heads = nn.ModuleList(
            nn.Sequential(nn.Linear(width, hidden), nn.SiLU(), nn.Linear(hidden, 1))
            for width in widths
        )

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        seen = [F.layer_norm(x, x.shape[-1:]) for x in features]
        return torch.cat([h(x).squeeze(-1) for h, x in zip(self.heads, seen, strict=True)], dim=1)


class Adversarial:
    """teacher: a frozen denoiser whose backbone has `blocks` of tokens. blocks: which of them the
    critic sees. hidden: width of its heads. mean, std: of the ln sigma from which the student jumps
    to data, but for the share `from_noise`, which starts as sampling does. noise: mean and std of
    the ln sigma at which the critic looks. guidance: range of the scales the student is told; data
    are samples at scale 1. dropout: share of empty prompts. every: the student has one turn in so
    many, the critic the others. rate, betas: of the critic's AdamW, over the student's.

    Raises UsageError for options that make no sense; without a teacher when its roles are asked for.
    """

    def __init__(
        self,
        teacher: Denoiser | None,
        blocks: Sequence[int] = (1, 3, 5),
        hidden: int = 64,
        p_mean: float = 0.2,
        p_std: float = 1.8,
        from_noise: float = 0.5,
        noise: tuple[float, float] | list[float] = (0.1, 1.0),
        guidance_range: tuple[float, float] | list[float] = (1.0, 1.0),
        prompt_dropout: float = 0.1,
        student_update_freq: int = 2,
        lr_scale: float = 1.0,
        betas: tuple[float, float] | list[float] | None = None,
    ):
        check_period(student_update_freq, 1)
        if not 0 <= from_noise <= 1:
            raise UsageError(f"from_noise {from_noise} is not in [0, 1]")
        if len(noise) != 2 or noise[1] < 0:
            raise UsageError(f"noise {noise} is not a mean and a deviation of ln sigma")
        if not blocks or hidden < 1:
            raise UsageError(
                f"blocks {list(blocks)}, hidden {hidden}: the critic would see nothing"
            )
        self.teacher, self.blocks, self.hidden = teacher, list(blocks), hidden
        self.p_mean, self.p_std = check_log_normal(p_mean, p_std)
        self.from_noise, self.noise = from_noise, tuple(noise)
        self.guidance_range = check_guidance(guidance_range)
        self.prompt_dropout = check_dropout(prompt_dropout, all_empty=True)
        self.student_update_freq = student_update_freq
        self.lr_scale, self.betas = lr_scale, role_settings(lr_scale, betas)

    @cached_property
    def critic(self) -> Critic:
        """The heads, of the width of the teacher's tokens."""
        if self.teacher is None:
            raise UsageError(
                "adversarial needs a teacher: set teacher to a teacher's `final` folder"
            )
        depth = len(_blocks(self.teacher))
        if not all(0 <= i < depth for i in self.blocks):
            raise UsageError(f"blocks {self.blocks}: the teacher's are 0 to {depth - 1}")
        width: int = self.teacher.backbone.hidden_size
        return Critic([width] * len(self.blocks), self.hidden)

    @property
    def roles(self) -> dict[str, Role]:
        return {"critic": Role(self.critic, self.critic_loss, self.lr_scale, self.betas)}

    def turn(self, step: int, progress: float) -> str:
        return whose_turn(step, self.student_update_freq, ["critic"])

    def __call__(self, model: Denoiser, batch: Batch, progress: float, rng: SampleRng) -> Loss:
        """The student's: its samples should pass for data."""
        prompts, x0 = self._samples(model, batch, rng)
        # The critic judges here and does not learn: its gradients are not even computed.
        still = {name: p.detach() for name, p in self.critic.named_parameters()}
        verdict = functional_call(self.critic, still, (self._features(model, x0, prompts, rng),))
        return Loss(-verdict.mean(), {"verdict": verdict.detach().mean()})

    def critic_loss(self, model: Denoiser, batch: Batch, progress: float, rng: SampleRng) -> Loss:
        """Hinge: data above 1, samples below -1."""
        assert batch.latents is not None
        with torch.no_grad():
            prompts, x0 = self._samples(model, batch, rng)
            made = self._features(model, x0, prompts, rng)
            data = self._features(model, batch.latents, prompts, rng)
        real, fake = self.critic(data), self.critic(made)
        right = ((real.detach() > 0).float().mean() + (fake.detach() < 0).float().mean()) / 2
        return Loss(F.relu(1 - real).mean() + F.relu(1 + fake).mean(), {"right": right})

    def _samples(self, model: Denoiser, batch: Batch, rng: SampleRng) -> tuple[list[str], Tensor]:
        """Prompts, and what the student makes of them in one step."""
        assert batch.latents is not None
        data, path = batch.latents, model.path
        prompts = PromptBatch.draw(batch, rng, self.prompt_dropout, self.guidance_range)
        t = sample_timesteps(path, rng, self.p_mean, self.p_std).to(data)
        eps = rng.normal(*data.shape[1:]).to(data)
        alone = rng.uniform() < self.from_noise
        start = to_path_time(path, [T_START]).to(data).expand(len(data))
        from_noise = path.add_noise(torch.zeros_like(data), eps, start)
        some = alone.view(-1, *[1] * (data.ndim - 1))
        x_t = torch.where(some, from_noise, path.add_noise(data, eps, t))
        x0 = model.predict_x0(
            x_t, torch.where(alone, start, t), prompts.encode(model, with_guidance=True)
        )
        return prompts.prompts, x0

    def _features(
        self, model: Denoiser, x0: Tensor, prompts: list[str], rng: SampleRng
    ) -> list[Tensor]:
        """The teacher's tokens after the chosen blocks, of latents it sees through noise."""
        assert self.teacher is not None
        path = self.teacher.path
        t = sample_timesteps(path, rng, *self.noise).to(x0)
        x_t = path.add_noise(x0, rng.normal(*x0.shape[1:]).to(x0), t)
        with _watching([_blocks(self.teacher)[i] for i in self.blocks]) as seen:
            self.teacher.predict(x_t, t, self.teacher.encode(prompts))
        return [x.float() for x in seen]


def _blocks(teacher: Denoiser) -> nn.ModuleList:
    blocks = getattr(teacher.backbone, "blocks", None)
    if not isinstance(blocks, nn.ModuleList):
        raise UsageError("adversarial needs a teacher whose backbone has blocks, such as dit")
    return blocks


@contextmanager
def _watching(modules: Sequence[nn.Module]) -> Iterator[list[Tensor]]:
    """Collects what the modules put out, in the order in which they run."""
    seen: list[Tensor] = []

    def keep(module: nn.Module, args: tuple, out: Tensor) -> None:
        seen.append(out)

    handles = [m.register_forward_hook(keep) for m in modules]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()
