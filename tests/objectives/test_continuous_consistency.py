"""Continuous-time consistency in the closed-form world, and planted mistakes that these tests must catch."""

import pytest
import tiny
import torch
from flows import one_step, scale_off_by_one, student, trained
from oracle import PATHS, Gaussian
from torch import Tensor

from vidcm.config import TrainConfig
from vidcm.data.batch import Batch
from vidcm.diffusion.base import Prediction
from vidcm.diffusion.paths import RectifiedFlow, TrigFlow
from vidcm.diffusion.shapes import like
from vidcm.errors import UsageError
from vidcm.objectives.base import Loss
from vidcm.objectives.continuous_consistency import ContinuousConsistency
from vidcm.registry import build
from vidcm.rng import SampleRng

every_path = pytest.mark.parametrize("path", PATHS, ids=[type(p).__name__ for p in PATHS])
MEANS = {"": 0.2, "up": 0.9}
PLACES = range(64)
DIFFERENCE = {"name": "finite_difference", "h": 1e-4}


class Wide(SampleRng):
    """The same draws in float64, so that nothing but a mistake is left of a tangent."""

    def normal(self, *shape: int) -> Tensor:
        return super().normal(*shape).double()

    def uniform(self, *shape: int) -> Tensor:
        return super().uniform(*shape).double()


class Unmoved(Gaussian):
    """The student before it has learnt anything: its teacher."""

    def predict(self, x_t, t, cond, s=None):
        return super().predict(x_t, t, cond)


class Mapped(Gaussian):
    """The exact consistency function, as a student predicts it."""

    def predict(self, x_t, t, cond, s=None):
        return super().predict(x_t, t, cond, torch.zeros_like(t))


class Shifted(Unmoved):
    """The teacher with `by` added to F, for gradients that are known."""

    by = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)

    def predict(self, x_t, t, cond, s=None):
        seen = super().predict(x_t, t, cond)
        alpha, sigma = self.path.alpha(t), self.path.sigma(t)
        size = torch.hypot(alpha, sigma)
        eps = seen.eps + like(alpha / size, x_t) * self.by
        x0 = seen.x0 - like(sigma / size, x_t) * self.by
        return Prediction(x0, eps, self.path.velocity(x0, eps, t))


def run(model, objective, progress: float = 0.9, places=PLACES, std: float = 0.5) -> Loss:
    x0 = MEANS["up"] + std * Wide(8, places).normal(2, 3, 2, 2)
    return objective(model, Batch(["up"] * len(x0), latents=x0), progress, Wide(1, places))


def tangent(model, objective, progress: float = 0.9, **options) -> float:
    return float(run(model, objective, progress, **options).logs["tangent_norm"])


def ratios(places=PLACES) -> Tensor:
    """sigma / alpha of the samples at the default law."""
    return torch.exp(0.2 + 1.8 * Wide(1, places).normal()).clamp(2e-3, 200)


# --- the tangent ----------------------------------------------------------------------------------


@every_path
def test_the_exact_map_of_the_guided_teacher_is_left_alone(path):
    """Every scale is told and obeyed, f does not move along the trajectory: nothing to correct."""
    found = run(Mapped(path, means=MEANS), ContinuousConsistency(Gaussian(path, means=MEANS)))
    assert found.logs["tangent_norm"] < 1e-8 and found.total < 1e-12
    assert found.logs["velocity_error"] > 0.1  # its F is not the teacher's


def test_paths_of_teacher_and_student_may_differ():
    teacher = Gaussian(TrigFlow(), means=MEANS)
    assert tangent(Mapped(RectifiedFlow(), means=MEANS), ContinuousConsistency(teacher)) < 1e-8


@every_path
def test_the_exact_map_is_left_alone_without_a_teacher(path):
    """Where data are one point, the noise of a sample is its trajectory."""
    model = Mapped(path, std=0.0, means=MEANS)

    class WrongSign(ContinuousConsistency):
        def data_direction(self, x0, eps, ratio):
            return super().data_direction(-x0, eps, ratio)

    kinds = [ContinuousConsistency, WrongSign]
    early, wrong = (tangent(model, k(None, prompt_dropout=0.0), 0.0, std=0.0) for k in kinds)
    assert early < 1e-8 < 0.1 < wrong
    assert tangent(model, kinds[0](None, prompt_dropout=0.0), std=0.0) < 1e-8


def turned(ratio, z):
    """Cosine and sine of the angle of a ratio, shaped to multiply z."""
    return like(1 / (1 + ratio.square()).sqrt(), z), like(ratio / (1 + ratio.square()).sqrt(), z)


class MissingCosine(ContinuousConsistency):
    def tangent(self, ratio, z, dz, f, df, rho):
        cos, sin = turned(ratio, z)
        return -cos * (f - dz) - rho * (cos * sin * z + df)


class MissingSine(ContinuousConsistency):
    def tangent(self, ratio, z, dz, f, df, rho):
        cos, _ = turned(ratio, z)
        return -cos.square() * (f - dz) - rho * (cos * z + df)


class DerivativeSign(ContinuousConsistency):
    def tangent(self, ratio, z, dz, f, df, rho):
        return super().tangent(ratio, z, dz, f, -df, rho)


class AheadOfTime(ContinuousConsistency):
    def trajectory(self, ratio, z, dz):
        return dz.to(z.dtype), torch.ones_like(ratio)


class AgainstTheFlow(ContinuousConsistency):
    def trajectory(self, ratio, z, dz):
        return super().trajectory(ratio, z, -dz)


class GuidanceOffByOne(ContinuousConsistency):
    teacher_velocity = scale_off_by_one


@pytest.mark.parametrize(
    "wrong",
    [GuidanceOffByOne, MissingCosine, MissingSine, AheadOfTime, AgainstTheFlow, DerivativeSign],
)
def test_planted_mistakes_do_not_vanish(wrong):
    world = Gaussian(RectifiedFlow(), means=MEANS)
    assert tangent(Mapped(world.path, means=MEANS), wrong(world)) > 0.05


def test_a_student_deaf_to_guidance_is_not_left_alone():
    class Deaf(Mapped):
        def encode(self, prompts, guidance_scale=None):
            return super().encode(["up"] * len(prompts))

    world = Gaussian(RectifiedFlow(), means=MEANS)
    assert tangent(Deaf(world.path, means=MEANS), ContinuousConsistency(world)) > 0.05


def test_feedback_warms_up():
    """The exact map starts with the tangent of regressing the teacher's velocity, and has 1 - rho
    of it at rho: rho scales the derivative and what stands with it."""
    world = Gaussian(RectifiedFlow(), means=MEANS)
    model, cos2 = Mapped(world.path, means=MEANS), float(1 / (1 + ratios(range(1)).square()))

    def shares(kind) -> list[float]:
        found = []
        for progress in (0.0, 0.05, 0.15, 0.2, 0.5):
            logs = run(model, kind(world, warmup=0.2), progress, range(1)).logs
            found.append(float(logs["tangent_norm"] / logs["velocity_error"]) / cos2)
        return found

    expected = pytest.approx([1, 0.75, 0.25, 0, 0], abs=1e-6)
    assert shares(ContinuousConsistency) == expected

    class Unscaled(ContinuousConsistency):
        def tangent(self, ratio, z, dz, f, df, rho):
            cos, sin = turned(ratio, z)
            return -cos.square() * (f - dz) - (rho * cos * sin * z + df)

    assert shares(Unscaled) != expected
    assert tangent(model, ContinuousConsistency(world, warmup=0.0), 0.0) < 1e-8


# --- norm, loss and gradient ----------------------------------------------------------------------


class L2Norm(ContinuousConsistency):
    def norm(self, tangent):
        return super().norm(tangent) * tangent[0].numel() ** 0.5


class Sum(ContinuousConsistency):
    def errors(self, difference):
        return super().errors(difference) * difference[0].numel()


@pytest.mark.parametrize("kind", [ContinuousConsistency, L2Norm, Sum])
def test_gradients_have_their_closed_form(kind):
    """F off by a constant, before feedback: g = -cos^2 by, divided by its size plus c; the gradient
    of the mean square is minus twice that, whatever the number of latents."""
    world, student = Gaussian(RectifiedFlow(), means=MEANS), Shifted(RectifiedFlow(), means=MEANS)
    right = []
    for c in (0.1, 2.0):
        found = run(student, kind(world, tangent_c=c), 0.0)
        g = -0.3 / (1 + ratios().square())
        pushed = g / (g.abs() + c)
        (gradient,) = torch.autograd.grad(found.total, student.by)
        right.append(float(found.total.detach()) == pytest.approx(float(pushed.square().mean())))
        right.append(float(gradient) == pytest.approx(float(-2 * pushed.mean())))
    assert all(right) if kind is ContinuousConsistency else not any(right)


@every_path
def test_exact_and_finite_difference_agree(path):
    world, student = Gaussian(path, means=MEANS), Unmoved(path, means=MEANS)
    losses = [
        run(student, ContinuousConsistency(world, derivative=spec)) for spec in (None, DIFFERENCE)
    ]
    assert losses[0].logs["tangent_norm"] > 0.05
    torch.testing.assert_close(losses[0].total, losses[1].total, rtol=1e-6, atol=0)
    torch.testing.assert_close(losses[0].logs, losses[1].logs, rtol=1e-6, atol=0)


@pytest.mark.parametrize("taught", [False, True])
def test_they_agree_on_a_transformer(taught):
    model = tiny.shaken(build("model", tiny.denoiser(guidance_embed=True)), 0.05)
    teacher = tiny.shaken(build("model", tiny.denoiser()), 0.05, 1) if taught else None
    x0 = SampleRng(8, range(6)).normal(5, 3, 2, 4)
    found = []
    for spec in (None, {"name": "finite_difference"}):
        objective = ContinuousConsistency(teacher, derivative=spec)
        loss = objective(model, Batch(["an orc"] * 6, latents=x0), 0.9, SampleRng(1, range(6)))
        gradients = torch.autograd.grad(loss.total, model.backbone.parameters(), allow_unused=True)
        found.append(torch.cat([g.flatten() for g in gradients if g is not None]))
    assert (found[0] - found[1]).norm() < 5e-3 * found[0].norm()


@pytest.mark.parametrize("spec, calls", [(None, 1), (DIFFERENCE, 3)])
def test_one_forward_takes_the_gradient(spec, calls):
    seen = []

    class Watched(Mapped):
        def predict(self, x_t, t, cond, s=None):
            seen.append(torch.is_grad_enabled())
            assert s is not None and s.abs().max() == 0  # of two times, f is the jump to data
            return super().predict(x_t, t, cond)

    run(Watched(RectifiedFlow(), means=MEANS), ContinuousConsistency(None, derivative=spec))
    assert seen == [False] * calls + [True]


# --- what is drawn and told -----------------------------------------------------------------------


class Listening(Mapped):
    def encode(self, prompts, guidance_scale=None):
        self.told, self.said = guidance_scale, prompts
        return super().encode(prompts, guidance_scale)


def test_the_scales_told_fill_the_range_and_empty_prompts_are_told_too():
    world, student = (kind(RectifiedFlow(), means=MEANS) for kind in (Gaussian, Listening))
    run(student, ContinuousConsistency(world, guidance_range=[2.0, 3.0], prompt_dropout=0.3))
    assert 2 <= student.told.min() < 2.1 and 2.9 < student.told.max() < 3
    assert 0.15 < student.said.count("") / len(student.said) < 0.45
    run(student, ContinuousConsistency(None))
    assert student.told is None


@pytest.mark.parametrize("taught", [True, False])
def test_a_batch_split_over_ranks_has_the_same_loss(taught):
    world, student = (kind(RectifiedFlow(), means=MEANS) for kind in (Gaussian, Unmoved))
    objective = ContinuousConsistency(world if taught else None)
    whole = float(run(student, objective, 0.4, range(12)).total)
    parts = [float(run(student, objective, 0.4, range(k, k + 4)).total) for k in (0, 4, 8)]
    assert sum(parts) / 3 == pytest.approx(whole, rel=1e-12)


# --- training -------------------------------------------------------------------------------------


@pytest.mark.parametrize("taught", [True, False])
def test_training_reaches_the_exact_one_step_map(taught):
    world = Gaussian(RectifiedFlow(), means={"": 0.4, "0.9": 0.9})
    # Of so short a run: after a warm-up of a fifth of it, ends of the range of scales lag behind.
    options = {"guidance_range": [1.0, 2.0], "prompt_dropout": 0.0, "p_mean": 0.7, "warmup": 0.5}
    objective = ContinuousConsistency(world if taught else None, **options)
    model = trained(student(), objective, 400)
    for told in (1.0, 1.5, 2.0) if taught else (None,):
        shift, ratio = one_step(model, told)
        assert shift == pytest.approx(0, abs=0.1)
        assert ratio == pytest.approx(1, abs=0.1)


# --- refusals -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options, message",
    [
        ({"guidance_range": [5.0, 1.5]}, r"not a range \[low, high\]"),
        ({"guidance_range": [0.0, 1.5]}, "above 0"),
        ({"guidance_range": [1.0]}, "not a range"),
        ({"prompt_dropout": 1.5}, r"prompt_dropout is 1.5; it must be in \[0, 1\]"),
        ({"warmup": -0.1}, r"warmup is -0.1; it must be in \[0, 1\]"),
        ({"tangent_c": 0.0}, "tangent_c is 0.0; it must be above 0"),
        ({"derivative": {"name": "exakt"}}, "unknown derivative 'exakt'; did you mean 'exact'"),
        ({"derivative": {"name": "exact", "h": 1e-3}}, "no option 'h'"),
        ({"derivative": "exact"}, "derivative: 'exact' is not dict"),
    ],
)
def test_senseless_options_are_refused(options, message):
    with pytest.raises(UsageError, match=message):
        build("objective", {"name": "continuous_consistency", **options}, teacher=None)


@pytest.mark.parametrize("zero", range(4))
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_which_derivatives_go_with_which_runs(zero, precision):
    config = TrainConfig({}, {}, {}, "x", 1, zero=zero, precision=precision)

    def refusal(derivative: dict) -> str:
        try:
            ContinuousConsistency(None, derivative=derivative).check(config)
        except UsageError as error:
            return str(error)
        return ""

    assert not refusal({"name": "exact"})
    assert ("noise in bf16" in refusal(DIFFERENCE)) == (precision == "bf16")
