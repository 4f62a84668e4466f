"""Training with given frames in the closed-form world of clips, and planted mistakes."""

import pytest
import torch
from correlated import Clips, Framewise, covariance, given_law
from flows import trained
from oracle import PATHS, Said, start

from vidcm.data.batch import Batch
from vidcm.diffusion import samplers
from vidcm.diffusion.base import combine
from vidcm.diffusion.denoiser import Denoiser
from vidcm.diffusion.given_frames import GivenFrames, GivenFramesDenoiser, GivenLatents, hold
from vidcm.diffusion.paths import RectifiedFlow
from vidcm.diffusion.projection import ProjectedDenoiser
from vidcm.diffusion.shapes import like
from vidcm.diffusion.times import student_timesteps, to_path_time
from vidcm.errors import UsageError
from vidcm.objectives.consistency_tuning import ConsistencyTuning
from vidcm.objectives.flow_matching import FlowMatching
from vidcm.rng import SampleRng

every_path = pytest.mark.parametrize("path", PATHS, ids=[type(p).__name__ for p in PATHS])
GIVEN = {"first": 0.4, "last": 0.2, "both": 0.1, "random": 0.2}
PLACES = range(96)


def batch(places: range = PLACES, prompt: str = "up") -> Batch:
    return Batch([prompt] * len(places), latents=Clips(RectifiedFlow()).draw(places, prompt))


def loss(model, objective, progress: float = 0.0, places: range = PLACES) -> torch.Tensor:
    return objective(model, batch(places), progress, SampleRng(1, places)).total


# --- the world itself -----------------------------------------------------------------------------


@every_path
def test_the_world_s_flow_follows_its_velocity(path):
    """d flow / ds at s = t is the velocity of the frames that are not given."""
    world, x0 = Clips(path), batch(range(6)).latents
    given = GivenFrames(GIVEN).draw(SampleRng(3, range(6)), 3)
    at = path.t_from_sigma(torch.tensor([0.2, 0.5, 1.0, 1.5, 3.0, 9.0], dtype=torch.float64))
    eps = SampleRng(4, range(6)).normal(*x0.shape[1:]).double()
    t, near = hold(at, given), hold(at * (1 - 1e-6), given)
    x_t, cond = path.add_noise(x0, eps, t), world.encode(["up"] * 6)
    slope = (world.flow(x_t, t, near, cond) - x_t) / like(at * -1e-6, x_t)
    free = like(~given, x_t).expand_as(x_t)
    assert given.any() and not given.all()
    torch.testing.assert_close(
        slope[free], world.velocity(x_t, t, cond)[free], rtol=1e-3, atol=1e-4
    )


# --- flow matching --------------------------------------------------------------------------------


class Leaning(Clips):
    """A velocity off by a little times what it may depend on: a number, x_t, and the mean of the
    given frames."""

    def __init__(self, path):
        super().__init__(path)
        self.lean = torch.zeros(3, dtype=torch.float64, requires_grad=True)

    def velocity(self, x_t, t, cond):
        clean = like((t == 0).double(), x_t) if t.ndim == 2 else torch.zeros_like(x_t)
        known = (x_t * clean).mean(2, keepdim=True).expand_as(x_t)
        off = torch.stack([torch.ones_like(x_t), x_t, known])
        return super().velocity(x_t, t, cond) + (self.lean.view(3, *[1] * 5) * off).sum(0)


def pulls(model: Leaning, count: int = 40) -> torch.Tensor:
    """The loss's gradient at the exact velocity, over its own error: standard scores of zero."""
    found, kind = [], FlowMatching
    for k in range(count):
        total = loss(
            model, kind(prompt_dropout=0.0, given_frames=GIVEN), places=range(k * 32, k * 32 + 32)
        )
        found.append(torch.autograd.grad(total, model.lean)[0])
    gradients = torch.stack(found)
    return (gradients.mean(0) / (gradients.std(0) / count**0.5)).nan_to_num()  # 0 / 0: none seen


class NoiseOnGivenFrames(RectifiedFlow):
    def add_noise(self, x0, eps, t):
        return super().add_noise(x0, eps, t.amax(1))


class TimesOfTheRest(Leaning):
    def velocity(self, x_t, t, cond):
        return super().velocity(x_t, t.amax(1), cond)


def test_the_exact_velocity_of_the_others_has_no_gradient():
    assert pulls(Leaning(RectifiedFlow())).abs().max() < 3


@pytest.mark.parametrize(
    "wrong",
    [Leaning(NoiseOnGivenFrames()), TimesOfTheRest(RectifiedFlow())],
    ids=["frames", "times"],
)
def test_it_has_one_when_given_frames_are_not_shown_as_such(wrong):
    assert pulls(wrong).abs().max() > 8


# --- both objectives ------------------------------------------------------------------------------

OBJECTIVES = {
    "teacher": (FlowMatching, lambda kind, world: kind(given_frames=GIVEN)),
    "taught": (ConsistencyTuning, lambda kind, world: kind(world, given_frames=GIVEN)),
    "alone": (ConsistencyTuning, lambda kind, world: kind(None, given_frames=GIVEN)),
}
each = pytest.mark.parametrize("name", OBJECTIVES)


def count_all(self, difference, given):
    """`errors` over all frames."""
    return difference.square().flatten(1).mean(1)


class Says(Clips):
    """Of given frames, something else."""

    def predict(self, x_t, t, cond, s=None):
        found = super().predict(x_t, t, cond, s)
        return (
            combine(lambda x: x + 7 * like((t == 0).double(), x), found) if t.ndim == 2 else found
        )


@each
def test_what_is_said_of_given_frames_does_not_matter(name):
    (kind, make), world = OBJECTIVES[name], Clips(RectifiedFlow())
    objective, places = make(kind, world), range(24)
    other = loss(Says(world.path), objective, 0.5, places)
    torch.testing.assert_close(other, loss(world, objective, 0.5, places))


@each
def test_it_would_if_they_counted(name):
    (kind, make), world = OBJECTIVES[name], Clips(RectifiedFlow())
    objective, places = make(type("Counted", (kind,), {"errors": count_all}), world), range(24)
    assert loss(Says(world.path), objective, 0.5, places) > 1.5 * loss(
        world, objective, 0.5, places
    )


@each
def test_networks_see_given_frames_clean_at_time_zero(name):
    (kind, make), seen, places = OBJECTIVES[name], [], range(24)
    x0 = batch(places).latents

    class Seeing(Clips):
        def predict(self, x_t, t, cond, s=None):
            seen.append((x_t, t))
            return super().predict(x_t, t, cond, s)

    world = Seeing(RectifiedFlow())
    loss(world, make(kind, world), 0.5, places)
    assert len(seen) == {"teacher": 1, "taught": 3, "alone": 2}[name]
    masks = [t == 0 for _, t in seen]
    for (x_t, _), given in zip(seen, masks, strict=True):
        truth = torch.cat([x0] * (len(x_t) // len(x0)))  # a guided teacher is asked twice
        kept = like(given, x_t).expand_as(x_t)
        assert x_t[kept].equal(truth[kept]) and not x_t[~kept].isclose(truth[~kept]).all()
    assert 0.2 < masks[0].double().mean() < 0.6
    assert all(m[: len(x0)].equal(masks[0][: len(x0)]) for m in masks)


@each
def test_a_batch_split_over_ranks_has_the_same_loss(name):
    (kind, make), world = OBJECTIVES[name], Clips(RectifiedFlow())
    objective = make(kind, world)
    whole = float(loss(world, objective, 0.4, range(12)))
    parts = [float(loss(world, objective, 0.4, range(k, k + 4))) for k in (0, 4, 8)]
    assert sum(parts) / 3 == pytest.approx(whole, rel=1e-12)


@each
def test_shares_of_nothing_are_no_shares(name):
    kind, make = OBJECTIVES[name]
    world, nothing = Clips(RectifiedFlow()), {"first": 0.0}
    first = () if name == "teacher" else (world if name == "taught" else None,)
    found = [loss(world, kind(*first, given_frames=g), 0.4, range(8)) for g in (None, nothing)]
    assert found[0].equal(found[1])


# --- consistency tuning ---------------------------------------------------------------------------


@every_path
def test_the_exact_map_is_left_alone_but_for_the_euler_step(path):
    """As without given frames: each stage halves the loss, towards zero."""
    world, stages = Clips(path), 9
    objective = ConsistencyTuning(world, stages=stages, huber_c=0.0, given_frames=GIVEN)
    losses = [
        float(loss(world, objective, (k + 0.5) / stages, range(48)))
        for k in (3, stages - 2, stages - 1)
    ]
    assert losses[-1] < losses[0] / 16 and losses[-1] < 0.01
    assert losses[-2] / losses[-1] == pytest.approx(2, rel=0.1)


class TeacherWithoutFrames(ConsistencyTuning):
    def teacher_step(self, prompts, x_t, t, r, solver="euler"):
        return super().teacher_step(prompts, x_t, t.amax(1), r.amax(1), solver)


def test_a_teacher_not_told_of_them_leads_astray():
    world, losses = Clips(RectifiedFlow()), []
    for kind in (ConsistencyTuning, TeacherWithoutFrames):
        objective = kind(world, stages=9, huber_c=0.0, given_frames=GIVEN)
        losses.append(float(loss(world, objective, 0.99, range(48))))
    assert losses[1] > 5 * losses[0]


class Constant(Clips):
    """f = (1 + ratio) at every element that is not given: errors that are known before the loss."""

    def predict_x0(self, x_t, t, cond):
        ratio = like(self.path.sigma_ratio(t), x_t)
        return torch.where(ratio == 0, x_t, 1 + ratio)


def test_the_mean_is_over_what_is_free():
    """|f(x_t, t) - f(x_r, r)| is sigma - r there: every sample's loss is 1, whatever is given."""
    objective = ConsistencyTuning(
        None,
        q=4.0,
        stages=1,
        huber_c=0.0,
        max_weight=1e9,
        p_mean=2.0,
        p_std=0.5,
        given_frames=GIVEN,
    )
    assert float(loss(Constant(RectifiedFlow()), objective)) == pytest.approx(1, rel=1e-4)


@pytest.mark.parametrize(
    "kind", [lambda **o: FlowMatching(**o), lambda **o: ConsistencyTuning(None, **o)]
)
def test_shares_that_make_no_sense_are_refused(kind):
    with pytest.raises(UsageError, match="did you mean 'first'"):
        kind(given_frames={"frist": 0.3})


# --- training -------------------------------------------------------------------------------------

STEPS = 400


@pytest.fixture
def learner() -> Denoiser:
    """A denoiser of elements of three frames, whose prompts are numbers."""
    torch.manual_seed(0)
    return Denoiser(Framewise(2, 1), Said(), 2)


def sampled(model: Denoiser, shown: GivenLatents, conditioned: bool) -> torch.Tensor:
    """Clean clips, many, by the sampler of what the model is."""
    rng = SampleRng(5, range(64))
    noise, cond = rng.normal(2, 3, 4, 4), model.encode(["0.9"] * 64)
    seeing = GivenFramesDenoiser(model, shown) if conditioned else model
    times = to_path_time(model.path, student_timesteps(2)).tolist()
    x = start(model.path, noise, times)
    return samplers.consistency(ProjectedDenoiser(seeing, shown), x, times, cond, rng)


def test_training_reaches_the_law_given_the_first_frame(learner):
    """Shown the frame, the student draws what goes with it; with guesses projected alone, it is as
    far off as the frame is from the mean."""
    objective = ConsistencyTuning(
        None, given_frames={"first": 0.6}, prompt_dropout=0.0, p_mean=0.7, huber_c=0.1
    )
    world = Clips(learner.path)
    model = trained(learner, objective, STEPS, lambda places: world.draw(places, size=4).float())
    mask = torch.tensor([True, False, False])
    for first in (-0.3, 2.0):
        shown = GivenLatents(torch.tensor([first, 0, 0]).view(1, 1, 3, 1, 1), mask)
        seen, centre = torch.tensor([[first]]).double(), torch.full((3,), 0.9).double()
        mean, cov = given_law(centre, covariance(), mask, seen)
        told, untold = (
            sampled(model, shown, way).transpose(1, 2).flatten(2)[:, 1:].double()  # b t k
            for way in (True, False)
        )
        torch.testing.assert_close(told.mean((0, 2)), mean[:, 0], atol=0.12, rtol=0)
        torch.testing.assert_close(
            torch.cov(told.transpose(0, 1).flatten(1)), cov, atol=0.06, rtol=0.2
        )
        assert (untold.mean((0, 2)) - mean[:, 0]).abs().max() > 0.4
