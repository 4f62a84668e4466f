"""The critic tells data from samples, the student learns from its verdict, neither moves the
other's weights or the teacher's."""

import pytest
import tiny
import torch
from objectives.learnt import Learnt, batch
from torch import nn

from vidcm.data.batch import Batch
from vidcm.diffusion.paths import RectifiedFlow
from vidcm.diffusion.times import T_START
from vidcm.errors import UsageError
from vidcm.models.backbone import TransformerBackbone
from vidcm.objectives.adversarial import Adversarial, Critic
from vidcm.objectives.base import STUDENT
from vidcm.registry import build
from vidcm.rng import SampleRng

PLACES = range(6)


@pytest.fixture(scope="module")
def teacher():
    return tiny.shaken(build("model", tiny.denoiser())).requires_grad_(False)


def latents(places: range = PLACES) -> Batch:
    x = SampleRng(77, places).normal(5, 1, 2, 3)
    return Batch([f"a man walks {p}" for p in places], latents=x)


def pulled(module: nn.Module) -> bool:
    return any(p.grad is not None and p.grad.abs().sum() > 0 for p in module.parameters())


def test_each_turn_pulls_on_its_own_network_alone(teacher):
    student = tiny.shaken(build("model", tiny.denoiser(guidance_embed=True)), seed=3)
    objective = Adversarial(teacher, blocks=[0, 1])
    rng = SampleRng(1, PLACES)
    objective.critic_loss(student, latents(), 0.0, rng).total.backward()
    assert pulled(objective.critic) and not pulled(student) and not pulled(teacher)
    objective.critic.zero_grad()
    objective(student, latents(), 0.0, SampleRng(1, PLACES)).total.backward()
    assert pulled(student)
    for still in (objective.critic, teacher):
        assert all(p.grad is None for p in still.parameters())
    assert not any(m._forward_hooks for m in teacher.modules()), "the watch is taken off"


def test_hinge_and_verdict_have_their_closed_form(teacher):
    class Fixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.calls = 0

        def forward(self, features):
            self.calls += 1
            return torch.tensor([[0.25, 3.0]] if self.calls == 1 else [[-0.5, 0.5]])

    student = build("model", tiny.denoiser(guidance_embed=True))
    objective = Adversarial(teacher, blocks=[0, 1])
    objective.critic = Fixed()
    loss = objective.critic_loss(student, latents(), 0.0, SampleRng(1, PLACES))
    # data: max(0, 1 - .25), max(0, 1 - 3); samples: max(0, 1 - .5), max(0, 1 + .5)
    assert float(loss.total) == pytest.approx(0.75 / 2 + (0.5 + 1.5) / 2)
    assert float(loss.logs["accuracy"]) == pytest.approx((1 + 0.5) / 2)
    objective.critic = Fixed()
    total = objective(student, latents(), 0.0, SampleRng(1, PLACES)).total
    assert float(total) == pytest.approx(-(0.25 + 3) / 2)


def test_the_critic_sees_the_teacher_s_tokens_at_its_blocks(teacher):
    objective = Adversarial(teacher, blocks=[1, 0])
    widths: list[tuple] = []
    objective.critic.register_forward_pre_hook(
        lambda _, args: widths.extend(tuple(x.shape) for x in args[0])
    )
    student = build("model", tiny.denoiser(guidance_embed=True))
    objective.critic_loss(student, latents(), 0.0, SampleRng(1, PLACES))
    assert widths == [(6, 1 * 2 * 3, 32)] * 4  # two blocks, of data and of samples


@pytest.mark.parametrize("act", ["__call__", "critic_loss"])
def test_a_batch_split_over_ranks_has_the_same_loss(teacher, act):
    student = tiny.shaken(build("model", tiny.denoiser(guidance_embed=True)))
    objective = Adversarial(teacher, blocks=[1])

    def loss(places: range) -> float:
        found = getattr(objective, act)(student, latents(places), 0.0, SampleRng(1, places))
        return float(found.total.detach())

    parts = [loss(range(k, k + 2)) for k in (0, 2, 4)]
    assert sum(parts) / 3 == pytest.approx(loss(PLACES), rel=1e-4)


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("first", [T_START, 1.0])
def test_the_share_from_noise(share, first):
    times = []

    class Watching(Learnt):
        first_time = first

        def predict_x0(self, x_t, t, cond):
            times.extend(t.tolist())
            return super().predict_x0(x_t, t, cond)

    seeing, places = Seeing(), range(200)
    objective = Adversarial(seeing, blocks=[0], from_noise=share, p_mean=-1.0, p_std=0.3)
    objective(Watching(seeing.path), batch(places, 1), 0.0, SampleRng(1, places))
    at_noise = [t for t in times if abs(t - first) < 1e-6]
    assert len(at_noise) / 200 == pytest.approx(share, abs=0.1)
    assert all(t < 0.6 for t in times if t not in at_noise)


@pytest.mark.parametrize("act", ["__call__", "critic_loss"])
def test_prompts_and_scales_are_told(act):
    """The student hears its scale, and teacher and student the same prompts, some of them empty."""
    told, said = [], []

    class Listening(Learnt):
        def encode(self, prompts, guidance_scale=None):
            told.append(guidance_scale)
            said.append(list(prompts))
            return super().encode(prompts, guidance_scale)

    class Hearing(Seeing):
        def encode(self, prompts, guidance_scale=None):
            said.append(list(prompts))

    hearing, places = Hearing(), range(200)
    objective = Adversarial(hearing, blocks=[0], guidance_range=[2.0, 3.0], prompt_dropout=0.3)
    getattr(objective, act)(Listening(hearing.path), batch(places, 1), 0.0, SampleRng(1, places))
    ((scale,), (first, *others)) = told, said
    assert 2 <= scale.min() < 2.1 and 2.9 < scale.max() < 3
    assert 0.2 < first.count("") / 200 < 0.4
    assert others and all(prompts == first for prompts in others)


def test_what_starts_from_noise_holds_nothing_of_the_data():
    inputs = []

    class Watching(Learnt):
        def predict_x0(self, x_t, t, cond):
            inputs.append((x_t.flatten(1), t))
            return super().predict_x0(x_t, t, cond)

    seeing, places = Seeing(), range(60)
    objective, given = Adversarial(seeing, blocks=[0], p_mean=-1.0, p_std=0.3), batch(places)
    assert given.latents is not None
    for latents in (given.latents, given.latents + 1):
        data = Batch(given.captions, latents=latents)
        objective(Watching(seeing.path), data, 0.0, SampleRng(1, places))
    (x, t), (y, _) = inputs
    alone = (t - T_START).abs() < 1e-6
    assert 0 < alone.sum() < 60
    torch.testing.assert_close(y - x, (1 - t)[:, None].where(~alone[:, None], 0).expand_as(x))


@pytest.mark.parametrize("act, looks", [("__call__", 1), ("critic_loss", 2)])
def test_the_critic_looks_through_noise_of_its_own_law(act, looks):
    """At ln sigma around 4, what is seen of data of mean 0.9 is unit noise."""
    seen = []

    class Watched(Seeing):
        def predict(self, x_t, t, cond, s=None):
            seen.append((x_t.detach(), t))
            super().predict(x_t, t, cond)

    watched, places = Watched(), range(200)
    objective = Adversarial(watched, blocks=[0], noise=(4.0, 0.2))
    getattr(objective, act)(Learnt(watched.path), batch(places), 0.0, SampleRng(1, places))
    assert len(seen) == looks
    for x_t, t in seen:
        law = torch.logit(t)
        assert law.mean() == pytest.approx(4, abs=0.1) and law.std() == pytest.approx(0.2, rel=0.2)
        assert x_t.mean() == pytest.approx(0, abs=0.1) and x_t.std() == pytest.approx(1, abs=0.1)


def test_the_size_of_tokens_is_no_verdict():
    critic, tokens = Critic([4, 4], hidden_size=8), torch.randn(2, 3, 5, 4)
    torch.testing.assert_close(critic(7 * tokens + 2), critic(tokens), rtol=1e-3, atol=1e-4)


class Moments(TransformerBackbone):
    hidden_size = 4

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList([nn.Identity()])


class Seeing(nn.Module):
    """A teacher for numbers: one token per sample, simple facts of its latents."""

    def __init__(self):
        super().__init__()
        self.path, self.backbone = RectifiedFlow(), Moments()

    def encode(self, prompts, guidance_scale=None):
        return None

    def predict(self, x_t, t, cond, s=None):
        x = x_t.flatten(1).float()
        facts = torch.stack([x.mean(1), x.square().mean(1), 1 + 0 * t.float(), t.float()], dim=1)
        self.backbone.blocks[0](facts[:, None])


def test_a_one_step_gan_finds_the_data():
    seeing = Seeing()
    objective = Adversarial(
        seeing,
        blocks=[0],
        hidden_size=16,
        from_noise=1.0,
        noise=(-2.0, 0.3),
        prompt_dropout=0.0,
        student_update_freq=3,
    )
    student = Learnt(seeing.path, shift=0.8)
    student.std.requires_grad_(False)
    optimizers = {
        STUDENT: torch.optim.Adam([student.shift], lr=0.03, betas=(0.0, 0.99)),
        "critic": torch.optim.Adam(objective.critic.parameters(), lr=0.02, betas=(0.0, 0.99)),
    }
    path = []
    for step in range(300):
        places, role = range(step * 16, step * 16 + 16), objective.turn(step, 0.0)
        act = objective if role == STUDENT else objective.critic_loss
        optimizers[role].zero_grad()
        act(student, batch(places), 0.0, SampleRng(1, places)).total.backward()
        optimizers[role].step()
        path.append(float(student.shift.detach()))
    assert sum(path[-100:]) / 100 == pytest.approx(0, abs=0.05)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"student_update_freq": 1}, "2 networks need at least 2 turns"),
        ({"from_noise": 1.5}, "from_noise is 1.5; it must be in"),
        ({"noise": [0.1]}, "not a mean and a deviation"),
        ({"blocks": []}, "would see nothing"),
        ({"hidden_size": 0}, "would see nothing"),
        ({"guidance_range": [0.0, 1.0]}, "above 0"),
    ],
)
def test_senseless_options_are_refused(options, message):
    with pytest.raises(UsageError, match=message):
        Adversarial(None, **options)


def test_a_teacher_that_does_not_fit_is_refused(teacher):
    with pytest.raises(UsageError, match=r"blocks \[0, 2\]: the teacher's are 0 to 1"):
        _ = Adversarial(teacher, blocks=[0, 2]).roles
    headless = Seeing()
    headless.backbone = nn.Identity()
    with pytest.raises(UsageError, match="whose backbone has blocks"):
        _ = Adversarial(headless, blocks=[0]).roles
