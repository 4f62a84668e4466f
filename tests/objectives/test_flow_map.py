"""Flow maps in the closed-form world, the law of their times, and planted mistakes."""

import pytest
import tiny
import torch
from flows import MEANS, PLACES, batch, loss, scale_off_by_one, student, trained
from oracle import PATHS, Gaussian, start

from vidcm.config import TrainConfig
from vidcm.data.batch import Batch
from vidcm.diffusion.paths import RectifiedFlow, TrigFlow
from vidcm.diffusion.samplers import flow_map
from vidcm.diffusion.shapes import like
from vidcm.diffusion.times import T_START, student_timesteps
from vidcm.errors import UsageError
from vidcm.objectives.flow_map import FlowMap
from vidcm.registry import build
from vidcm.rng import SampleRng

every_path = pytest.mark.parametrize("path", PATHS, ids=[type(p).__name__ for p in PATHS])
RF = RectifiedFlow()
FINITE = {"name": "finite_difference"}


def exact(path, kind=FlowMap, **options) -> float:
    """The mean square error of the exact map under the exact guided teacher."""
    world = Gaussian(path, means=MEANS)
    return float(loss(world, kind(world, adaptive_p=0.0, **options)))


# --- with a teacher -------------------------------------------------------------------------------


@every_path
@pytest.mark.parametrize("improved", [False, True])
def test_the_exact_map_is_left_alone(path, improved):
    assert exact(path, improved=improved) < 1e-10
    assert exact(path, improved=improved, derivative=FINITE) < 1e-2


@every_path
@pytest.mark.parametrize("improved", [False, True])
def test_the_exact_map_is_left_alone_without_a_teacher(path, improved):
    """Where data are one point, the noise of a sample is its trajectory."""
    world = Gaussian(path, std=0.0, means=MEANS)
    given = Batch(["up"] * len(PLACES), latents=torch.full((len(PLACES), 2, 3, 2, 2), 0.9).double())

    class Swapped(FlowMap):
        def data_velocity(self, path, x0, eps, t):
            return super().data_velocity(path, eps, x0, t)

    found = []
    for kind in (FlowMap, Swapped):
        objective = kind(None, adaptive_p=0.0, prompt_dropout=0.0, improved=improved)
        found.append(float(objective(world, given, 0.0, SampleRng(1, PLACES)).total))
    assert found[0] < 1e-10 < 1e-2 < found[1]


def clock_faster_by(factor: float) -> type[FlowMap]:
    """Time moves by `factor` where x_t moves by one."""

    class OtherClock(FlowMap):
        def moved(self, model, x_t, t, s, cond, along):
            tangents = along, factor * torch.ones_like(t)
            return self.differentiate(
                lambda x, u: model.flow_map(x, u, s, cond), (x_t, t), tangents
            )[1]

    return OtherClock


class MovingEnd(FlowMap):
    def moved(self, model, x_t, t, s, cond, along):
        tangents = along, torch.ones_like(t)

        def to_s(x, time):
            return model.flow_map(x, time, s + time - t, cond)

        return self.differentiate(to_s, (x_t, t), tangents)[1]


@pytest.mark.parametrize(
    "wrong",
    [clock_faster_by(0.0), clock_faster_by(2 / torch.pi), MovingEnd],
    ids=["time stands still", "time of another clock", "the end moves along"],
)
def test_mistakes_in_the_derivative_do_not_vanish(wrong):
    assert exact(TrigFlow(), wrong) > 1e-3


class GuidanceOffByOne(FlowMap):
    teacher_velocity = scale_off_by_one


class OtherNoise(FlowMap):
    def teacher_velocity(self, prompts, x_t, t):
        """At the noise of another sample."""
        off = SampleRng(99, range(len(x_t))).normal(*x_t.shape[1:])
        return super().teacher_velocity(prompts, x_t + like(t, x_t) * off, t)


@pytest.mark.parametrize("wrong", [GuidanceOffByOne, OtherNoise])
def test_mistakes_of_the_teacher_do_not_vanish(wrong):
    assert exact(RF, wrong) > 1e-2


def beside_the_paper(path, improved: bool, kind=FlowMap) -> float:
    """The loss with some network over that of the paper's target: v - (t - s) du/dt where paths are
    straight, and on TrigFlow u + cos(t - s) (v - u) - sin(t - s) (x_t + du/dt), sCM's for s = 0."""
    torch.manual_seed(0)
    spec = tiny.denoiser(two_times=True, guidance_embed=True)
    name = {"RectifiedFlow": "rectified_flow", "TrigFlow": "trig_flow"}.get(type(path).__name__)
    spec["path"] = {"name": name or "variance_exploding"}
    model = tiny.shaken(build("model", spec)).eval()
    teacher = tiny.shaken(build("model", tiny.denoiser() | {"path": spec["path"]}), seed=3).eval()
    options = {
        "adaptive_p": 0.0,
        "improved": improved,
        "prompt_dropout": 0.0,
        "log_normal": [0.0, 1.0],
    }
    objective = kind(teacher, shift=1.0, p_equal=0.3, p_to_data=0.2, **options)
    places = range(6)
    given = Batch(["an orc"] * 6, latents=SampleRng(8, places).normal(5, 1, 2, 3))
    found = objective(model, given, 0.0, SampleRng(1, places)).total

    rng = SampleRng(1, places)
    t, s = (path.t_from_sigma(p / (1 - p)) for p in objective.draw_times(rng))
    x_t = path.add_noise(given.latents, rng.normal(5, 1, 2, 3), t)
    prompts = objective.draw_prompts(given, rng)
    cond, v = objective.encode(prompts, model), objective.teacher_velocity(prompts, x_t, t)
    along = model.velocity(x_t, t, cond) if improved else v
    h = 1e-3 * (t if path.t_max > 2 else torch.ones_like(t))
    wide = h.view(-1, 1, 1, 1, 1)
    with torch.no_grad():
        ahead, behind = (
            model.velocity(x_t + d * wide * along, t + d * h, cond, s) for d in (1, -1)
        )
        du, u = (ahead - behind) / (2 * wide), model.velocity(x_t, t, cond, s)
        gap = (t - s).view(-1, 1, 1, 1, 1)
        if isinstance(path, TrigFlow):
            target = u + gap.cos() * (along - u) - gap.sin() * (x_t + du) + (v - along)
        else:
            target = v - gap * du
    return float(found.detach() / (u - target).square().mean())


@every_path
@pytest.mark.parametrize("improved", [False, True])
def test_the_target_is_that_of_the_paper(path, improved):
    assert beside_the_paper(path, improved) == pytest.approx(1, rel=0.02)


class TwiceMoved(FlowMap):
    def regression_target(self, u, v, along, moved):
        return super().regression_target(u, v, along, 2 * moved)


class FromVelocity(FlowMap):
    def regression_target(self, u, v, along, moved):
        return super().regression_target(v, v, along, moved)


@pytest.mark.parametrize("wrong", [TwiceMoved, FromVelocity])
def test_other_targets_are_not(wrong):
    assert beside_the_paper(RF, False, wrong) != pytest.approx(1, rel=0.1)


class Off(Gaussian):
    """The exact student but for a velocity too great everywhere."""

    by = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)

    def velocity(self, x_t, t, cond, s=None):
        return super().velocity(x_t, t, cond, s) + self.by

    def flow_map(self, x_t, t, s, cond):
        return x_t - (t - s).view(-1, 1, 1, 1, 1) * self.velocity(x_t, t, cond, s)


@pytest.mark.parametrize("improved", [False, True])
def test_the_loss_pulls_towards_the_exact_map(improved):
    """All that is off is descended, and a target on the other side would drive it away."""
    world, model = Gaussian(RF, means=MEANS), Off(RF, means=MEANS)

    class OtherSide(FlowMap):
        def regression_target(self, u, v, along, moved):
            return super().regression_target(u, v, along, -moved)

    slopes = []
    for kind in (FlowMap, OtherSide):
        found = loss(model, kind(world, adaptive_p=0.0, improved=improved))
        slopes.append(float(torch.autograd.grad(found, model.by)[0]))
    # The improved one differentiates along a velocity that is off as well.
    assert slopes[0] == pytest.approx(2 * 0.3, rel=0.3 if improved else 1e-6)
    assert slopes[1] < slopes[0] - 0.1


class WeightWithGradient(FlowMap):
    def reduce(self, errors):
        return (self.weight(errors) * errors).mean()


@pytest.mark.parametrize("kind, right", [(FlowMap, True), (WeightWithGradient, False)])
def test_a_weight_is_a_number_to_the_gradient(kind, right):
    model = Off(RF, means=MEANS)
    found = loss(model, kind(Gaussian(RF, means=MEANS), adaptive_p=1.0, adaptive_c=0.5))
    slope = float(torch.autograd.grad(found, model.by)[0])
    assert (slope == pytest.approx(2 * 0.3 / (0.3**2 + 0.5), rel=1e-6)) == right


def test_a_student_deaf_to_guidance_is_not_left_alone():
    class Deaf(Gaussian):
        def predict(self, x_t, t, cond, s=None):
            return super().predict(x_t, t, self.encode(["up"] * len(x_t)), s)

        def flow_map(self, x_t, t, s, cond):
            return super().flow_map(x_t, t, s, self.encode(["up"] * len(x_t)))

    world = Gaussian(RF, means=MEANS)
    assert loss(Deaf(RF, means=MEANS), FlowMap(world, adaptive_p=0.0)) > 1e-2


# --- the law of times -----------------------------------------------------------------------------


def law(kind=FlowMap, count: int = 2000, **options) -> dict[str, float]:
    """Shares of the pairs that a few steps from noise are made of."""
    t, s = kind(None, **options).draw_times(SampleRng(1, range(count)))
    assert (s <= t).all() and (0 <= s).all() and (t <= T_START).all()
    one_step = (t > 0.95) & (s == 0)
    found = {"p_equal": s == t, "p_to_data": (s == 0) & (t > 0), "one step": one_step}
    return {k: float(v.float().mean()) for k, v in found.items()}


@pytest.mark.parametrize("options", [{}, {"log_normal": [0.0, 1.0]}], ids=["uniform", "log-normal"])
def test_the_pairs_that_few_steps_need_are_drawn_often(options):
    found = law(**options)
    assert found["p_equal"] == pytest.approx(0.5, abs=0.04)
    assert found["p_to_data"] == pytest.approx(0.25, abs=0.04)
    assert found["one step"] > 0.06


def test_a_share_of_jumps_begins_at_pure_noise():
    """Where students of public models are sampled from; the loss of the exact map stays zero."""
    objective = FlowMap(None, p_start=0.25)
    t, s = objective.draw_times(SampleRng(1, range(2000)), first=1.0)
    assert float((t == 1).float().mean()) == pytest.approx(0.25, abs=0.03) and (s <= t).all()
    t, _ = FlowMap(None).draw_times(SampleRng(1, range(2000)), first=1.0)
    assert (t <= T_START).all()

    class FromNoise(Gaussian):
        first_time = 1.0

    world = FromNoise(RectifiedFlow(), means=MEANS)
    every = FlowMap(world, p_start=1.0, p_equal=0.0)
    found = every(world, batch(PLACES), 0.0, SampleRng(1, PLACES))
    assert found.logs["flow_error"] < 1e-3


def test_an_endpoint_hardly_drawn_is_found_out():
    """MeanFlow's law for images, and a law without whole jumps, never show one step from noise."""
    assert law(log_normal=[-0.4, 1.0], shift=1.0)["one step"] < 0.01
    assert law(p_to_data=0.0)["one step"] == 0


def test_times_are_shifted_by_the_factor_on_sigma():
    for shift in (1.0, 8.0):
        t, _ = FlowMap(None, log_normal=[0.5, 0.3], shift=shift).draw_times(SampleRng(1, PLACES))
        plain, _ = FlowMap(None, log_normal=[0.5, 0.3], shift=1.0).draw_times(SampleRng(1, PLACES))
        torch.testing.assert_close(t / (1 - t), shift * plain / (1 - plain), rtol=1e-4, atol=1e-4)


# --- the loss -------------------------------------------------------------------------------------


class Astray(Gaussian):
    """A student at rest: what it is drawn to is the velocity, times what `error` says."""

    def velocity(self, x_t, t, cond, s=None):
        return super().velocity(x_t, t, cond, s) + 3.0


class TrueTarget(FlowMap):
    """With what the exact student would give, 3 less than `Astray`."""

    def regression_target(self, u, v, along, moved):
        return super().regression_target(u - 3.0, v, along, moved)


@pytest.mark.parametrize("power, floor", [(0.0, 1.0), (1.0, 7.0), (0.5, 7.0)])
def test_weights_are_of_the_mean_square_whatever_the_size(power, floor):
    world = Gaussian(RF, means=MEANS)
    model = Astray(RF, means=MEANS)
    objective = FlowMap(world, adaptive_p=power, adaptive_c=floor)
    wrong = TrueTarget(world, adaptive_p=power, adaptive_c=floor)
    for width in (2, 5):
        assert float(loss(model, wrong, width=width)) == pytest.approx(9 / (9 + floor) ** power)
        assert float(loss(model, objective, width=width)) < 1e-10  # the error is against itself


def test_summing_over_latents_is_found_out():
    class Summed(TrueTarget):
        def errors(self, difference):
            return super().errors(difference) * difference[0].numel()

    wrong = Summed(Gaussian(RF, means=MEANS), adaptive_p=0.0)
    narrow, wide = (float(loss(Astray(RF, means=MEANS), wrong, width=w)) for w in (2, 6))
    assert wide > 2.5 * narrow


@pytest.mark.parametrize("taught", [True, False])
def test_a_batch_split_over_ranks_has_the_same_loss(taught):
    world = Gaussian(RF, means=MEANS)
    objective = FlowMap(world if taught else None)
    whole = float(loss(world, objective, range(12)))
    parts = [float(loss(world, objective, range(k, k + 4))) for k in (0, 4, 8)]
    assert sum(parts) / 3 == pytest.approx(whole, rel=1e-9)


def test_only_the_prediction_takes_a_gradient_and_scales_are_told_when_taught():
    graded, told, said = [], [], []

    class Watching(Gaussian):
        def encode(self, prompts, guidance_scale=None):
            told.append(guidance_scale)
            said.append(list(prompts))
            return super().encode(prompts, guidance_scale)

        def predict(self, x_t, t, cond, s=None):
            graded.append((torch.is_grad_enabled(), s is not None and bool((s < t).any())))
            return super().predict(x_t, t, cond, s)

    for teacher in (None, Gaussian(RF, means=MEANS)):
        told.clear()
        graded.clear()
        FlowMap(teacher, improved=True, guidance_range=[2.0, 3.0], prompt_dropout=0.3)(
            Watching(RF, means=MEANS), batch(), 0.0, SampleRng(1, PLACES)
        )
        assert graded == [(True, True), (False, False)]
        assert all((scale is None) == (teacher is None) for scale in told)
    assert len(told) == 1 and 2 <= told[0].min() < 2.1 and 2.9 < told[0].max() < 3
    assert 0.15 < said[-1].count("") / len(said[-1]) < 0.45


# --- training -------------------------------------------------------------------------------------


@torch.no_grad()
def drawn(model, steps: int, told: float | None) -> tuple[float, float]:
    """Mean over the exact one, and spread over the exact one, of what a student makes of noise."""
    rng = SampleRng(3, range(200))
    cond = model.encode(["0.9"] * 200, None if told is None else torch.full((200,), told))
    times = student_timesteps(steps)
    x = flow_map(model, start(model.path, rng.normal(1, 1, 1, 16), times), times, cond)
    mean = 0.9 if told is None else 0.4 + told * (0.9 - 0.4)
    return float(x.mean()) - mean, float(x.std()) / 0.5


@pytest.mark.parametrize("taught", [True, False])
def test_training_reaches_the_map_of_any_number_of_steps(taught):
    world = Gaussian(RF, means={"": 0.4, "0.9": 0.9})
    options = {"guidance_range": [1.0, 2.0], "prompt_dropout": 0.0, "shift": 3.0}
    objective = FlowMap(world if taught else None, improved=not taught, **options)
    model = trained(student(two_times=True), objective, 350)
    for told in (1.0, 2.0) if taught else (None,):
        for steps in (1, 2, 4, 7):
            shift, ratio = drawn(model, steps, told)
            assert shift == pytest.approx(0, abs=0.2) and ratio == pytest.approx(1, abs=0.2)


# --- refusals -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options, message",
    [
        ({"p_equal": 0.8, "p_to_data": 0.3}, "p_equal 0.8 and p_to_data 0.3 are not probabilities"),
        ({"p_to_data": -0.1}, "not probabilities"),
        ({"log_normal": [1.0]}, "std above 0"),
        ({"log_normal": [1.0, 0.0]}, "std above 0"),
        ({"shift": 0.0}, "shift 0.0, adaptive_c"),
        ({"adaptive_c": 0.0}, "adaptive_c 0.0"),
        ({"p_start": -0.1}, "p_start is -0.1"),
        ({"adaptive_p": -1.0}, "adaptive_p -1.0"),
        ({"guidance_range": [0.0, 1.5]}, "above 0"),
        ({"prompt_dropout": -0.1}, r"must be in \[0, 1\]"),
        ({"derivative": {"name": "exakt"}}, "did you mean 'exact'"),
    ],
)
def test_senseless_options_are_refused(options, message):
    with pytest.raises(UsageError, match=message):
        FlowMap(None, **options)


def config(two_times: bool = True, **keys) -> TrainConfig:
    model = tiny.denoiser(guidance_embed=True, **({"two_times": True} if two_times else {}))
    return TrainConfig(model, {"name": "flow_map"}, {"name": "latents"}, "out", steps=1, **keys)


def test_what_cannot_learn_a_flow_map_is_refused():
    with pytest.raises(UsageError, match="set model.backbone.two_times to true"):
        FlowMap(None).check(config(two_times=False))
    with pytest.raises(UsageError, match="noise in bf16"):
        FlowMap(None, derivative=FINITE).check(config(precision="bf16"))
    FlowMap(None).check(config(precision="bf16", zero=3))
    FlowMap(None, derivative=FINITE).check(config(zero=3))
