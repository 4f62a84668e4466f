"""The denoiser's identities hold for any weights: they are what makes it a consistency model."""

import pytest
import tiny
import torch
from oracle import PATHS, Gaussian

from vidcm.diffusion.base import Cond, batched
from vidcm.diffusion.control import Region
from vidcm.diffusion.denoiser import Denoiser
from vidcm.diffusion.guidance import CFGDenoiser, NegativePromptStudent
from vidcm.errors import UsageError
from vidcm.registry import build

NAMES = ["rectified_flow", "trig_flow", "variance_exploding"]
PROMPTS = ["a woman walks left", "an orc"]


def denoiser(path: str = "rectified_flow", **options) -> Denoiser:
    torch.manual_seed(0)
    spec = tiny.denoiser(**options) | {"path": {"name": path}}
    return tiny.shaken(build("model", spec)).eval()


def latents() -> torch.Tensor:
    return torch.randn(2, 5, 3, 2, 4)


@pytest.fixture(params=list(zip(NAMES, PATHS, strict=True)), ids=NAMES)
def model(request) -> Denoiser:
    name, path = request.param
    found = denoiser(name)
    assert type(found.path) is type(path)
    return found


def test_f_at_zero_is_the_identity_whatever_the_weights(model):
    x = latents()
    cond = model.encode(PROMPTS)
    assert model.predict_x0(x, torch.zeros(2), cond).equal(x)
    assert not model.predict_x0(x, torch.full((2,), 0.3), cond).allclose(x, atol=1e-3)


def test_the_three_views_agree(model):
    x = latents()
    t = model.path.t_from_sigma(torch.tensor([0.3, 7.0]))
    seen = model.predict(x, t, model.encode(PROMPTS))
    torch.testing.assert_close(model.path.add_noise(seen.x0, seen.eps, t), x)
    torch.testing.assert_close(model.path.velocity(seen.x0, seen.eps, t), seen.v)
    x0, eps = model.path.to_x0_eps(x, seen.v, t)
    torch.testing.assert_close((x0, eps), (seen.x0, seen.eps), rtol=1e-4, atol=1e-4)


def test_all_paths_show_the_network_the_same_problem():
    """The same weights on another clock: f of matched inputs is the same clean latents."""
    x0, eps = latents(), latents()
    found = []
    for name in NAMES:
        model = denoiser(name)
        t = model.path.t_from_sigma(torch.tensor([0.3, 7.0]))
        found.append(model.predict_x0(model.path.add_noise(x0, eps, t), t, model.encode(PROMPTS)))
    torch.testing.assert_close(found[1], found[0], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found[2], found[0], rtol=1e-4, atol=1e-4)


def test_equal_times_per_frame_are_one_time(model):
    x = latents()
    t = model.path.t_from_sigma(torch.tensor([0.3, 7.0]))
    cond = model.encode(PROMPTS)
    frames = t[:, None].expand(-1, 3)
    torch.testing.assert_close(model.predict_x0(x, frames, cond), model.predict_x0(x, t, cond))
    mixed = frames.clone()
    mixed[:, 1] = 0
    out = model.predict_x0(x, mixed, cond)
    torch.testing.assert_close(out[:, :, 1], x[:, :, 1])
    assert not out[:, :, 0].allclose(x[:, :, 0], atol=1e-3)


def test_outputs_are_float32_when_the_network_is_not():
    model = denoiser().bfloat16()
    seen = model.predict(latents(), torch.tensor([0.2, 0.9]), model.encode(PROMPTS))
    assert {seen.x0.dtype, seen.eps.dtype, seen.v.dtype} == {torch.float32}


@pytest.mark.parametrize("options", [{}, {"guidance_embed": True, "two_times": True}])
def test_passes_of_training_share_whatever_they_drop(options):
    """Consistency compares two passes: masks that each drew for itself would be an error of theirs.
    Nothing is drawn in a network."""
    model, x, t = denoiser(**options).train(), latents(), torch.tensor([0.2, 0.9])
    found = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        cond = model.encode(PROMPTS, torch.tensor([1.5, 4.0]) if options else None)
        found.append(model.predict_x0(x, t, cond))
    assert found[0].equal(found[1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_networks_are_told_of_time_in_full_and_of_order_one(model, dtype):
    """As rectified-flow time in [0, 1]: coarse times blur what is close to noise, and times in
    thousands make derivatives along them blow up."""
    heard: list[torch.Tensor] = []
    model.to(dtype).backbone.time.register_forward_pre_hook(lambda _, args: heard.append(args[0]))
    ratio = torch.tensor([0.3, 7.0])
    model.predict(latents(), model.path.t_from_sigma(ratio), model.encode(PROMPTS))
    torch.testing.assert_close(heard, [ratio / (1 + ratio)])


def test_networks_of_two_times_are_told_how_far_they_jump(model):
    two, heard = denoiser(two_times=True), []
    two.path = model.path
    two.backbone.span.register_forward_pre_hook(lambda _, args: heard.append(args[0]))
    t, s = (model.path.t_from_sigma(torch.tensor(r)) for r in ([0.25, 4.0], [0.0, 1.0]))
    cond = two.encode(PROMPTS)
    two.flow_map(latents(), t, s, cond)
    two.velocity(latents(), t, cond)
    torch.testing.assert_close(heard, [torch.tensor([0.2, 0.3]), torch.zeros(2)])


# --- conditions -----------------------------------------------------------------------------------


def test_stacking_pads_and_padding_changes_nothing():
    model, t, x = denoiser(), torch.tensor([0.2, 0.9]), latents()
    short, long = model.encode(["orc"] * 2), model.encode(["a very long prompt about a dragon"] * 2)
    both = short.stack(long)
    assert len(both) == 4 and both.mask.sum(1).tolist() == [1, 1, 7, 7]
    assert long.stack(short).mask.shape == both.mask.shape
    out = model.predict_x0(torch.cat([x, x]), torch.cat([t, t]), both)
    torch.testing.assert_close(out[:2], model.predict_x0(x, t, short), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(out[2:], model.predict_x0(x, t, long), rtol=1e-5, atol=1e-5)


def test_batches_keep_the_scales_that_all_were_told():
    model = denoiser(guidance_embed=True)
    told = [model.encode([p], torch.tensor([w])) for p, w in [("orc", 1.5), ("a red dragon", 4.0)]]
    both = batched(told)
    assert both.guidance_scale is not None and both.guidance_scale.tolist() == [1.5, 4.0]
    assert both.mask.tolist() == [[True, False, False], [True, True, True]]
    assert batched([told[0], model.encode(["orc"])]).guidance_scale is None
    assert told[0].stack(told[1]).guidance_scale is None
    assert told[0].inside(Region([0, 1], slice(0, 1), slice(0, 1), 1.0)) is told[0]


def test_what_stands_in_padding_is_not_read():
    model, t, x = denoiser(), torch.tensor([0.2, 0.9]), latents()
    cond = model.encode(["an orc", "a very long prompt"])
    noise = torch.where(cond.mask.unsqueeze(-1), cond.tokens, torch.randn_like(cond.tokens) * 9)
    changed = Cond(noise, cond.mask)
    torch.testing.assert_close(model.predict_x0(x, t, changed), model.predict_x0(x, t, cond))


def test_a_student_hears_its_guidance_scale():
    model, t, x = denoiser(guidance_embed=True), torch.tensor([0.2, 0.9]), latents()
    low, high = (
        model.predict_x0(x, t, model.encode(PROMPTS, torch.full((2,), w))) for w in (1.5, 5.0)
    )
    assert not low.allclose(high, atol=1e-4)


# --- guidance -------------------------------------------------------------------------------------


def test_guidance_is_the_line_through_both_branches():
    model, t, x = denoiser(), torch.tensor([0.2, 0.9]), latents()
    cond, negative = model.encode(PROMPTS), model.encode(["", ""])

    def guided(scale) -> torch.Tensor:
        return CFGDenoiser(model, scale, negative).velocity(x, t, cond)

    close = {"rtol": 1e-4, "atol": 1e-5}
    torch.testing.assert_close(guided(1), model.velocity(x, t, cond), **close)
    torch.testing.assert_close(guided(0), model.velocity(x, t, negative), **close)
    torch.testing.assert_close(guided(3.5), guided(0) + 3.5 * (guided(1) - guided(0)), **close)
    scales = guided(torch.tensor([1.5, 4.0]))
    torch.testing.assert_close(scales[:1], guided(1.5)[:1], **close)
    torch.testing.assert_close(scales[1:], guided(4.0)[1:], **close)


@pytest.mark.parametrize("path", PATHS, ids=NAMES)
def test_guidance_in_the_gaussian_world_moves_the_mean(path):
    world = Gaussian(path, means={"": 0.2, "up": 1.0})
    x = torch.randn(3, 2, 1, 2, 2, dtype=torch.float64)
    t = path.t_from_sigma(torch.tensor([0.1, 1.0, 30.0], dtype=torch.float64))
    scale = torch.tensor([0.0, 1.0, 4.0])
    guided = CFGDenoiser(world, scale, world.encode([""] * 3)).velocity(
        x, t, world.encode(["up"] * 3)
    )
    told = world.encode(["up"] * 3, scale)
    torch.testing.assert_close(guided, world.velocity(x, t, told))


@pytest.mark.parametrize("path", PATHS, ids=NAMES)
def test_steering_in_the_gaussian_world_is_guidance_against_the_negative_prompt(path):
    """The exact student of guidance against the empty prompt becomes that against another."""
    world = Gaussian(path, means={"": 0.2, "up": 1.0, "bad": -0.5})
    against = Gaussian(path, means={"": -0.5, "up": 1.0})
    x = torch.randn(3, 2, 1, 2, 2, dtype=torch.float64)
    t, s = (
        path.t_from_sigma(torch.tensor(r).double()) for r in ([0.1, 1.0, 30.0], [0.0, 0.3, 2.0])
    )
    prompts, scale = ["up"] * 3, torch.full((3,), 4.0)
    away = NegativePromptStudent(world, world.encode(["bad"] * 3), world.encode([""] * 3), 4.0)
    said, expected = (w.encode(prompts, scale) for w in (world, against))
    torch.testing.assert_close(away.predict_x0(x, t, said), against.predict_x0(x, t, expected))
    torch.testing.assert_close(away.flow_map(x, t, s, said), against.flow_map(x, t, s, expected))


@pytest.mark.parametrize(
    "part, spec, message",
    [
        ("backbone", {"name": "dot"}, "unknown backbone 'dot'; did you mean 'dit'"),
        (
            "backbone",
            {"name": "dit", "hidden_sise": 3},
            "no option 'hidden_sise'; did you mean 'hidden_size'",
        ),
        ("backbone", {"name": "dit", "channels": 3}, "no option 'channels'"),
        ("backbone", {"name": "dit", "hidden_size": 40, "num_heads": 2}, "multiple of 16"),
        ("conditioner", {"hidden_size": 3}, "the conditioner has no name"),
        ("path", {"name": "rectified"}, "did you mean 'rectified_flow'"),
    ],
)
def test_unknown_parts_are_refused_by_name(part, spec, message):
    with pytest.raises(UsageError, match=message):
        build("model", tiny.denoiser() | {part: spec})
