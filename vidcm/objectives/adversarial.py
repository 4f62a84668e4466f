"""An adversarial term in latent space: LADD (Sauer et al. 2024, arXiv 2403.12015).

As SANA-Sprint adds it to consistency (Chen et al. 2025, arXiv 2503.09641, section 3.3; RECIPES
B.7): small heads on the frozen teacher's tokens, at a few of its blocks, tell noised data from
noised samples of the student, by hinge losses. Alone, and from noise, it is a one-step GAN.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from vidcm.data.batch import Batch
from vidcm.diffusion.denoiser import Denoiser
from vidcm.diffusion.times import to_path_time
from vidcm.errors import UsageError
from vidcm.models.backbone import TransformerBackbone
from vidcm.objectives.backward_simulation import JudgedSamples, sample_timesteps
from vidcm.objectives.base import Loss, Role
from vidcm.objectives.common import Pair, PromptBatch, check_share
from vidcm.rng import SampleRng


class Critic(nn.Module):
    """One head per block: tokens `(b, n, width)` each to a score per token, `(b, heads * n)`."""

    def __init__(self, widths: Sequence[int], hidden_size: int):
        super().__init__()
        self.heads = nn.ModuleList(
            nn.Sequential(nn.Linear(width, hidden_size), nn.SiLU(), nn.Linear(hidden_size, 1))
            for width in widths
        )

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        tokens = [F.layer_norm(x, x.shape[-1:]) for x in features]
        return torch.cat([h(x).squeeze(-1) for h, x in zip(self.heads, tokens, strict=True)], dim=1)


@dataclass(eq=False, kw_only=True)
class Adversarial(JudgedSamples):
    """Fool a critic that sees the frozen teacher's tokens.

    Args:
        teacher: A frozen denoiser whose backbone has blocks of tokens.
        blocks: Indices of the teacher's blocks that the critic sees.
        hidden_size: Of the critic's heads.
        p_mean: Mean of the ln sigma from which the student jumps to data.
        p_std: Deviation of that ln sigma.
        from_noise: Share of samples that start where sampling does instead.
        noise: Mean and deviation of the ln sigma at which the critic looks.
        guidance_range: Scales of the student; data are samples at scale 1.
        prompt_dropout: Share of empty prompts.
        student_update_freq: The student has one step in so many, the critic the others.
        lr_scale: Of the critic, on the student's learning rate.
        betas: Of the critic's AdamW; the student's by default.

    Raises:
        UsageError: An option makes no sense.
    """

    role_names = ("critic",)

    blocks: Sequence[int] = (1, 3, 5)
    hidden_size: int = 64
    p_mean: float = 0.2
    from_noise: float = 0.5
    noise: Pair = (0.1, 1.0)
    guidance_range: Pair = (1.0, 1.0)
    student_update_freq: int = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.noise) != 2 or self.noise[1] < 0:
            raise UsageError(f"noise {self.noise} is not a mean and a deviation of ln sigma")
        if not self.blocks or self.hidden_size < 1:
            raise UsageError(
                f"blocks {list(self.blocks)}, hidden_size {self.hidden_size}: the critic would see "
                "nothing"
            )
        check_share("from_noise", self.from_noise)

    @cached_property
    def critic(self) -> Critic:
        """The heads, of the width of the teacher's tokens."""
        backbone = self._backbone()
        count = len(backbone.blocks)
        if not all(0 <= i < count for i in self.blocks):
            raise UsageError(f"blocks {self.blocks}: the teacher's are 0 to {count - 1}")
        return Critic([backbone.hidden_size] * len(self.blocks), self.hidden_size)

    def _backbone(self) -> TransformerBackbone:
        assert self.teacher is not None
        if not isinstance(self.teacher.backbone, TransformerBackbone):
            raise UsageError("adversarial needs a teacher whose backbone has blocks, such as dit")
        return self.teacher.backbone

    @property
    def roles(self) -> dict[str, Role]:
        return {"critic": Role(self.critic, self.critic_loss, self.lr_scale, self.betas)}

    def __call__(self, model: Denoiser, batch: Batch, progress: float, rng: SampleRng) -> Loss:
        """Compute the student's loss: its samples should pass for data."""
        prompts, x0 = self._samples(model, batch, rng)
        # The critic does not learn here: its gradients are not even computed.
        frozen = {name: p.detach() for name, p in self.critic.named_parameters()}
        score = functional_call(self.critic, frozen, (self._features(prompts, x0, rng),))
        return Loss(-score.mean(), {"critic_score": score.detach().mean()})

    def critic_loss(self, model: Denoiser, batch: Batch, progress: float, rng: SampleRng) -> Loss:
        """Compute the hinge loss: data above 1, samples below -1."""
        assert batch.latents is not None
        with torch.no_grad():
            prompts, x0 = self._samples(model, batch, rng)
            samples = self._features(prompts, x0, rng)
            data = self._features(prompts, batch.latents, rng)
        real, fake = self.critic(data), self.critic(samples)
        right = ((real.detach() > 0).float().mean() + (fake.detach() < 0).float().mean()) / 2
        return Loss(F.relu(1 - real).mean() + F.relu(1 + fake).mean(), {"accuracy": right})

    def _samples(self, model: Denoiser, batch: Batch, rng: SampleRng) -> tuple[PromptBatch, Tensor]:
        """Prompts, and the student's samples of them in one step."""
        assert batch.latents is not None
        data, path = batch.latents, model.path
        prompts = self.draw_prompts(batch, rng)
        t = sample_timesteps(path, rng, self.p_mean, self.p_std).to(data)
        eps = rng.normal(*data.shape[1:]).to(data)
        alone = rng.uniform() < self.from_noise
        start = to_path_time(path, [model.first_time]).to(data).expand(len(data))
        from_noise = path.add_noise(torch.zeros_like(data), eps, start)
        some = alone.view(-1, *[1] * (data.ndim - 1))
        x_t = torch.where(some, from_noise, path.add_noise(data, eps, t))
        cond = self.encode(prompts, model)
        return prompts, model.predict_x0(x_t, torch.where(alone, start, t), cond)

    def _features(self, prompts: PromptBatch, x0: Tensor, rng: SampleRng) -> list[Tensor]:
        """The teacher's tokens after the chosen blocks, of latents with noise."""
        assert self.teacher is not None
        path = self.teacher.path
        t = sample_timesteps(path, rng, *self.noise).to(x0)
        x_t = path.add_noise(x0, rng.normal(*x0.shape[1:]).to(x0), t)
        cond = prompts.encode(self.teacher, with_guidance=False)
        blocks = self._backbone().blocks
        with _outputs([blocks[i] for i in self.blocks]) as tokens:
            self.teacher.predict(x_t, t, cond)
        return [x.float() for x in tokens]


@contextmanager
def _outputs(modules: Sequence[nn.Module]) -> Iterator[list[Tensor]]:
    """Collects what the modules return, in the order in which they run."""
    outputs: list[Tensor] = []

    def keep(module: nn.Module, args: tuple, output: Tensor) -> None:
        outputs.append(output)

    handles = [m.register_forward_hook(keep) for m in modules]
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()
