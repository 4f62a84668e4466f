"""Progressive distillation in the closed-form world: two steps in one, half as many each time."""

from types import SimpleNamespace

import pytest
import torch
from flows import MEANS, PLACES, Watching, batch, scale_off_by_one, student, trained
from oracle import PATHS, Gaussian, start

from vidcm.diffusion.guidance import CFGDenoiser
from vidcm.diffusion.paths import RectifiedFlow
from vidcm.diffusion.samplers import euler, flow_map
from vidcm.diffusion.shapes import like
from vidcm.diffusion.times import SHIFT, shift, shifted_timesteps
from vidcm.errors import UsageError
from vidcm.objectives.base import Loss
from vidcm.objectives.progressive_distillation import ProgressiveDistillation
from vidcm.rng import SampleRng

every_path = pytest.mark.parametrize("path", PATHS, ids=[type(p).__name__ for p in PATHS])
RF = RectifiedFlow()
FIRST, SECOND, LAST = 0.1, 0.4, 0.9  # progress in each of three parts


def run(model, teacher, progress: float, kind=ProgressiveDistillation, places=PLACES, **options):
    """The loss of a student whose copy of its earlier self is the exact one."""
    objective = kind(teacher, **{"steps": 3, "halvings": 3, "shift": 8.0} | options)
    exact = Gaussian(model.path, means=MEANS)
    objective.target = SimpleNamespace(part_at=objective.target.part_at, network=exact)
    return objective(model, batch(places), progress, SampleRng(1, places))


def error(found: Loss) -> float:
    return float(found.logs["distillation_error"])


# --- where it leads -------------------------------------------------------------------------------


@every_path
def test_the_exact_map_is_left_alone_but_for_the_teacher_s_error(path):
    """Two steps of DDIM err by the square of the interval; the velocity they stand for, by it."""
    world = Gaussian(path, means=MEANS)
    options = {"halvings": 1, "places": range(128)}
    errors = [error(run(world, world, FIRST, steps=n, **options)) for n in (48, 96, 192)]
    assert errors[0] / errors[1] == pytest.approx(2, rel=0.1)
    assert errors[1] / errors[2] == pytest.approx(2, rel=0.1) and errors[2] < 0.02


@every_path
@pytest.mark.parametrize("by", [1.0, SHIFT])
def test_jumps_of_the_exact_map_compose(path, by):
    """After the first part, to the digit, at every scale that is told."""
    world = Gaussian(path, means=MEANS)
    for progress in (SECOND, LAST):
        assert error(run(world, None, progress, shift=by)) < 1e-9


def test_at_first_it_is_two_steps_of_the_guided_teacher():
    class Twice(Gaussian):
        def flow_map(self, x_t, t, s, cond):
            middle = shift((shift(t, 1 / 8) + shift(s, 1 / 8)) / 2, 8.0)
            x = x_t + like(middle - t, x_t) * self.velocity(x_t, t, cond)
            return x + like(s - middle, x_t) * self.velocity(x, middle, cond)

    world = Gaussian(RF, means=MEANS)
    assert error(run(Twice(RF, means=MEANS), world, FIRST)) < 1e-9
    assert error(run(world, world, FIRST)) > 0.02 < error(run(Twice(RF, means=MEANS), world, LAST))


class FromTheStart(ProgressiveDistillation):
    def two_steps(self, progress, prompts, x_t, t, middle, s):
        self.ddim(progress, prompts, x_t, t, middle)
        return self.ddim(progress, prompts, x_t, middle, s)


class OneStep(ProgressiveDistillation):
    def two_steps(self, progress, prompts, x_t, t, middle, s):
        return self.ddim(progress, prompts, x_t, t, middle)


class AnotherTime(ProgressiveDistillation):
    def two_steps(self, progress, prompts, x_t, t, middle, s):
        x_middle = self.ddim(progress, prompts, x_t, t, middle)
        return self.ddim(progress, prompts, x_middle, t, s)


class GuidanceOffByOne(ProgressiveDistillation):
    teacher_velocity = scale_off_by_one


class DeafCopy(ProgressiveDistillation):
    def encode(self, prompts, student):
        return prompts.encode(student, with_guidance=student is not self.target.network)


@pytest.mark.parametrize(
    "wrong, parts",
    [
        (FromTheStart, (0, 1)),
        (OneStep, (0, 1)),
        (AnotherTime, (0, 1)),
        (GuidanceOffByOne, (0,)),
        (DeafCopy, (1,)),
    ],
)
def test_mistakes_do_not_vanish(wrong, parts):
    world = Gaussian(RF, means=MEANS)
    for part in parts:
        progress, options = (FIRST, LAST)[part], {"steps": 96, "halvings": 2}
        assert error(run(world, world, progress, wrong, **options)) > 0.1


def test_a_student_deaf_to_guidance_is_not_left_alone():
    class Deaf(Gaussian):
        def flow_map(self, x_t, t, s, cond):
            return super().flow_map(x_t, t, s, self.encode(["up"] * len(x_t)))

    assert error(run(Deaf(RF, means=MEANS), None, LAST)) > 0.1


# --- the grid -------------------------------------------------------------------------------------


def watched(progress: float, **options) -> tuple[Watching, Watching]:
    """The student and its copy, over many samples."""
    objective, model, earlier = ProgressiveDistillation(None, **options), Watching(), Watching()
    objective.target = SimpleNamespace(part_at=objective.target.part_at, network=earlier)
    places = range(1000)
    objective(model, batch(places), progress, SampleRng(1, places))
    return model, earlier


def test_steps_are_halved_to_the_last_and_each_is_drawn_alike():
    objective = ProgressiveDistillation(None, steps=3, halvings=3)
    at = [0.0, FIRST, 0.334, SECOND, 0.667, LAST, 1.0]
    assert [objective.steps_at(p) for p in at] == [12, 12, 6, 6, 3, 3, 3]
    for progress, steps in ((SECOND, 6), (LAST, 3)):
        model, earlier = watched(progress, steps=3, halvings=3)
        ((t, s),) = model.seen
        (t_again, middle), (middle_again, s_again) = earlier.seen
        assert t.equal(t_again) and s.equal(s_again) and middle.equal(middle_again)
        coarse, fine = (shifted_timesteps(n, by=SHIFT).flip(0) for n in (steps, 2 * steps))
        index = torch.searchsorted(coarse, t - 1e-9)
        counts = index.bincount(minlength=steps + 1)
        assert counts[0] == 0 and counts[1:].min() > 700 / steps
        for found, expected in ((t, coarse[index]), (s, coarse[index - 1])):
            torch.testing.assert_close(found, expected, atol=1e-12, rtol=0)
        torch.testing.assert_close(middle, fine[2 * index - 1], atol=1e-12, rtol=0)


def test_a_student_is_sampled_at_the_times_of_its_last_part():
    own = ProgressiveDistillation(None, steps=3, halvings=2).sampling
    assert own["sampler"] == "flow_map" and own["phases"] == 3
    model, _ = watched(LAST, steps=3, halvings=2)
    ends = {round(float(t), 9) for t in model.seen[0][0]}
    assert ends == {round(t, 9) for t in own["timesteps"]}


def test_scales_and_empty_prompts_are_told_to_student_and_copy_and_only_one_learns():
    model, earlier = watched(
        LAST, steps=2, halvings=2, guidance_range=[2.0, 3.0], prompt_dropout=0.3
    )
    (said, told), *others = model.told + earlier.told
    assert len(others) == 1 and all(p == said and w.equal(told) for p, w in others)
    assert 2 <= told.min() < 2.1 and 2.9 < told.max() < 3
    assert 0.2 < said.count("") / len(said) < 0.4
    assert model.graded == [True] and earlier.graded == [False, False]


# --- the loss -------------------------------------------------------------------------------------


@every_path
def test_the_loss_is_the_square_of_the_velocity_s_error(path):
    """TrigFlow's, on every path and in every interval."""

    class Off(Gaussian):
        def flow_map(self, x_t, t, s, cond):
            seen, size = self.predict(x_t, t, cond, s), torch.hypot(path.alpha(t), path.sigma(t))
            cos, sin = (like(f(t) / size, x_t) for f in (path.alpha, path.sigma))
            return path.add_noise(seen.x0 - 0.3 * sin, seen.eps + 0.3 * cos, s)

    found = run(Off(path, means=MEANS), None, LAST, shift=1.0)
    assert float(found.total) == pytest.approx(0.09, rel=1e-9)


@pytest.mark.parametrize("progress", [FIRST, LAST])
def test_a_batch_split_over_ranks_has_the_same_loss(progress):
    world, student = Gaussian(RF, means=MEANS), Gaussian(RF, means={"": 0.1, "up": 0.2})
    parts = [float(run(student, world, progress, places=range(k, k + 4)).total) for k in (0, 4, 8)]
    whole = float(run(student, world, progress, places=range(12)).total)
    assert sum(parts) / 3 == pytest.approx(whole, rel=1e-12)


# --- training -------------------------------------------------------------------------------------


def test_training_reaches_what_the_teacher_draws_in_its_many_steps():
    world = Gaussian(RF, means={"": 0.4, "0.9": 0.9})
    options = {"guidance_range": [1.0, 2.0], "prompt_dropout": 0.0, "shift": 3.0}
    objective = ProgressiveDistillation(world, steps=2, halvings=2, **options)
    model, rng = trained(student(), objective, 300), SampleRng(3, range(200))
    noise = rng.normal(1, 1, 1, 16)
    for told in (1.0, 2.0):
        cond = model.encode(["0.9"] * 200, torch.full((200,), told))
        times = objective.sampling["timesteps"]
        x = flow_map(model, start(model.path, noise, times), times, cond)
        guided = CFGDenoiser(world, told, world.encode([""] * 200))
        many = euler(guided, noise, shifted_timesteps(8, by=3.0), world.encode(["0.9"] * 200))
        assert float((x - many).square().mean().sqrt()) < 0.1


# --- refusals -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options, message",
    [
        ({"steps": 0}, "steps 0, halvings 5: use 1 or more of each"),
        ({"halvings": 0}, "steps 1, halvings 0: use 1 or more"),
        ({"shift": 0.0}, "above 0 .1 is an even grid"),
        ({"guidance_range": [5.0, 1.5]}, r"not a range \[low, high\]"),
        ({"prompt_dropout": 1.5}, r"must be in \[0, 1\]"),
    ],
)
def test_senseless_options_are_refused(options, message):
    with pytest.raises(UsageError, match=message):
        ProgressiveDistillation(None, **options)
