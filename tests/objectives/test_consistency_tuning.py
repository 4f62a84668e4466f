"""Consistency tuning in the closed-form world, and planted mistakes that these tests must catch."""

import pytest
import torch
from flows import one_step, other_noise, points, scale_off_by_one, student, trained
from oracle import PATHS, Gaussian

from vidcm.data.batch import Batch
from vidcm.diffusion.guidance import CFGDenoiser
from vidcm.diffusion.paths import RectifiedFlow
from vidcm.diffusion.shapes import like
from vidcm.diffusion.times import T_START
from vidcm.errors import UsageError
from vidcm.objectives.consistency_tuning import ConsistencyTuning
from vidcm.rng import SampleRng

every_path = pytest.mark.parametrize("path", PATHS, ids=[type(p).__name__ for p in PATHS])
MEANS = {"": 0.2, "up": 0.9}
PLACES = range(64)


def batch(places=PLACES, prompt: str = "up", std: float = 0.5) -> Batch:
    x0 = MEANS[prompt] + std * SampleRng(8, places).normal(2, 3, 2, 2).double()
    return Batch([prompt] * len(x0), latents=x0)


def loss(model, objective, progress: float = 0.0, places=PLACES) -> torch.Tensor:
    return objective(model, batch(places), progress, SampleRng(1, places)).total


# Planted mistakes.


def wrong_clock(path) -> type[ConsistencyTuning]:
    """The weight is of the gap in the path's time."""

    class WrongClock(ConsistencyTuning):
        def weight(self, sigma, lower):
            t, r = path.t_from_sigma(sigma), path.t_from_sigma(lower)
            gap = super().weight(sigma, lower) * (sigma - lower) / (t - r)
            return gap.clamp(max=self.max_weight)

    return WrongClock


class GuidanceOffByOne(ConsistencyTuning):
    teacher_velocity = scale_off_by_one


class BackwardStep(ConsistencyTuning):
    def teacher_step(self, prompts, x_t, t, r, solver="euler"):
        return super().teacher_step(prompts, x_t, t, 2 * t - r, solver)


class OtherNoise(ConsistencyTuning):
    data_step = other_noise


# --- with a teacher -------------------------------------------------------------------------------


def distilled(path, kind=ConsistencyTuning, stages: int = 9) -> list[float]:
    """Losses of the exact map under the exact guided teacher, at stages 3 to the last."""
    world = Gaussian(path, means=MEANS)
    objective = kind(world, stages=stages, huber_c=0.0)
    return [float(loss(world, objective, (k + 0.5) / stages)) for k in range(3, stages)]


@every_path
def test_the_exact_map_is_left_alone_but_for_the_euler_step(path):
    """One Euler step errs by the square of the gap, the weight is one over the gap: each stage
    halves the loss, towards zero."""
    losses = distilled(path)
    assert losses[-1] < losses[0] / 16 and losses[-1] < 0.01
    assert losses[-2] / losses[-1] == pytest.approx(2, rel=0.1)


@pytest.mark.parametrize("first", [1.0, T_START])
def test_a_share_of_samples_starts_where_sampling_does(first):
    """At pure noise too, where sigma is infinite, the exact map is left alone."""

    class FromNoise(Gaussian):
        first_time = first

        def predict_x0(self, x_t, t, cond):
            if torch.is_grad_enabled():
                times.extend(t.tolist())
            return super().predict_x0(x_t, t, cond)

    times: list[float] = []
    world = FromNoise(RectifiedFlow(), means=MEANS)
    objective = ConsistencyTuning(world, p_mean=0.2, p_std=0.3, p_start=0.25, huber_c=0.0, stages=9)
    found = loss(world, objective, 0.99, range(400))
    share = sum(t == pytest.approx(first, abs=1e-7) for t in times) / len(times)
    assert share == pytest.approx(0.25, abs=0.06) and max(times) <= 1
    assert found.isfinite() and found < 0.01


@pytest.mark.parametrize("wrong", [GuidanceOffByOne, BackwardStep])
def test_planted_mistakes_do_not_vanish(wrong):
    path = RectifiedFlow()
    assert distilled(path, wrong)[-1] > 20 * distilled(path)[-1]


def test_a_student_deaf_to_guidance_is_not_left_alone():
    class Deaf(Gaussian):
        def predict_x0(self, x_t, t, cond):
            return super().predict_x0(x_t, t, super().encode(["up"] * len(x_t)))

    world = Gaussian(RectifiedFlow(), means=MEANS)
    objective = ConsistencyTuning(world, stages=9, huber_c=0.0)
    deaf = loss(Deaf(world.path, means=MEANS), objective, 0.99)
    assert deaf > 20 * loss(world, objective, 0.99)


def test_the_scales_told_fill_the_range_and_empty_prompts_are_told_too():
    told, said = [], []

    class Listening(Gaussian):
        def encode(self, prompts, guidance_scale=None):
            told.append(guidance_scale)
            said.extend(prompts)
            return super().encode(prompts, guidance_scale)

    world = Gaussian(RectifiedFlow(), means=MEANS)
    loss(
        Listening(world.path, means=MEANS),
        ConsistencyTuning(world, guidance_range=[2.0, 3.0], prompt_dropout=0.3),
    )
    assert len(told) == 1 and 2 <= told[0].min() < 2.1 and 2.9 < told[0].max() < 3
    assert 0.15 < said.count("") / len(said) < 0.45


# --- the gap and the weight -----------------------------------------------------------------------


def test_straight_steps_end_at_the_mean_that_the_guided_teacher_calls_clean():
    world = Gaussian(RectifiedFlow(), means=MEANS)

    class Mean(Gaussian):
        def predict_x0(self, x_t, t, cond):
            flow = CFGDenoiser(world, cond.guidance_scale, world.encode([""] * len(x_t)))
            return x_t - like(t, x_t) * flow.velocity(x_t, t, cond)

    mean = Mean(world.path, means=MEANS)
    all_straight, none = (ConsistencyTuning(world, stages=9, min_sigma=s) for s in (1e9, 0.0))
    assert float(loss(mean, all_straight, 0.9)) == pytest.approx(0, abs=1e-9)
    assert float(loss(world, all_straight, 0.9)) > 0.1  # a sample is not a mean
    assert float(loss(mean, none, 0.9)) > 0.1


def test_steps_are_straight_below_the_level_alone():
    plain, straight = (ConsistencyTuning(None, stages=2, min_sigma=s) for s in (0.0, 4.0))
    sigma = torch.tensor([0.5, 4.0, 7.9, 8.2, 15.0, 17.0, 100.0])
    before = plain.lower_sigma(sigma, 0.9)
    after = straight.lower_sigma(sigma, 0.9)
    assert after.equal(torch.where(before < 4, 0, before))
    assert 0 < int((after == 0).sum()) < len(sigma)


def test_the_gap_has_its_closed_form_and_shrinks_by_stage():
    objective = ConsistencyTuning(None, q=3.0, stages=4)
    sigma = torch.logspace(-2, 2, 41)
    last = torch.zeros_like(sigma)
    for stage in range(4):
        n = 1 + 8 / (1 + torch.exp(sigma / 2))
        expected = (sigma * (1 - n / 3.0 ** (stage + 1))).clamp(min=0)
        for progress in (stage / 4, (stage + 0.99) / 4):
            torch.testing.assert_close(
                objective.lower_sigma(sigma, progress), expected, atol=1e-6, rtol=1e-5
            )
        assert (expected < sigma).all() and (expected >= last).all()
        last = expected
    torch.testing.assert_close(objective.lower_sigma(sigma, 1.0), last)
    assert (
        ConsistencyTuning(None).lower_sigma(torch.tensor([0.01]), 0.0) == 0
    )  # starts as denoising


class Constant(Gaussian):
    """f = (1 + ratio) at every element: errors that are known before the loss is."""

    def predict_x0(self, x_t, t, cond):
        return torch.ones_like(x_t) * (1 + self.path.sigma_ratio(t)).view(-1, 1, 1, 1, 1)


@every_path
@pytest.mark.parametrize("right", [True, False])
def test_the_weight_is_one_over_the_gap_in_sigma(path, right):
    kind = ConsistencyTuning if right else wrong_clock(path)
    objective = kind(None, q=4.0, stages=1, huber_c=0.0, max_weight=1e9, p_mean=2.0, p_std=0.5)
    sigma = torch.exp(2.0 + 0.5 * SampleRng(1, PLACES).normal())
    lower = objective.lower_sigma(sigma, 0.0)
    assert (lower > 0).all()
    # |f(x_t, t) - f(x_r, r)| is sigma - r here, so that every sample's loss is one.
    found = float(loss(Constant(path, means=MEANS), objective))
    same_clock = (
        path.t_from_sigma(torch.ones(1)) == 1 == path.t_from_sigma(torch.full((1,), 2.0)) - 1
    )
    assert (found == pytest.approx(1, rel=1e-4)) == (right or bool(same_clock))


def test_a_tilt_weighs_octaves_of_noise_alike():
    objective = ConsistencyTuning(
        None, q=4.0, stages=1, huber_c=0.0, max_weight=1e9, p_mean=2.0, p_std=0.5, weight_power=1.0
    )
    sigma = torch.exp(2.0 + 0.5 * SampleRng(1, PLACES).normal())
    found = float(loss(Constant(RectifiedFlow(), means=MEANS), objective))
    assert found == pytest.approx(float((1 + sigma).mean()), rel=1e-3)


def test_weights_are_bounded_and_huber_is_smooth_at_zero():
    objective = ConsistencyTuning(
        None, q=1e3, stages=1, max_weight=0.01, p_mean=3.0, p_std=0.1, huber_c=0.0
    )
    sigma = torch.exp(3.0 + 0.1 * SampleRng(1, PLACES).normal())
    gap = sigma - objective.lower_sigma(sigma, 0.0)
    assert float(loss(Constant(RectifiedFlow(), means=MEANS), objective)) == pytest.approx(
        float((0.01 * gap).mean()), rel=1e-2
    )
    still = Gaussian(RectifiedFlow(), means=MEANS)
    still.predict_x0 = lambda x_t, t, cond: (x_t * 0).requires_grad_()
    value = loss(still, ConsistencyTuning(None, p_mean=3.0, q=8.0, stages=1, huber_c=1e-3))
    value.backward()
    assert value.detach() == 0


# --- without one ----------------------------------------------------------------------------------


def test_at_r_zero_it_is_denoising():
    """Early stages ask for the clean latents themselves, as a denoiser's loss does."""
    world = Gaussian(RectifiedFlow(), means=MEANS)
    objective = ConsistencyTuning(None, p_mean=-2.0, p_std=0.5, huber_c=0.0, prompt_dropout=0.0)
    rng = SampleRng(1, PLACES)
    sigma = torch.exp(-2.0 + 0.5 * rng.normal())
    assert (objective.lower_sigma(sigma, 0.0) == 0).all()
    given = batch()
    t = world.path.t_from_sigma(sigma)
    x_t = world.path.add_noise(given.latents, rng.normal(2, 3, 2, 2), t)
    off = world.predict_x0(x_t, t, world.encode(given.captions)) - given.latents
    expected = (off.square().flatten(1).mean(1).sqrt() / sigma).mean()
    torch.testing.assert_close(loss(world, objective), expected)


@every_path
def test_the_exact_map_is_left_alone_without_a_teacher(path):
    """Where data are one point, the noise of a sample is its trajectory, at every stage."""
    world, given = Gaussian(path, std=0.0, means=MEANS), batch(std=0.0)
    objective = ConsistencyTuning(None, prompt_dropout=0.0)
    for progress in (0.0, 0.5, 0.99):
        assert float(objective(world, given, progress, SampleRng(1, PLACES)).total) < 1e-9


def test_both_points_share_their_noise():
    """Small steps of the same noise are close to each other; steps of other noise are not."""
    world = Gaussian(RectifiedFlow(), means=MEANS)
    options = {"q": 4.0, "stages": 6, "huber_c": 0.0}
    near = [
        float(loss(world, kind(None, **options), 0.99)) for kind in (ConsistencyTuning, OtherNoise)
    ]
    assert near[0] < near[1] / 50


def test_the_scale_is_not_told_without_a_teacher():
    told = []

    class Listening(Gaussian):
        def encode(self, prompts, guidance_scale=None):
            told.append(guidance_scale)
            return super().encode(prompts, guidance_scale)

    loss(Listening(RectifiedFlow(), means=MEANS), ConsistencyTuning(None, stages=9), 0.99)
    assert told == [None]


@pytest.mark.parametrize("taught", [True, False])
def test_a_batch_split_over_ranks_has_the_same_loss(taught):
    world = Gaussian(RectifiedFlow(), means=MEANS)
    objective = ConsistencyTuning(world if taught else None)
    whole = float(loss(world, objective, 0.4, range(12)))
    parts = [float(loss(world, objective, 0.4, range(k, k + 4))) for k in (0, 4, 8)]
    assert sum(parts) / 3 == pytest.approx(whole, rel=1e-12)


def test_the_target_takes_no_gradient():
    calls = []

    class Watching(Gaussian):
        def predict_x0(self, x_t, t, cond):
            calls.append(torch.is_grad_enabled())
            return super().predict_x0(x_t, t, cond)

    loss(Watching(RectifiedFlow(), means=MEANS), ConsistencyTuning(None))
    assert calls == [True, False]


# --- training -------------------------------------------------------------------------------------


OPTIONS = {"guidance_range": [1.0, 2.0], "prompt_dropout": 0.0, "p_mean": 0.7}


@pytest.mark.parametrize(
    "taught, options",
    [(True, {}), (False, {}), (True, {"teacher_guidance_only": True})],
    ids=["teacher", "data", "guidance"],
)
def test_training_reaches_the_exact_one_step_map(taught, options):
    world = Gaussian(RectifiedFlow(), means={"": 0.4, "0.9": 0.9})
    objective = ConsistencyTuning(world if taught else None, **OPTIONS, **options)
    model = trained(student(), objective, 600)
    for told in (1.0, 1.5, 2.0) if taught else (None,):
        shift, ratio = one_step(model, told)
        # Scales lie 0.25 apart; a teacher's steps and guidance are Euler's.
        assert shift == pytest.approx(0, abs=0.2 if taught else 0.1)
        assert ratio == pytest.approx(1, abs=0.15 if options else 0.1)


def test_new_clips_are_learnt_and_guidance_stays():
    """Data that lie elsewhere than the teacher says move every scale's clips alike."""
    world = Gaussian(RectifiedFlow(), means={"": 0.4, "0.9": 0.9})

    def moved(places: range) -> torch.Tensor:
        return 0.6 + points(places)

    found = {}
    for only in (False, True):
        objective = ConsistencyTuning(world, **OPTIONS, teacher_guidance_only=only)
        model = trained(student(), objective, 600, moved)
        found[only] = [one_step(model, scale)[0] for scale in (1.0, 1.5, 2.0)]
    assert found[True] == pytest.approx([0.6] * 3, abs=0.2)
    assert all(shift < 0.3 for shift in found[False])


@every_path
def test_the_guidance_of_a_step_is_what_the_teacher_adds(path):
    world = Gaussian(path, means=MEANS)
    objective = ConsistencyTuning(world, prompt_dropout=0.3)
    prompts = objective.draw_prompts(batch(), SampleRng(1, PLACES))
    x_t, t = batch().latents, path.t_from_sigma(torch.linspace(0.1, 9, 64).double())
    assert x_t is not None
    added = objective.teacher_guidance(prompts, x_t, t)
    plain = world.velocity(x_t, t, world.encode(prompts.prompts))
    torch.testing.assert_close(plain + added, objective.teacher_velocity(prompts, x_t, t))
    assert float(added.abs().max()) > 0.1


def test_training_by_the_wrong_clock_does_not():
    wrong = wrong_clock(RectifiedFlow())(None, **OPTIONS)
    shift, ratio = one_step(trained(student(), wrong, 150), None)
    assert abs(shift) > 0.5 or abs(ratio - 1) > 0.5


# --- refusals -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options, message",
    [
        ({"q": 1.0}, "q > 1 and stages >= 1"),
        ({"stages": 0}, "q > 1 and stages >= 1"),
        ({"p_start": 1.5}, r"p_start is 1.5; it must be in \[0, 1\]"),
        ({"guidance_range": [5.0, 1.5]}, r"not a range \[low, high\]"),
        ({"guidance_range": [0.0, 1.5]}, "above 0"),
        ({"guidance_range": [1.0]}, "not a range"),
    ],
)
def test_senseless_options_are_refused(options, message):
    with pytest.raises(UsageError, match=message):
        ConsistencyTuning(None, **options)
