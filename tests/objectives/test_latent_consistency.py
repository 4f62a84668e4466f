"""Consistency on a grid, whole and in phases, in the closed-form world; and planted mistakes."""

import math

import pytest
import tiny
import torch
from flows import (
    MEANS,
    PLACES,
    Watching,
    batch,
    loss,
    other_noise,
    scale_off_by_one,
    student,
    trained,
)
from oracle import PATHS, Gaussian, start

from vidcm.data.batch import Batch
from vidcm.diffusion.paths import RectifiedFlow
from vidcm.diffusion.samplers import consistency, flow_map
from vidcm.diffusion.times import SHIFT, shifted_timesteps, to_path_time
from vidcm.errors import UsageError
from vidcm.objectives.common import PromptBatch, StudentObjective
from vidcm.objectives.latent_consistency import LatentConsistency
from vidcm.objectives.phased_consistency import PhasedConsistency
from vidcm.registry import build
from vidcm.rng import SampleRng

NAMES = [type(p).__name__ for p in PATHS]
every_path = pytest.mark.parametrize("path", PATHS, ids=NAMES)
both = pytest.mark.parametrize("kind", [LatentConsistency, PhasedConsistency])
RF = RectifiedFlow()


def error(path, kind, **options) -> float:
    """The consistency error of the exact map under the exact guided teacher."""
    world, places = Gaussian(path, means=MEANS), range(128)
    objective = kind(world, **{"shift": 8.0} | options)  # finer where the world bends
    return float(
        objective(world, batch(places), 0.0, SampleRng(1, places)).logs["consistency_error"]
    )


# --- with a teacher -------------------------------------------------------------------------------


@both
@every_path
def test_the_exact_map_is_left_alone_but_for_the_step_s_error(path, kind):
    """One step of Euler's errs by the square of the interval."""
    errors = [error(path, kind, intervals=n) for n in (96, 192, 384)]
    assert errors[0] / errors[1] == pytest.approx(4, rel=0.1)
    assert errors[1] / errors[2] == pytest.approx(4, rel=0.05) and errors[2] < 2e-4


@both
def test_heun_is_closer_by_far(kind):
    """Its last interval is Euler's, where the slope's end would stand on no noise."""
    assert error(RF, kind, intervals=192, solver="heun") < error(RF, kind, intervals=192) / 8


@every_path
@pytest.mark.parametrize("solver, order", [("euler", 1), ("heun", 2)])
def test_order_of_the_teacher_s_steps(path, solver, order):
    world = Gaussian(path, means=MEANS)
    x = torch.linspace(-2, 2, 5, dtype=torch.float64).view(1, 5, 1, 1, 1)
    prompts = PromptBatch(["up"], torch.tensor([3.0]))
    ends = path.t_from_sigma(torch.tensor([20.0, 0.1], dtype=torch.float64))
    told = world.encode(["up"], prompts.scale)
    exact, errors = world.flow(x, ends[:1], ends[1:], told), []
    for steps in (60, 120, 240):
        times, at = torch.linspace(float(ends[0]), float(ends[1]), steps + 1).double(), x
        for t, r in zip(times, times[1:], strict=False):
            at = LatentConsistency(world).teacher_step(prompts, at, t.view(1), r.view(1), solver)
        errors.append(float((at - exact).abs().max()))
    assert math.log2(errors[1] / errors[2]) == pytest.approx(order, abs=0.12) and errors[2] < 0.05


def test_where_a_step_ends_at_the_data_it_is_euler_s():
    """There is no slope at no noise, whatever a teacher would say of it."""
    world, prompts = Gaussian(RF, means=MEANS), PromptBatch(["up", ""], torch.tensor([3.0, 2.0]))
    x, t = batch(range(2)).latents, torch.tensor([0.4, 0.4], dtype=torch.float64)
    r = torch.tensor([0.0, 0.1], dtype=torch.float64)
    step = LatentConsistency(world).teacher_step
    euler, heun = (step(prompts, x, t, r, solver) for solver in ("euler", "heun"))
    assert heun[0].equal(euler[0]) and not heun[1].isclose(euler[1]).any()


def towards_noise(self, prompts, x_t, t, r, solver="euler"):
    return StudentObjective.teacher_step(self, prompts, x_t, t, 2 * t - r, solver)


MISTAKES = {
    "guidance as LCM counts it": ("teacher_velocity", scale_off_by_one),
    "step towards noise": ("teacher_step", towards_noise),
}


@both
@pytest.mark.parametrize("method, planted", MISTAKES.values(), ids=MISTAKES)
def test_mistakes_in_teaching_do_not_vanish(kind, method, planted):
    wrong = type("Wrong", (kind,), {method: planted})
    assert error(RF, wrong, intervals=384) > 20 * error(RF, kind, intervals=384)


@both
def test_a_student_deaf_to_guidance_is_not_left_alone(kind):
    class Deaf(Gaussian):
        def flow_map(self, x_t, t, s, cond):
            return super().flow_map(x_t, t, s, self.encode(["up"] * len(x_t)))

    world = Gaussian(RF, means=MEANS)
    objective = kind(world, intervals=384, shift=8.0)
    assert loss(Deaf(RF, means=MEANS), objective) > 20 * loss(world, objective)


# --- the target -----------------------------------------------------------------------------------


def tuned(kind, by: float | None, decay: float | None) -> tuple[float, float]:
    """Loss and the size of its gradient, of a student whose copy was moved from it by `by`."""
    torch.manual_seed(3)
    model = tiny.shaken(build("model", tiny.denoiser(guidance_embed=True)), 0.05)
    objective = kind(None, target_decay=decay)
    if objective.target:
        objective.target.start(model)
        tiny.shaken(objective.target.network, by or 0.0, 7)
    latents = SampleRng(8, range(6)).normal(5, 1, 2, 3)
    given = Batch(["an orc"] * 6, latents=latents)
    found = objective(model, given, 0.0, SampleRng(1, range(6))).total
    found.backward()
    if objective.target:
        assert all(p.grad is None for p in objective.target.network.parameters())
    gradients = [p.grad.norm() for p in model.parameters() if p.grad is not None]
    return float(found.detach()), float(torch.stack(gradients).norm())


@both
def test_an_average_is_the_target_where_it_is_asked_for(kind):
    """Where it is the student's equal it changes nothing; elsewhere it does, without gradients."""
    plain = tuned(kind, None, None)
    assert tuned(kind, 0.0, 0.95) == plain
    moved = tuned(kind, 0.2, 0.95)
    assert moved[0] != pytest.approx(plain[0], rel=0.05) and moved[1] > 0


def test_an_average_that_forgets_at_once_is_no_target_of_its_own():
    world, ends = Gaussian(RF, means={"": 0.4, "0.9": 0.9}), []
    for decay in (None, 1e-12, 0.9):
        objective = LatentConsistency(world, **TAUGHT, target_decay=decay)
        model = trained(student(), objective, 12)
        ends.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    assert ends[1].equal(ends[0]) and not ends[2].allclose(ends[0], atol=1e-3)


# --- the grid -------------------------------------------------------------------------------------


def watched(objective, count: int = 2000) -> tuple[torch.Tensor, ...]:
    """Places in the grid of t, r and s, over many samples."""
    model, places = Watching(), range(count)
    objective(model, batch(places), 0.0, SampleRng(1, places))
    (t, s), (r, edge) = model.seen
    assert s.equal(edge) and model.graded == [True, False]
    grid = shifted_timesteps(objective.intervals, by=objective.shift).flip(0)
    found = tuple(torch.searchsorted(grid, x - 1e-9) for x in (t, r, s))
    for index, time in zip(found, (t, r, s), strict=True):
        torch.testing.assert_close(grid[index], time, atol=1e-12, rtol=0)
    return found


@pytest.mark.parametrize("skip", [1, 5])
def test_every_place_of_the_grid_is_drawn_alike(skip):
    t, r, s = watched(LatentConsistency(None, intervals=12, skip=skip))
    counts = t.bincount(minlength=13)
    assert counts[0] == 0 and counts[1:].min() > 110 and counts[1:].max() < 230
    assert r.equal((t - skip).clamp(min=0)) and (s == 0).all()


@pytest.mark.parametrize("phases, skip", [(3, 1), (3, 2), (12, 1), (1, 5)])
def test_no_step_leaves_its_phase(phases, skip):
    """A place at an edge belongs to the phase below, whose first time it is."""
    t, r, s = watched(PhasedConsistency(None, phases=phases, intervals=12, skip=skip))
    length = 12 // phases
    assert ((s < t) & (t <= s + length) & (s <= r) & (r < t) & (t - r <= skip)).all()
    assert s.unique().tolist() == list(range(0, 12, length))

    class PhaseAbove(PhasedConsistency):
        def edge(self, index):
            return super().edge(index + 1)

    t = torch.arange(1, 13)
    s = PhaseAbove(None, phases=phases, intervals=12, skip=skip).edge(t)
    assert not (s < t).all()


def test_one_phase_is_latent_consistency():
    world = Gaussian(RF, means=MEANS)
    whole, phased = (
        loss(world, o) for o in (LatentConsistency(world), PhasedConsistency(world, phases=1))
    )
    assert phased.equal(whole)


def test_a_student_of_phases_is_sampled_at_their_edges():
    edges = shifted_timesteps(4, by=SHIFT).tolist()
    own = PhasedConsistency(None, phases=4).sampling
    assert own == {"sampler": "flow_map", "phases": 4, "timesteps": edges[:-1]}
    _, _, s = watched(PhasedConsistency(None, phases=4, intervals=24))
    grid = shifted_timesteps(24, by=SHIFT).flip(0)
    torch.testing.assert_close(grid[s.unique()], torch.tensor(edges[:0:-1]).double())
    assert LatentConsistency(None).sampling == {"sampler": "consistency"}


# --- the loss -------------------------------------------------------------------------------------


class Noise(Gaussian):
    """Jumps to s go astray by three spreads of x_s from t and by one from r; the last stays."""

    def flow_map(self, x_t, t, s, cond):
        size = torch.hypot(self.path.alpha(s), self.path.sigma(s))
        by = 1.0 if torch.is_grad_enabled() else -2.0
        return x_t * 0 + by * size.view(-1, 1, 1, 1, 1)


@every_path
@pytest.mark.parametrize("huber", [None, 0.5])
def test_the_loss_is_of_single_latents_in_units_of_their_spread(path, huber):
    """Nine, or Huber's value of three, wherever the edge, whatever the path and the size."""
    options = {"intervals": 8, "huber_c": huber, "shift": 1.0}
    plain = 9.0 if huber is None else math.hypot(3, huber) - huber
    for width in (2, 7):
        objective = PhasedConsistency(None, phases=2, **options)
        objective.skip = 0  # so that no target is at its edge, where it is not asked of the student
        found = loss(Noise(path, means=MEANS), objective, width=width)
        assert float(found) == pytest.approx(plain, rel=1e-5)


def test_summing_over_latents_is_found_out():
    class Summed(LatentConsistency):
        def reduce(self, square):
            return super().reduce(square) * square[0].numel()

    narrow, wide = (float(loss(Noise(RF, means=MEANS), Summed(None), width=w)) for w in (2, 6))
    assert wide > 2.5 * narrow


@both
def test_a_batch_split_over_ranks_has_the_same_loss(kind):
    world = Gaussian(RF, means=MEANS)
    for objective in (kind(world), kind(None)):
        whole = float(loss(world, objective, range(12)))
        parts = [float(loss(world, objective, range(k, k + 4))) for k in (0, 4, 8)]
        assert sum(parts) / 3 == pytest.approx(whole, rel=1e-12)


@both
def test_scales_and_empty_prompts_are_told(kind):
    model = Watching()
    kind(Gaussian(RF, means=MEANS), guidance_range=[2.0, 3.0], prompt_dropout=0.3)(
        model, batch(), 0.0, SampleRng(1, PLACES)
    )
    ((said, told),) = model.told  # for both points
    assert 2 <= told.min() < 2.1 and 2.9 < told.max() < 3
    assert 0.15 < said.count("") / len(said) < 0.45


# --- without a teacher ----------------------------------------------------------------------------


@both
def test_both_points_share_their_noise(kind):
    world, options = Gaussian(RF, means=MEANS), {"intervals": 384, "huber_c": None}
    other = type("OtherNoise", (kind,), {"data_step": other_noise})
    assert (
        float(loss(world, kind(None, **options))) < float(loss(world, other(None, **options))) / 50
    )


@both
@every_path
def test_the_exact_map_is_left_alone_without_a_teacher(path, kind):
    """Where data are one point, the noise of a sample is its trajectory."""
    world, count = Gaussian(path, std=0.0, means=MEANS), len(PLACES)
    given = Batch(["up"] * count, latents=torch.full((count, 2, 3, 2, 2), 0.9).double())
    objective = kind(None, prompt_dropout=0.0)
    assert float(objective(world, given, 0.0, SampleRng(1, PLACES)).total) < 1e-12


@both
def test_the_scale_is_not_told_without_a_teacher(kind):
    model = Watching()
    kind(None)(model, batch(), 0.0, SampleRng(1, PLACES))
    assert [told for _, told in model.told] == [None]


# --- training -------------------------------------------------------------------------------------


@torch.no_grad()
def drawn(model, sampler, times: list[float], told: float = 1.5) -> tuple[float, float]:
    """Mean over the exact one, and spread over the exact one, of what a student makes of noise."""
    rng = SampleRng(3, range(200))
    cond = model.encode(["0.9"] * 200, torch.full((200,), told))
    x = sampler(model, start(model.path, rng.normal(1, 1, 1, 16), times), times, cond, rng)
    return float(x.mean()) - (0.4 + told * (0.9 - 0.4)), float(x.std()) / 0.5


TAUGHT = {"guidance_range": [1.0, 2.0], "prompt_dropout": 0.0, "intervals": 12, "shift": 3.0}
TAUGHT |= {"solver": "heun", "huber_c": None}


@pytest.mark.parametrize("decay", [None, 0.9])
def test_training_reaches_the_one_step_map(decay):
    world = Gaussian(RF, means={"": 0.4, "0.9": 0.9})
    objective = LatentConsistency(world, **TAUGHT, target_decay=decay)
    model = trained(student(), objective, 350)
    for told in (1.0, 2.0):
        shift, ratio = drawn(model, consistency, [1.0], told)
        assert shift == pytest.approx(0, abs=0.15) and ratio == pytest.approx(1, abs=0.15)


def test_training_in_phases_reaches_the_map_of_as_many_steps():
    world = Gaussian(RF, means={"": 0.4, "0.9": 0.9})
    objective = PhasedConsistency(world, phases=3, **TAUGHT)
    model = trained(student(), objective, 350)
    for told in (1.0, 2.0):
        shift, ratio = drawn(model, flow_map, objective.sampling["timesteps"], told)
        assert shift == pytest.approx(0, abs=0.15) and ratio == pytest.approx(1, abs=0.15)


@every_path
@pytest.mark.parametrize("phases", [1, 3])
def test_the_exact_phases_lead_to_the_data(path, phases):
    world = Gaussian(path, means=MEANS)
    rng = SampleRng(3, range(400))
    times = to_path_time(path, shifted_timesteps(phases, by=SHIFT)[:-1]).tolist()
    x = start(path, rng.normal(2, 3, 2, 2).double(), times)
    x = flow_map(world, x, times, world.encode(["up"] * 400))
    assert x.mean() == pytest.approx(0.9, abs=0.02) and x.std() == pytest.approx(0.5, rel=0.02)


# --- refusals -------------------------------------------------------------------------------------


@both
@pytest.mark.parametrize(
    "options, message",
    [
        ({"skip": 0}, "skip 0 of 48 intervals"),
        ({"skip": 49}, "use 1 to 48"),
        ({"shift": 0.0}, "above 0 .1 is an even grid"),
        ({"solver": "dpm"}, "unknown solver 'dpm' .known: euler, heun"),
        ({"huber_c": 0.0}, "null for the squared error"),
        ({"guidance_range": [5.0, 1.5]}, r"not a range \[low, high\]"),
        ({"guidance_range": [1.0]}, "not a range"),
        ({"prompt_dropout": 1.5}, r"must be in \[0, 1\]"),
        ({"target_decay": 1.0}, "target_decay is 1.0; it must be between 0 and 1, or null"),
        ({"target_decay": 0.0}, "a target that is the student itself"),
    ],
)
def test_senseless_options_are_refused(kind, options, message):
    with pytest.raises(UsageError, match=message):
        kind(None, **options)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"phases": 5}, "5 phases do not divide 48 intervals; use 1, 2, 3, 4, 6, 8, 12"),
        ({"phases": 0}, "0 phases do not divide"),
        ({"phases": 4, "skip": 13}, "skip 13 is longer than a phase of 12"),
    ],
)
def test_phases_that_do_not_fit_are_refused(options, message):
    with pytest.raises(UsageError, match=message):
        PhasedConsistency(None, **options)
