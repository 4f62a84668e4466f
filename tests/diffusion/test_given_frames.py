"""Given frames: which are drawn, and what a network sees and says of them."""

import pytest
import tiny
import torch

from vidcm.config import TrainConfig
from vidcm.diffusion.denoiser import Denoiser
from vidcm.diffusion.given_frames import KINDS, GivenFrames, free_mean, hold, kinds_of
from vidcm.errors import UsageError
from vidcm.registry import build
from vidcm.rng import SampleRng

PLACES = range(1000)
PATHS = ["rectified_flow", "trig_flow", "variance_exploding"]


def drawn(shares: dict[str, float] | None, frames: int = 5, places=PLACES) -> torch.Tensor:
    given = GivenFrames(shares).draw(SampleRng(1, places), frames)
    assert given is not None and given.dtype == torch.bool and given.shape == (len(places), frames)
    return given


# --- masks ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_masks_are_of_their_kind_and_leave_a_frame_to_make(kind):
    masks, counts = drawn({kind: 1.0}).unique(dim=0, return_counts=True)
    assert all(kind in kinds_of(mask) for mask in masks)
    assert len(masks) == {"first": 4, "last": 4, "both": 6, "random": 30}[kind], "all there are"
    lengths = torch.zeros(6).index_add(0, masks.sum(1), counts.float()) / len(PLACES)
    assert (lengths[1:5] > (0.2 if kind != "both" else -1)).all() and lengths[0] == lengths[5] == 0


def test_shares_are_those_of_samples():
    shares = {"first": 0.3, "last": 0.1, "both": 0.2}
    masks = drawn(shares)
    kinds = [kinds_of(mask) for mask in masks]
    for kind, share in shares.items():
        assert sum(kind in found for found in kinds) / len(masks) == pytest.approx(share, abs=0.05)
    assert sum(not found for found in kinds) / len(masks) == pytest.approx(0.4, abs=0.05)


def test_samples_draw_alone():
    """A mask belongs to a sample's place, whatever the batch: ranks may split it."""
    shares = {"first": 0.4, "random": 0.5}
    whole = drawn(shares, places=range(12))
    assert torch.cat([drawn(shares, places=range(k, k + 4)) for k in (0, 4, 8)]).equal(whole)


@pytest.mark.parametrize("shares", [None, {}, {"first": 0.0}])
def test_without_shares_nothing_is_drawn(shares):
    rng = SampleRng(1, range(3))
    frames = GivenFrames(shares)
    assert not frames and frames.draw(rng, 5) is None
    assert rng.normal(4).equal(SampleRng(1, range(3)).normal(4))


@pytest.mark.parametrize("kind, frames", [*((k, 1) for k in KINDS), ("both", 2)])
def test_clips_too_short_to_leave_one_have_none_given(kind, frames):
    assert not drawn({kind: 1.0}, frames).any()


@pytest.mark.parametrize("kind", ["first", "last", "random"])
def test_of_two_frames_one_is_given(kind):
    assert (drawn({kind: 1.0}, 2).sum(1) == 1).all()


@pytest.mark.parametrize(
    "mask, kinds",
    [
        ("100", {"first", "random"}),
        ("110", {"first", "random"}),
        ("001", {"last", "random"}),
        ("101", {"both", "random"}),
        ("010", {"random"}),
        ("000", set()),
        ("111", set()),
    ],
)
def test_kinds_of_a_mask(mask, kinds):
    assert kinds_of(torch.tensor([c == "1" for c in mask])) == kinds


@pytest.mark.parametrize(
    "shares, message",
    [
        ({"frist": 0.3}, "has no kind 'frist'; did you mean 'first'"),
        ({"first": -0.1}, "given_frames.first is -0.1; it must be a share"),
        ({"first": "0.3"}, "given_frames.first is '0.3'; it must be a share"),
        ({"first": True}, "given_frames.first is True; it must be a share"),
        ({"first": float("nan")}, "given_frames.first is nan; it must be a share"),
        ({"first": 0.7, "last": 0.4}, "add up to 1.1; they must not exceed 1"),
        (0.3, "given_frames is 0.3; write it as"),
    ],
)
def test_senseless_shares_are_refused(shares, message):
    with pytest.raises(UsageError, match=message):
        GivenFrames(shares)


# --- times and means ------------------------------------------------------------------------------


def test_given_frames_are_held_at_zero():
    given = torch.tensor([[True, False, False], [False, False, True]])
    t = torch.tensor([0.3, 0.7], dtype=torch.float64)
    assert hold(t, given).equal(t.new_tensor([[0, 0.3, 0.3], [0.7, 0.7, 0]]))
    assert hold(t, None) is t


def test_the_mean_is_of_what_is_free():
    x, given = torch.randn(2, 3, 5, 7, 11), torch.zeros(2, 5, dtype=torch.bool)
    given[0, :2] = given[1, 4] = True
    expected = torch.stack([x[0, :, 2:].mean(), x[1, :, :4].mean()])
    torch.testing.assert_close(free_mean(x, given), expected)
    torch.testing.assert_close(free_mean(x, torch.zeros_like(given)), free_mean(x, None))


# --- the network ----------------------------------------------------------------------------------


def denoiser(path: str, **options) -> Denoiser:
    torch.manual_seed(0)
    model = build("model", tiny.denoiser(**options) | {"path": {"name": path}})
    return tiny.shaken(model).eval()


@torch.no_grad()
@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("two_times", [False, True])
def test_given_frames_come_back_as_they_are_and_shape_the_others(path, two_times):
    model, x = denoiser(path, two_times=two_times), torch.randn(2, 5, 3, 2, 4)
    given = torch.tensor([[True, False, False], [False, True, True]])
    t = hold(model.path.t_from_sigma(torch.tensor([0.3, 7.0])), given)
    cond = model.encode(["an orc", ""])
    made = model.predict_x0(x, t, cond)
    kept = given[:, None, :, None, None].expand_as(x)
    assert made[kept].equal(x[kept]) and not made[~kept].isclose(x[~kept]).all()
    other = torch.where(kept, x + 1, x)
    assert not model.predict_x0(other, t, cond)[~kept].allclose(made[~kept], atol=1e-3)


@torch.no_grad()
def test_each_frame_s_time_reaches_its_tokens():
    """With attention and text shut, a frame hears of its own time alone."""
    model, x = denoiser("rectified_flow"), torch.randn(1, 5, 3, 2, 4)
    for block in model.backbone.blocks:
        block.offset[2::3] = 0
        block.attention.forward = block.text.forward = lambda h, *_, **__: torch.zeros_like(h)
    cond, t = model.encode(["an orc"]), torch.tensor([[0.3, 0.5, 0.7]])
    before = model.velocity(x, t, cond)
    for frame in range(3):
        moved = t.clone()
        moved[0, frame] += 0.2
        changed = (model.velocity(x, moved, cond) - before).abs().amax((0, 1, 3, 4)) > 1e-4
        assert changed.tolist() == [k == frame for k in range(3)]


# --- runs -----------------------------------------------------------------------------------------


def config(**changes) -> TrainConfig:
    keys = {"model": tiny.denoiser(), "objective": {}, "data": {}, "output": "", "steps": 1}
    return TrainConfig(**(keys | changes))


def test_runs_in_which_given_frames_go_unseen_are_refused(tmp_path):
    frames = GivenFrames({"first": 0.3, "last": 0.1, "both": 0.0})
    frames.check(config())
    with pytest.raises(UsageError, match=r"patch_size is \[2, 1, 1\]; let it begin with 1"):
        frames.check(config(model=tiny.denoiser(patch_size=[2, 1, 1])))
    teacher = str(tiny.save(tmp_path / "teacher", tiny.denoiser()))
    with pytest.raises(UsageError, match="first, last, which the teacher .* was not trained with"):
        frames.check(config(teacher=teacher))
    GivenFrames(None).check(config(teacher=teacher, model=tiny.denoiser(patch_size=[2, 1, 1])))
