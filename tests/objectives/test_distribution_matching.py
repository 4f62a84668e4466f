"""Distribution matching rests at the truth, points to it elsewhere, and gets there."""

import pytest
import torch
from objectives.learnt import MEANS, TRUE, Learnt, batch
from oracle import PATHS, Gaussian, start

from vidcm.config import TrainConfig
from vidcm.diffusion import samplers
from vidcm.diffusion.base import Cond, Prediction
from vidcm.diffusion.paths import RectifiedFlow
from vidcm.diffusion.shapes import like
from vidcm.diffusion.times import student_timesteps, to_path_time
from vidcm.errors import UsageError
from vidcm.objectives.backward_simulation import backward_simulation, step_prefixes
from vidcm.objectives.base import STUDENT
from vidcm.objectives.common import PromptBatch
from vidcm.objectives.distribution_matching import DistributionMatching
from vidcm.registry import build
from vidcm.rng import SampleRng

every_path = pytest.mark.parametrize("path", PATHS, ids=[type(p).__name__ for p in PATHS])
PLACES = range(48)
TIMES = [tuple(student_timesteps(n)) for n in (1, 2, 4)]


def matching(path, fake=None, **options) -> DistributionMatching:
    """Under the exact teacher; `fake` stands for the fake score."""
    return DistributionMatching(Gaussian(path, TRUE, MEANS), make_fake=lambda: fake, **options)


def pull(path, shift: float, std: float, fake=None) -> tuple[float, float]:
    """Gradient on a student's shift and spread, its fake score exact unless given."""
    student = Learnt(path, shift, std)
    objective = matching(path, fake or Learnt(path, shift, std))
    objective(student, batch(PLACES), 0.0, SampleRng(1, PLACES)).total.backward()
    return float(student.shift.grad), float(student.std.grad)


# --- the student's turn ---------------------------------------------------------------------------


@every_path
def test_the_gradient_vanishes_at_the_data_distribution(path):
    assert pull(path, 0.0, TRUE) == pytest.approx((0, 0), abs=1e-12)


@every_path
def test_it_points_to_the_data_distribution(path):
    assert pull(path, +0.3, TRUE)[0] > 0.02 and pull(path, -0.3, TRUE)[0] < -0.02
    assert pull(path, 0.0, TRUE + 0.3)[1] > 0.01 and pull(path, 0.0, TRUE - 0.2)[1] < -0.01


def test_a_fake_score_deaf_to_guidance_does_not_rest():
    class Deaf(Gaussian):
        def mean(self, cond):
            return super().mean(Cond(cond.tokens, cond.mask, torch.full((len(cond),), 3.0)))

    path = RectifiedFlow()
    moves = []
    for fake in (Deaf(path, TRUE, MEANS), Gaussian(path, TRUE, MEANS)):
        found = matching(path, fake)(Learnt(path), batch(PLACES), 0.0, SampleRng(1, PLACES))
        moves.append(float(found.logs["score_gap"]))
    assert moves[0] > 0.1 and moves[1] < 1e-12


class Says(Gaussian):
    """Of all latents, that the clean ones are one number."""

    def __init__(self, path, said: float):
        super().__init__(path, TRUE, MEANS)
        self.said = said

    def predict(self, x_t, t, cond, s=None):
        x0 = torch.full_like(x_t, self.said)
        eps = (x_t - like(self.path.alpha(t), x_t) * x0) / like(self.path.sigma(t), x_t)
        return Prediction(x0, eps, self.path.velocity(x0, eps, t))


@every_path
def test_the_move_has_its_closed_form(path):
    """(fake - real) over the mean distance of a sample from the real; the loss is half its square
    and the gradient on a sample is the move, both as means over latents."""

    class Scaled(Says):
        """Samples are as large as the scale that was told, times a parameter."""

        by = torch.tensor(1.5, dtype=torch.float64, requires_grad=True)

        def predict_x0(self, x_t, t, cond):
            self.told = cond.guidance_scale.double()
            return like(self.told * self.by, x_t).expand_as(x_t)

    student, fake = Scaled(path, 0.0), Says(path, 0.25)
    objective = DistributionMatching(Says(path, -0.5), make_fake=lambda: fake, steps=[1])
    found = objective(student, batch(PLACES, 3), 0.0, SampleRng(1, PLACES)).total
    (gradient,) = torch.autograd.grad(found, student.by)
    move = (0.25 + 0.5) / (1.5 * student.told + 0.5)
    assert float(found.detach()) == pytest.approx(float(0.5 * move.square().mean()), rel=1e-6)
    assert float(gradient) == pytest.approx(float((move * student.told).mean()), rel=1e-6)


def test_teacher_and_fake_score_are_not_pulled_on():
    path = RectifiedFlow()
    fake = Learnt(path, 0.1)
    student = Learnt(path, 0.2)
    objective = matching(path, fake)
    objective(student, batch(PLACES), 0.0, SampleRng(1, PLACES)).total.backward()
    assert fake.shift.grad is None and student.shift.grad is not None
    student.zero_grad()
    objective.fake_loss(student, batch(PLACES), 0.0, SampleRng(1, PLACES)).total.backward()
    assert student.shift.grad is None and fake.shift.grad is not None


# --- the fake score's turn ------------------------------------------------------------------------


@every_path
def test_the_fake_score_s_loss_is_least_at_the_exact_score(path):
    places, student = range(400), Learnt(path, 0.2, 0.7)

    def loss(shift: float, std: float) -> float:
        objective = matching(path, Learnt(path, shift, std))
        found = objective.fake_loss(student, batch(places), 0.0, SampleRng(1, places))
        return float(found.total.detach())

    best = loss(0.2, 0.7)
    for other in ((0.1, 0.7), (0.3, 0.7), (0.2, 0.6), (0.2, 0.8)):
        assert loss(*other) > best
    # E |x0 - E x0|^2 / sin^2 = std^2 (alpha^2 + sigma^2) / (alpha^2 std^2 + sigma^2)
    ratio = torch.exp(1.6 + 1.8 * torch.randn(10**5))
    expected = (0.49 * (1 + ratio**2) / (0.49 + ratio**2)).mean()
    assert best == pytest.approx(float(expected), rel=0.1)


# --- the samples ----------------------------------------------------------------------------------


@every_path
def test_a_rollout_is_what_the_sampler_makes(path):
    student, noise = Learnt(path, 0.1, 0.8), SampleRng(3, PLACES).normal(1, 1, 1, 5).double()
    prompts = PromptBatch(["up"] * len(PLACES), torch.full((len(PLACES),), 2.0))
    for times in TIMES:
        found = backward_simulation(student, [times], prompts, noise, SampleRng(1, PLACES))
        rng = SampleRng(1, PLACES)
        rng.uniform()  # which walk: there is one
        grid = to_path_time(path, times).tolist()
        cond = prompts.encode(student, with_guidance=True)
        expected = samplers.consistency(student, start(path, noise, grid), grid, cond, rng)
        torch.testing.assert_close(found.detach(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("first", [1.0, 0.995])
def test_rollouts_begin_where_sampling_does(first):
    class Watching(Learnt):
        first_time = first

        def predict_x0(self, x_t, t, cond):
            begun.append(float(t.max()))
            return super().predict_x0(x_t, t, cond)

    begun: list[float] = []
    path = RectifiedFlow()
    objective = matching(path, Learnt(path))
    objective(Watching(path), batch(PLACES), 0.0, SampleRng(1, PLACES))
    assert max(begun) == pytest.approx(first, abs=1e-7)


def test_samples_of_a_rollout_go_their_own_ways():
    """Each by a walk, a prompt and a scale of its own, whatever the others' are."""
    path, choices = RectifiedFlow(), step_prefixes([1, 2, 4])
    student, noise = Learnt(path, 0.1, 0.8), SampleRng(3, PLACES).normal(1, 1, 1, 3).double()
    texts = ["" if p % 3 else "up" for p in PLACES]
    prompts = PromptBatch(texts, 1 + 4 * SampleRng(4, PLACES).uniform())
    found = backward_simulation(student, choices, prompts, noise, SampleRng(1, PLACES)).detach()
    for place in PLACES:
        rng, row = SampleRng(1, [place]), torch.tensor([place])
        times = choices[int(rng.uniform() * len(choices))]
        own = prompts.select(row)
        assert own.prompts == [texts[place]] and own.scale.equal(prompts.scale[row])
        cond = student.encode([texts[place]], prompts.scale[row])
        x = start(path, noise[row], times)
        alone = samplers.consistency(student, x, times, cond, rng)
        torch.testing.assert_close(found[row], alone, rtol=1e-5, atol=1e-6)


def test_only_the_last_evaluation_takes_a_gradient_and_every_walk_is_taken():
    seen: list[tuple[bool, int, set]] = []

    class Watching(Learnt):
        def predict_x0(self, x_t, t, cond):
            seen.append((torch.is_grad_enabled(), len(t), {round(float(s), 3) for s in t}))
            return super().predict_x0(x_t, t, cond)

    path = RectifiedFlow()
    objective = matching(path, Learnt(path))
    objective(Watching(path), batch(PLACES), 0.0, SampleRng(1, PLACES))
    assert [grad for grad, *_ in seen] == [False] * 3 + [True]
    rows = [n for _, n, _ in seen]
    assert len(PLACES) > rows[0] > rows[1] > rows[2] > 0 and rows[3] == len(PLACES)
    assert seen[-1][2] == {round(t, 3) for times in TIMES for t in times}


def test_walks_are_the_beginnings_of_the_sampler_s_times():
    assert step_prefixes([1]) == [(0.995,)]
    assert step_prefixes([2, 1]) == [(0.995,), (0.995, 0.9375)]
    assert len(step_prefixes([1, 2, 4])) == 5


def test_scales_told_fill_the_range_and_the_fake_score_hears_the_same():
    told = {}

    class Listening(Learnt):
        def encode(self, prompts, guidance_scale=None):
            told.setdefault(self, []).append((guidance_scale, list(prompts)))
            return super().encode(prompts, guidance_scale)

    path = RectifiedFlow()
    student, fake = Listening(path), Listening(path)
    places = range(300)
    objective = matching(path, fake, guidance_range=[2.0, 3.0], prompt_dropout=0.3)
    objective(student, batch(places, 1), 0.0, SampleRng(1, places))
    scale, prompts = told[student][-1]
    assert 2 <= scale.min() < 2.1 and 2.9 < scale.max() < 3
    assert 0.2 < prompts.count("") / 300 < 0.4
    assert told[fake][0][0].equal(scale) and told[fake][0][1] == prompts


@pytest.mark.parametrize("act", ["__call__", "fake_loss"])
def test_a_batch_split_over_ranks_has_the_same_loss(act):
    path = RectifiedFlow()
    objective = matching(path, Learnt(path, 0.1))

    def loss(places: range) -> float:
        step = getattr(objective, act)
        found = step(Learnt(path, 0.3), batch(places), 0.0, SampleRng(1, places))
        return float(found.total.detach())

    parts = [loss(range(k, k + 4)) for k in (0, 4, 8)]
    assert sum(parts) / 3 == pytest.approx(loss(range(12)), rel=1e-12)


# --- training -------------------------------------------------------------------------------------


def test_training_reaches_the_mean_and_the_spread():
    path = RectifiedFlow()
    fake = Learnt(path)  # starts as the teacher
    student, objective = Learnt(path, 0.6, 0.9), matching(path, fake, guidance_range=[1.0, 2.0])
    optimizers = {
        STUDENT: torch.optim.Adam(student.parameters(), lr=0.03),
        "fake": torch.optim.Adam(fake.parameters(), lr=0.06),
    }
    for step in range(400):
        places, role = range(step * 16, step * 16 + 16), objective.turn(step, step / 400)
        act = objective if role == STUDENT else objective.roles[role].loss
        optimizers[role].zero_grad()
        act(student, batch(places), step / 400, SampleRng(1, places)).total.backward()
        optimizers[role].step()
    assert float(student.shift.detach()) == pytest.approx(0, abs=0.06)
    assert float(student.std.detach()) == pytest.approx(TRUE, abs=0.06)


def test_turns_have_a_period_and_the_fake_score_goes_first():
    turns = [matching(RectifiedFlow(), student_update_freq=3).turn(step, 0.0) for step in range(7)]
    assert turns == ["fake", "fake", STUDENT, "fake", "fake", STUDENT, "fake"]


@pytest.mark.parametrize(
    "options, message",
    [
        ({"student_update_freq": 1}, "student_update_freq is 1; 2 networks need at least 2 turns"),
        ({"steps": []}, "not numbers of sampling steps"),
        ({"steps": [0, 2]}, "not numbers of sampling steps"),
        ({"guidance_range": [5.0, 1.5]}, r"not a range \[low, high\]"),
        ({"prompt_dropout": 1.1}, "prompt_dropout is 1.1; it must be in"),
        ({"lr_scale": 0.0}, "lr_scale is 0.0; it must be above 0"),
        ({"betas": [0.9]}, "not two numbers"),
        ({"betas": [0.9, 1.0]}, "not two numbers"),
    ],
)
def test_senseless_options_are_refused(options, message):
    with pytest.raises(UsageError, match=message):
        DistributionMatching(None, **options)


@pytest.mark.parametrize(
    "spec",
    [
        {"name": "distribution_matching"},
        {"name": "adversarial"},
        {"name": "progressive_distillation"},
        {"name": "rcm", "matching": {}},
    ],
    ids=lambda spec: spec["name"],
)
def test_a_run_without_a_teacher_is_refused(spec):
    config = TrainConfig(model={}, objective=spec, data={}, output="", steps=1)
    with pytest.raises(UsageError, match=f"objective {spec['name']} needs a teacher: set teacher"):
        build("objective", spec, teacher=None).check(config)
