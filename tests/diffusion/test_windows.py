"""Windows agree with the network they are made of wherever that can be said exactly."""

import pytest
import tiny
import torch
from oracle import Gaussian, start

from vidcm.diffusion.base import Cond, DenoiserBase
from vidcm.diffusion.denoiser import Denoiser
from vidcm.diffusion.guidance import CFGDenoiser, NegativePromptStudent
from vidcm.diffusion.paths import RectifiedFlow
from vidcm.diffusion.samplers import consistency, dpm, euler, flow_map, heun
from vidcm.diffusion.times import shifted_timesteps, student_timesteps
from vidcm.diffusion.windows import PromptSchedule, RepeatedNoise, Windowed
from vidcm.errors import UsageError
from vidcm.registry import build
from vidcm.rng import SampleRng

TRAINED = (3, 2, 4)
SHAPES = [(7, 2, 4), (3, 5, 4), (3, 2, 11), (8, 5, 7), (4, 2, 4)]
PROMPTS = ["a woman walks left", "an orc"]


def student(**options) -> Denoiser:
    torch.manual_seed(0)
    return tiny.shaken(build("model", tiny.denoiser(guidance_embed=True, **options))).eval()


def told(model: Denoiser, prompts: list[str]) -> Cond:
    return model.encode(prompts, torch.tensor([1.5, 3.0]))


# --- covering -------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("overlap", [None, (0, 0, 0), (1, 1, 3)])
def test_weights_sum_to_one_and_windows_are_as_trained(shape, overlap):
    total = torch.zeros(1, 1, *shape, dtype=torch.float64)
    for window in Windowed(Gaussian(RectifiedFlow()), TRAINED, overlap).windows(*shape):
        assert window.of(total).shape[2:] == TRAINED
        assert window.frames[0] == 0 and (window.weights >= 0).all()
        window.add_to(total, torch.ones(1, 1, *TRAINED, dtype=torch.float64))
    torch.testing.assert_close(total, torch.ones_like(total), rtol=0, atol=1e-14)


def test_frame_nought_heads_every_window_and_comes_out_of_the_first():
    windows = Windowed(Gaussian(RectifiedFlow()), (5, 2, 2), (1, 0, 0)).windows(12, 2, 2)
    assert [w.frames for w in windows] == [
        [0, 1, 2, 3, 4], [0, 4, 5, 6, 7], [0, 7, 8, 9, 10], [0, 8, 9, 10, 11]
    ]  # fmt: skip
    assert [float(w.weights[0, 0, 0]) for w in windows] == [1, 0, 0, 0]
    assert [w.place for w in windows] == [3, 6, 9, 10]


def test_room_leaves_no_window_shifted_back():
    whole = Windowed(Gaussian(RectifiedFlow()), (5, 2, 2), (1, 0, 0))
    assert [whole.padded_frames(n) for n in (1, 4, 5, 6, 8, 9, 11, 12)] == [
        1,
        4,
        5,
        8,
        8,
        11,
        11,
        14,
    ]
    starts = [w.frames[1] for w in whole.windows(14, 2, 2)]
    assert starts == [1, 4, 7, 10]


def test_windows_fade_smoothly():
    (_, first), (_, second) = (
        (w.place, w.weights[1:, 0, 0])
        for w in Windowed(Gaussian(RectifiedFlow()), (9, 1, 1), (4, 0, 0)).windows(13, 1, 1)
    )
    assert first[:4].eq(1).all() and (first[4:].diff() < 0).all() and 0 < first[-1] < 0.05
    torch.testing.assert_close(second.flip(0), first)


def test_overlaps_that_leave_no_step_are_refused():
    for overlap in [(2, 0, 0), (0, 2, 0), (0, 0, -1)]:
        with pytest.raises(UsageError, match=r"windows of \(3, 2, 4\) .* use 0 to \(1, 1, 3\)"):
            Windowed(Gaussian(RectifiedFlow()), TRAINED, overlap)
    with pytest.raises(UsageError, match="2 latent frames asked of a model of single pictures"):
        Windowed(Gaussian(RectifiedFlow()), (1, 2, 2)).windows(2, 2, 2)


# --- what must not change -------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [TRAINED, (2, 2, 4), (1, 1, 3)])
def test_one_window_is_the_denoiser_bit_for_bit(shape):
    model = student(two_times=True)
    whole, cond = Windowed(model, TRAINED), told(model, PROMPTS)
    x, t, s = torch.randn(2, 5, *shape), torch.tensor([0.9, 0.3]), torch.tensor([0.5, 0.1])
    assert whole.predict_x0(x, t, cond).equal(model.predict_x0(x, t, cond))
    assert whole.velocity(x, t, cond).equal(model.velocity(x, t, cond))
    assert whole.flow_map(x, t, s, cond).equal(model.flow_map(x, t, s, cond))


@pytest.mark.parametrize("shape", SHAPES)
def test_what_acts_on_every_position_alone_does_not_see_the_windows(shape):
    world = Gaussian(RectifiedFlow(), means={"": 0.2, "up": 1.0})
    whole, cond = Windowed(world, TRAINED, rows=4), world.encode(["up", ""])
    x, t = torch.randn(2, 3, *shape, dtype=torch.float64), torch.tensor([0.9, 0.3])
    per_frame = torch.rand(2, shape[0], dtype=torch.float64)
    for now in (t.double(), per_frame):
        torch.testing.assert_close(whole.predict_x0(x, now, cond), world.predict_x0(x, now, cond))
        torch.testing.assert_close(whole.velocity(x, now, cond), world.velocity(x, now, cond))


def test_how_many_windows_are_evaluated_at_once_changes_nothing():
    model = student()
    x, t, cond = torch.randn(2, 5, 8, 3, 7), torch.tensor([0.9, 0.3]), told(model, PROMPTS)
    sizes: list[int] = []
    forward = model.backbone.forward

    def counted(x, *rest):
        sizes.append(len(x))
        return forward(x, *rest)

    model.backbone.forward = counted
    one, all_ = (Windowed(model, TRAINED, rows=n) for n in (1, 1000))
    parts = one.predict_x0(x, t, cond), all_.predict_x0(x, t, cond)
    torch.testing.assert_close(*parts, rtol=1e-5, atol=1e-5)
    count = len(one.windows(8, 3, 7))
    assert sizes == [2] * count + [2 * count] and count > 9


def test_every_sampler_of_an_exact_world_is_as_without_windows():
    world = Gaussian(RectifiedFlow(), means={"": 0.2, "up": 1.0})
    whole = Windowed(world, TRAINED)
    cond, none = world.encode(["up"] * 2), world.encode([""] * 2)
    noise = torch.randn(2, 3, 8, 3, 7, dtype=torch.float64)
    for solver in (euler, heun, dpm):
        plain, cut = (
            solver(CFGDenoiser(w, 3.0, none), noise, shifted_timesteps(4), cond)
            for w in (world, whole)
        )
        torch.testing.assert_close(cut, plain)
    for sampler in (consistency, flow_map):
        plain, cut = (
            sampler(w, noise, student_timesteps(3), cond, SampleRng(5, [0, 1]))
            for w in (world, whole)
        )
        torch.testing.assert_close(cut, plain)


def test_guidance_goes_around_windows_or_inside_them():
    torch.manual_seed(0)
    model = tiny.shaken(build("model", tiny.denoiser())).eval()
    x, t = torch.randn(2, 5, 8, 2, 4), torch.tensor([0.9, 0.3])
    cond, negative = model.encode(PROMPTS), model.encode(["", "a cat"])
    outside = CFGDenoiser(Windowed(model, TRAINED), 3.0, negative).velocity(x, t, cond)

    class Each(DenoiserBase):
        path = model.path

        def predict(self, x_t, t, cond, s=None):
            every = model.encode(["", "a cat"] * (len(x_t) // 2))
            return CFGDenoiser(model, 3.0, every).predict(x_t, t, cond, s)

    inside = Windowed(Each(), TRAINED).velocity(x, t, cond)
    torch.testing.assert_close(outside, inside, rtol=1e-4, atol=1e-4)


def test_a_student_is_steered_away_in_windows():
    model = student()
    x, t = torch.randn(2, 5, 7, 2, 4), torch.tensor([0.9, 0.3])
    cond, empty = told(model, PROMPTS), model.encode(["", ""])
    whole = Windowed(model, TRAINED)
    same = NegativePromptStudent(whole, empty, empty, 3.0).predict_x0(x, t, cond)
    torch.testing.assert_close(same, whole.predict_x0(x, t, cond))
    away = NegativePromptStudent(whole, model.encode(["a cat", "a dog"]), empty, 3.0).predict_x0(
        x, t, cond
    )
    assert not away.allclose(same, atol=1e-3)


# --- prompts along the clip -----------------------------------------------------------------------


def test_a_schedule_of_one_prompt_is_no_schedule():
    model = student()
    x, t, cond = torch.randn(2, 5, 8, 2, 4), torch.tensor([0.9, 0.3]), told(model, PROMPTS)
    whole = Windowed(model, TRAINED)
    always = PromptSchedule.of(cond, [(3.0, cond), (5.0, cond)])
    assert whole.predict_x0(x, t, always).equal(whole.predict_x0(x, t, cond))


def test_prompts_hold_where_they_should_and_fade_where_windows_overlap():
    world = Gaussian(RectifiedFlow(), means={"": 0.0, "up": 1.0, "down": -1.0})
    up, down = (world.encode([p]) for p in ("up", "down"))
    x, t = torch.zeros(1, 1, 13, 1, 1, dtype=torch.float64), torch.ones(1, dtype=torch.float64)
    cond = PromptSchedule.of(up, [(6.0, down)])

    def shown(overlap: int) -> list[float]:
        whole = Windowed(world, (5, 1, 1), (overlap, 0, 0))
        return (whole.predict_x0(x, t, cond).flatten()).tolist()

    assert shown(0) == pytest.approx([1.0] * 5 + [-1.0] * 8)
    faded = shown(2)
    assert faded[:3] == pytest.approx([1] * 3) and faded[7:] == pytest.approx([-1] * 6)
    assert all(a >= b - 1e-12 for a, b in zip(faded, faded[1:], strict=False))
    assert sum(-0.99 < v < 0.99 for v in faded) == 2
    guided = CFGDenoiser(Windowed(world, (5, 1, 1), (0, 0, 0)), 2.0, world.encode([""]))
    x0, _ = world.path.to_x0_eps(x, guided.velocity(x, t, cond), t)
    assert x0.flatten().tolist() == pytest.approx([2.0] * 5 + [-2.0] * 8)


# --- noise ----------------------------------------------------------------------------------------


def test_noise_comes_round_and_begins_as_that_of_a_short_clip():
    def draw(frames: int, wrapped: bool = True) -> torch.Tensor:
        rng = SampleRng(3, [0, 1])
        return (RepeatedNoise(rng, 5, 3) if wrapped else rng).normal(2, frames, 3, 4)

    short, long = draw(5, wrapped=False), draw(12)
    assert draw(5).equal(short) and draw(2).equal(SampleRng(3, [0, 1]).normal(2, 2, 3, 4))
    assert long[:, :, :4].equal(short[:, :, :4])
    assert long[:, :, 1:9].equal(long[:, :, 4:12])
    assert long.shape == (2, 2, 12, 3, 4) and long.std() == pytest.approx(1, abs=0.1)


def test_windows_without_overlap_repeat_the_short_clip():
    """The same head, noise and prompt for all: what a long clip begins with, it goes on with."""
    model = student()
    whole, cond = Windowed(model, TRAINED), told(model, PROMPTS)

    def sample(frames: int) -> torch.Tensor:
        rng = whole.repeated_noise(SampleRng(3, [0, 1]))
        noise = rng.normal(5, frames, 2, 4)
        times = student_timesteps(2)
        return consistency(whole, start(model.path, noise, times), times, cond, rng)

    short, long = sample(3), sample(7)
    close = {"rtol": 1e-4, "atol": 1e-4}
    torch.testing.assert_close(long[:, :, :3], short, **close)
    torch.testing.assert_close(long[:, :, 5:], short[:, :, 1:], **close)
