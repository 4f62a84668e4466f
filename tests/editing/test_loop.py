"""Loops close without a seam: the step from end to beginning is no larger than those beside it."""

import numpy as np
import pytest
import tiny
import torch
from editing.test_edit import MASK, PROMPT, H, W, film, grey

from vidcm import VideoPipeline
from vidcm.editing.edit import build_tasks, output_spec
from vidcm.editing.joins import drawn_to_given, drawn_to_start
from vidcm.editing.observations import Observations
from vidcm.editing.operators import FADE, Periodic, Pixels
from vidcm.editing.scene import compose
from vidcm.evaluation.edit_cases import loop, loop_alone
from vidcm.evaluation.edit_scores import score_edit
from vidcm.media.pixels import to_frames, to_video

B, T = 3, 7


@pytest.fixture(scope="module")
def pipe(tmp_path_factory) -> VideoPipeline:
    return tiny.load(tmp_path_factory.mktemp("loop"), frames=9)


def steps(video: torch.Tensor) -> torch.Tensor:
    """Those round a loop `(b 3 t h w)`, the wrap last: `(b, t)`."""
    return (video.roll(-1, 2) - video).abs().mean((1, 3, 4))


def drifting() -> torch.Tensor:
    """Clips that end far from where they began."""
    return torch.randn(B, 3, T, 5, 11).cumsum(2) + 2.0 * torch.arange(T).view(1, 1, T, 1, 1)


def test_rounding_brings_no_seam_back():
    """Noise of one grey level and a drift of one: mixed and rounded, much of it would stay."""
    frames = torch.randint(100, 102, (B, T, 11, 13, 3)) + torch.arange(T).view(1, T, 1, 1, 1) // 2
    closed = to_frames(drawn_to_start(to_video(frames.to(torch.uint8)))).float()
    found = steps(closed.permute(0, 4, 1, 2, 3))
    assert (found[:, -1] <= (found[:, 0] + found[:, -2]) / 2 + 1e-4).all()
    assert torch.equal(closed[:, :-1], frames[:, :-1].float())


def test_a_wrap_becomes_no_larger_than_the_mean_beside_it():
    video = drifting()
    closed = steps(drawn_to_start(video))
    before, after = ((s[:, 0] + s[:, -2]) / 2 for s in (steps(video), closed))
    assert (steps(video)[:, -1] > 1.5 * before).all()
    assert (closed[:, -1] <= after * (1 + 1e-5)).all()
    assert (closed[:, -1] >= 0.95 * after).all()  # and no smaller than it must be


def test_only_the_last_frame_moves_and_straight_to_the_first():
    video = drifting()
    closed = drawn_to_start(video)
    assert torch.equal(closed[:, :, :-1], video[:, :, :-1])
    way, whole = closed[:, :, -1] - video[:, :, -1], video[:, :, 0] - video[:, :, -1]
    share = (way * whole).sum((1, 2, 3)) / whole.square().sum((1, 2, 3))
    assert (0 < share).all() and (share < 2 / 3 + 1 / 128).all()
    torch.testing.assert_close(way, share.view(-1, 1, 1, 1) * whole, rtol=0, atol=2 / 255)


def test_a_loop_that_closes_is_left_alone_beside_one_that_does_not():
    turn = torch.linspace(0, 2 * torch.pi, T + 1)[:-1].view(1, 1, T, 1, 1)
    round_ = torch.cat([turn.cos(), turn.sin(), turn.cos()], 1).expand(1, 3, T, 5, 11).clone()
    round_[:, :, -1] += 0.05 * (round_[:, :, 0] - round_[:, :, -1])  # off the edge of equality
    both = torch.cat([round_, drifting()[:1]])
    closed = drawn_to_start(both)
    assert torch.equal(closed[0], both[0]) and not torch.equal(closed[1], both[1])
    still = torch.ones(1, 3, T, 5, 11)
    assert torch.equal(drawn_to_start(still), still)


def test_where_all_else_stands_still_two_thirds_of_the_wrap_move_before_it():
    """One step in two: 1/3 of it is no larger than half of the 2/3 before it."""
    video = torch.zeros(1, 3, T, 5, 11)
    video[:, :, 2:] = 1.0
    found = steps(drawn_to_start(video))[0, -2:]
    torch.testing.assert_close(found, torch.tensor([2 / 3, 1 / 3]), atol=0.01, rtol=0)


@pytest.mark.parametrize("share, end", [(0.0, 0), (0.25, 0), (1.0, -1)])
def test_a_ring_s_blend_closes_at_the_end_that_is_kept(share, end):
    video = drifting()
    blended = Periodic(torch.full((5, 11), share), T).blend(video)
    assert blended.shape == video.shape
    for place in (0, -1):
        assert torch.equal(blended[:, :, place], video[:, :, end])
    assert torch.equal(blended[:, :, 1:-2], video[:, :, 1:-2])
    found = steps(blended[:, :, :-1])
    assert (found[:, -1] <= (found[:, 0] + found[:, -2]) / 2 * (1 + 1e-5)).all()


@pytest.mark.parametrize("given", [1, 2])
@pytest.mark.parametrize("teacher", [False, True], ids=["student", "teacher"])
def test_loops_have_no_seam(pipe, given, teacher):
    case = loop(film(9))
    how = {"seed": [3, 4], "use_teacher": teacher, "num_inference_steps": 2}
    made = pipe.edit({"name": "loop", "given": given}, case.clips, [PROMPT, "an orc"], **how).frames
    for frames in made:
        np.testing.assert_array_equal(frames[:5], case.clips[0])
        assert len(frames) == 5 + 9 - 2 * given
        wrap, beside = score_edit(case, frames).seam or (1, 0)
        assert wrap <= beside + 1e-6
    alone = loop_alone(film(9))
    for frames in pipe.edit("loop", [], [PROMPT, "an orc"], **how).frames:
        wrap, beside = score_edit(alone, frames).seam or (1, 0)
        assert len(frames) == 8 and wrap <= beside + 1 / 2  # grey levels, of rounding those beside


def test_a_loop_of_other_tasks_keeps_what_they_know(pipe):
    """Drawn before what is known is put in its place, so luminance and pixels stay to the bit."""
    clip = film(8)
    made = pipe.edit(["colorize", "loop"], [clip], PROMPT).frames[0]
    np.testing.assert_array_equal(grey(made), grey(clip))
    made = pipe.edit([{"name": "inpaint", "mask": MASK}, "loop"], [clip], PROMPT).frames[0]
    np.testing.assert_array_equal(made[:, ~MASK], clip[:, ~MASK])


def test_which_end_gives_way(pipe):
    """The end that is not known; of two the last, for the most part."""
    for names, clips, share in ((["loop"], [], 1 / 4), (["colorize", "loop"], [film(5)], 0)):
        canvas, scene = compose(build_tasks(names), clips, output_spec(pipe.generation()))
        periodic = Observations(scene, pipe.codec, pipe.device).operators[-1]
        assert isinstance(periodic, Periodic) and (periodic.share == share).all()
        assert scene.periodic and not scene.blend_ends


GIVEN = [True, True, False, False, False, True, True]


def test_made_frames_are_drawn_to_two_given_ones():
    video = drifting()
    for i in (0, 1, 5, 6):
        video[:, :, i] += 9.0 * (i > 3) - 9.0 * (i < 3)  # a jump at either seam
    joined, step = drawn_to_given(video, GIVEN), steps(video)
    for i in (0, 1, 3, 5, 6):
        assert torch.equal(joined[:, :, i], video[:, :, i])
    found = steps(joined)
    for at in (1, 4):
        assert (step[:, at] > 1.5 * (step[:, at - 1] + step[:, at + 1]) / 2).all()
        assert (found[:, at] <= (found[:, at - 1] + found[:, at + 1]) / 2 * (1 + 1e-5)).all()


@pytest.mark.parametrize("made", [[1, 2, 3, 4, 5], [2], [0, 1, 2, 3, 4, 5, 6], []])
def test_one_given_frame_says_nothing_of_motion_nor_does_one_made(made):
    video = drifting()
    given = [i not in made for i in range(T)]
    assert torch.equal(drawn_to_given(video, given), video)


def test_a_blend_carries_what_is_off_along_time_and_leaves_given_frames_to_exact():
    """FADE^d of it, where no picture shows what is known beside the hole."""
    frames = torch.full((T, 11, 13, 3), 100, dtype=torch.uint8)
    seen = torch.zeros(T, 11, 13, dtype=torch.bool)
    seen[0] = True
    known, video = Pixels(frames, seen), torch.full((1, 3, T, 11, 13), 0.5)
    moved = known.blend(video) - video
    off = float(known.y[0, 0, 0, 0, 0]) - 0.5
    expected = [0.0] + [off * FADE**d for d in range(1, T)]
    torch.testing.assert_close(moved[0, 0, :, 0, 0], torch.tensor(expected))


def test_extending_joins_what_it_makes_to_the_clip(pipe):
    """The bundled model's own clips too are a codec's: beside given ones they would jump."""
    clip = np.broadcast_to(film(1) // 4, (5, H, W, 3)).copy()
    clip += np.arange(5, dtype=np.uint8)[:, None, None, None]
    for name, back in (("extend", False), ({"name": "extend_backward", "given": 4}, True)):
        made = pipe.edit(name, [clip], PROMPT).frames[0].astype(float)
        made = made[::-1] if back else made
        step = np.abs(np.diff(made, axis=0)).mean((1, 2, 3))
        assert step[4] <= (step[3] + step[5]) / 2 + 1 / 2  # grey levels, of rounding
