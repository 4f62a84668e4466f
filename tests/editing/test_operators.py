"""Operators are projections, in real numbers and in whole grey levels."""

import pytest
import torch

from vidcm.editing.operators import BlockMean, Luminance, Operator, Periodic, Pixels, luminance
from vidcm.media.pixels import to_frames, to_video
from vidcm.registry import TABLE, lookup

B, T, H, W = 2, 5, 6, 14  # blocks of 2


def pixels(*shape: int, low: int = 0, high: int = 256) -> torch.Tensor:
    return torch.randint(low, high, shape, dtype=torch.uint8)


def some(*shape: int) -> torch.Tensor:
    return torch.rand(shape) < 0.6


OPERATORS = {
    "pixels": lambda: Pixels(pixels(T, H, W, 3), some(T, H, W)),
    "carrying": lambda: Pixels(pixels(T, H, W, 3), some(T, H, W), carry=0.9),
    "luminance": lambda: Luminance(pixels(T, H, W, 3), some(T, H, W)),
    "block_mean": lambda: BlockMean(pixels(T, 3, 7, 3), some(T, 3, 7), 2),
    "periodic": lambda: Periodic(torch.rand(H, W).round(decimals=1), T),
}


def test_every_registered_operator_is_tested():
    kinds = {type(make()) for make in OPERATORS.values()}
    assert kinds == {lookup("operator", name) for name in TABLE["operator"]}


@pytest.fixture(params=OPERATORS)
def operator(request) -> Operator:
    return OPERATORS[request.param]()


def test_a_projection_shows_what_is_known_and_stays(operator):
    video = torch.randn(B, 3, T, H, W)
    once = operator.project(video)
    torch.testing.assert_close(operator.observe(once), operator.y.expand_as(operator.observe(once)))
    torch.testing.assert_close(operator.project(once), once)
    torch.testing.assert_close(operator.project(operator.start()), operator.start())


def test_the_inverse_is_a_right_inverse_and_what_is_not_known_is_left_alone(operator):
    seen = operator.observe(torch.randn(B, 3, T, H, W))
    torch.testing.assert_close(operator.observe(operator.restore(seen)), seen)
    video = torch.randn(B, 3, T, H, W)
    blind = video - operator.restore(operator.observe(video))  # (1 - A+ A) x
    moved = operator.project(video + blind) - operator.project(video)
    torch.testing.assert_close(moved, blind, atol=1e-5, rtol=1e-4)


def test_each_clip_of_a_batch_is_projected_alone(operator):
    video = torch.randn(B, 3, T, H, W)
    alone = torch.cat([operator.project(v[None]) for v in video])
    torch.testing.assert_close(operator.project(video), alone)
    frames = pixels(B, T, H, W, 3)
    alone = torch.cat([operator.exact(f[None]) for f in frames])
    assert torch.equal(operator.exact(frames), alone)


@pytest.mark.parametrize("low, high", [(0, 256), (0, 2), (254, 256), (0, 40)])
def test_whole_grey_levels_keep_what_is_known_exactly(operator, low, high):
    frames = pixels(B, T, H, W, 3, low=low, high=high)
    exact = operator.exact(frames)
    assert exact.dtype == torch.uint8 and exact.shape == frames.shape
    assert torch.equal(operator.exact(exact), exact)


def test_rounding_is_all_that_whole_grey_levels_change(operator):
    """Where nothing leaves the range, `exact` is `project` but for the nearest whole numbers."""
    known = to_frames(operator.project(to_video(pixels(B, T, H, W, 3, low=120, high=130))))
    close = operator.exact(known).int() - known.int()
    assert close.abs().max() <= 2


def test_pixels_are_the_given_ones():
    frames, seen, made = pixels(T, H, W, 3), some(T, H, W), pixels(B, T, H, W, 3)
    exact = Pixels(frames, seen).exact(made)
    assert torch.equal(exact[:, seen], frames[seen].expand(B, -1, -1))
    assert torch.equal(exact[:, ~seen], made[:, ~seen])


def test_what_is_carried_is_the_mean_of_a_gaussian_process():
    """Errors that correlate by 0.8^d, observed at some times: A+ gives their conditional mean."""
    seen = torch.tensor([0, 1, 0, 0, 1], dtype=torch.bool)
    known = Pixels(pixels(T, H, W, 3), seen[:, None, None].expand(T, H, W), carry=0.8)
    error = torch.randn(1, 3, T, H, W)
    alike = torch.tensor([[0.8 ** abs(i - j) for j in range(T)] for i in range(T)])
    mean = alike[:, seen] @ torch.linalg.solve(alike[seen][:, seen], error[:, :, seen].flatten(3))
    carried = known.restore(known.observe(error))
    torch.testing.assert_close(carried, mean.view_as(error), atol=1e-5, rtol=1e-5)
    assert torch.equal(carried[:, :, seen], error[:, :, seen])
    # a Markov chain: before the first observation an error fades, and no other matters
    torch.testing.assert_close(carried[:, :, 0], 0.8 * error[:, :, 1])


def test_nothing_is_carried_to_pixels_that_are_never_known():
    seen = torch.zeros(T, H, W, dtype=torch.bool)
    seen[1, :, :6] = True
    video = torch.randn(B, 3, T, H, W)
    moved = Pixels(pixels(T, H, W, 3), seen, carry=0.9).project(video) - video
    assert torch.equal(moved[..., 6:], torch.zeros_like(moved[..., 6:]))
    assert (moved[..., :6] != 0).all()


def test_luminance_is_that_of_the_given_clip_in_integers():
    frames, made = pixels(T, H, W, 3), pixels(B, T, H, W, 3)
    exact = Luminance(frames, torch.ones(T, H, W, dtype=torch.bool)).exact(made)
    red, green, blue = exact.long().unbind(-1)
    shown = (299 * red + 587 * green + 114 * blue + 500) // 1000
    assert torch.equal(shown, luminance(frames).long().expand(B, -1, -1, -1))


def test_grey_is_its_own_luminance():
    grey = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(luminance(grey[:, None].expand(-1, 3)), grey)


def test_colours_survive_a_change_of_luminance():
    """Red stays redder than blue by as much, where there is room."""
    made = torch.tensor([150, 100, 90], dtype=torch.uint8).expand(1, T, H, W, 3)
    grey = torch.full((T, H, W, 3), 140, dtype=torch.uint8)
    exact = Luminance(grey, torch.ones(T, H, W, dtype=torch.bool)).exact(made).int()
    assert (exact[..., 0] - exact[..., 2] == 60).all()


def test_block_means_are_exact_sums():
    small, made = pixels(T, 3, 7, 3), pixels(B, T, H, W, 3)
    exact = BlockMean(small, torch.ones(T, 3, 7, dtype=torch.bool), 2).exact(made)
    sums = exact.long().unflatten(3, (7, 2)).unflatten(2, (3, 2)).sum((3, 5))
    assert torch.equal(sums, (4 * small.long()).expand(B, -1, -1, -1, -1))


@pytest.mark.parametrize("share, kept", [(0.0, 0), (1.0, -1)])
def test_a_ring_gives_way_at_the_end_that_is_free(share, kept):
    video = torch.randn(B, 3, T, H, W)
    closed = Periodic(torch.full((H, W), share), T).project(video)
    torch.testing.assert_close(closed[:, :, 0], closed[:, :, -1])
    torch.testing.assert_close(closed[:, :, kept], video[:, :, kept])
    torch.testing.assert_close(closed[:, :, 1:-1], video[:, :, 1:-1])


def test_operators_that_agree_compose_to_a_projection_on_both():
    truth = pixels(T, H, W, 3)
    everywhere = torch.ones(T, H, W, dtype=torch.bool)
    seen = torch.zeros(T, H, W, dtype=torch.bool)
    seen[:, :, :6] = True
    both: list[Operator] = [Luminance(truth, everywhere), Pixels(truth, seen)]
    video = torch.randn(B, 3, T, H, W)
    for operator in both:
        video = operator.project(video)
    for operator in both:
        torch.testing.assert_close(
            operator.project(video), video, atol=1 / 255, rtol=0
        )  # whole levels


def test_seams_are_blended_on_the_generated_side_only():
    seen = torch.zeros(T, 16, 16, dtype=torch.bool)
    seen[:, :, :8] = True
    known = Pixels(torch.full((T, 16, 16, 3), 100, dtype=torch.uint8), seen)
    video = torch.full((1, 3, T, 16, 16), 0.5)
    blended = known.blend(video)
    torch.testing.assert_close(blended[..., :8], video[..., :8])  # kept pixels are exact's to set
    near, far = blended[..., 8], blended[..., 13]
    assert (near - known.y[0, 0, 0, 0, 0]).abs().max() < 0.2 * (0.5 - known.y[0, 0, 0, 0, 0])
    torch.testing.assert_close(far, video[..., 13])
