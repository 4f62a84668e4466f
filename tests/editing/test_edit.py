"""Tasks on a tiny pipeline: what is kept, how long results are, what is refused."""

import numpy as np
import pytest
import tiny
import torch

from vidcm import VideoPipeline
from vidcm.editing.between import slerp
from vidcm.editing.edit import build_tasks, output_spec
from vidcm.editing.observations import Observations
from vidcm.editing.operators import luminance
from vidcm.editing.scene import compose
from vidcm.errors import UsageError
from vidcm.registry import TABLE, lookup

PROMPT = "a woman with purple hair walks left"
H, W = 16, 24  # the tiny pipeline makes 9 frames of this size
MASK = np.zeros((H, W), bool)
MASK[3:9, 5:19] = True


@pytest.fixture(scope="module")
def pipe(tmp_path_factory) -> VideoPipeline:
    return tiny.load(tmp_path_factory.mktemp("editing"), frames=9)


def film(frames: int = 9, height: int = H, width: int = W, seed: int = 0) -> np.ndarray:
    shape = (frames, height, width, 3)
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def grey(frames: np.ndarray) -> np.ndarray:
    return luminance(torch.from_numpy(frames)).numpy()


INPAINT = {"name": "inpaint", "mask": MASK}
PLACE = {"name": "outpaint", "place": (3, 4, 16, 8)}


# --- what is kept ---------------------------------------------------------------------------------


@pytest.mark.parametrize("teacher", [False, True], ids=["student", "teacher"])
def test_pixels_outside_a_mask_stay_and_those_inside_do_not(pipe, teacher):
    clip = film()
    made = pipe.edit(INPAINT, [clip], [PROMPT, "an orc"], use_teacher=teacher).frames
    assert made.shape == (2, 9, H, W, 3)
    for frames in made:
        np.testing.assert_array_equal(frames[:, ~MASK], clip[:, ~MASK])
        assert (frames[:, MASK] != clip[:, MASK]).mean() > 0.9
    assert (made[0, :, MASK] != made[1, :, MASK]).mean() > 0.1


def test_a_moving_mask_and_a_clip_shorter_than_the_model_s(pipe):
    clip, mask = film(6), np.zeros((6, H, W), bool)
    for i in range(6):
        mask[i, 2:8, 2 * i : 2 * i + 6] = True
    made = pipe.edit({"name": "inpaint", "mask": mask}, [clip]).frames[0]
    assert made.shape == clip.shape
    np.testing.assert_array_equal(made[~mask], clip[~mask])


def test_beyond_the_borders(pipe):
    clip = film(9, 8, 16)
    made = pipe.edit(PLACE, [clip]).frames[0]
    np.testing.assert_array_equal(made[:, 4:12, 3:19], clip)


def test_luminance_and_block_means(pipe):
    clip = film()
    made = pipe.edit("colorize", [clip], PROMPT).frames[0]
    np.testing.assert_array_equal(grey(made), grey(clip))
    small = film(9, 4, 6)
    made = pipe.edit("upscale", [small], PROMPT).frames[0]
    sums = made.reshape(9, 4, 4, 6, 4, 3).astype(int).sum((2, 4))
    np.testing.assert_array_equal(sums, 16 * small.astype(int))


def test_frames_in_time(pipe):
    clip = film(7)
    made = pipe.edit("extend", [clip], PROMPT).frames[0]
    assert len(made) == 7 + 4
    np.testing.assert_array_equal(made[:7], clip)
    made = pipe.edit({"name": "extend_backward", "given": 2}, [clip]).frames[0]
    assert len(made) == 7 + 7
    np.testing.assert_array_equal(made[-7:], clip)
    other = film(5, seed=1)
    made = pipe.edit({"name": "inbetween", "given": 2}, [clip, other]).frames[0]
    assert len(made) == 7 + 5 + 5
    np.testing.assert_array_equal(made[:7], clip)
    np.testing.assert_array_equal(made[-5:], other)
    made = pipe.edit({"name": "interpolate_frames", "factor": 2}, [clip[:5]]).frames[0]
    assert len(made) == 9
    np.testing.assert_array_equal(made[::2], clip[:5])


def test_pictures(pipe):
    first, last = film(1), film(1, seed=1)
    made = pipe.edit("animate", [first]).frames[0]
    assert len(made) == 9 and (made[0] == first[0]).all()
    made = pipe.edit({"name": "animate", "at": "last"}, [last]).frames[0]
    assert (made[-1] == last[0]).all() and (made[0] != last[0]).mean() > 0.5
    for task in ("animate", "inbetween"):
        made = pipe.edit(task, [first, last]).frames[0]
        assert (made[0] == first[0]).all() and (made[-1] == last[0]).all()
    assert pipe.edit("image", [], PROMPT).frames.shape == (1, 1, H, W, 3)


def test_loops_close(pipe):
    clip = film(6)
    bridged = pipe.edit({"name": "loop", "given": 2}, [clip]).frames[0]
    assert len(bridged) == 6 + 5
    np.testing.assert_array_equal(bridged[:6], clip)
    assert len(pipe.edit("loop", [], PROMPT).frames[0]) == 8
    tasks = build_tasks("loop")
    canvas, scene = compose(tasks, [], output_spec(pipe.generation()))
    known = Observations(scene, pipe.codec, pipe.device)
    shown = known.finish(torch.randn(2, 3, 9, H, W))
    assert torch.equal(shown[:, 0], shown[:, -1])


def test_three_at_once(pipe):
    """Coloured, extended and looped: three operators, not a new function."""
    clip = film(5)
    made = pipe.edit(["colorize", "extend", "loop"], [clip], PROMPT).frames[0]
    assert len(made) == 8
    np.testing.assert_array_equal(grey(made[:5]), grey(clip))
    made = pipe.edit([INPAINT, "extend"], [clip]).frames[0]
    np.testing.assert_array_equal(made[:5, ~MASK], clip[:, ~MASK])
    small = film(3, 4, 6)
    made = pipe.edit(["upscale", "interpolate_frames"], [small]).frames[0]
    assert made.shape == (5, H, W, 3)
    sums = made[::2].reshape(3, 4, 4, 6, 4, 3).astype(int).sum((2, 4))
    np.testing.assert_array_equal(sums, 16 * small.astype(int))


def test_strength_says_how_far(pipe):
    clip = film()
    rebuilt = pipe.edit({"name": "variation", "strength": 0.0}, [clip]).frames[0]
    away = [
        np.abs(
            pipe.edit({"name": "variation", "strength": s}, [clip]).frames[0]
            - rebuilt.astype(float)
        )
        for s in (0.05, 0.9)
    ]
    assert away[0].mean() < away[1].mean()
    one, two = (
        pipe.edit({"name": "variation", "strength": 1.0}, [c], seed=3).frames
        for c in (clip, film(seed=9))
    )
    assert np.abs(one.astype(int) - two).mean() < 3  # all new: the clip is all but forgotten


def test_denoising_begins_where_the_noise_is(pipe):
    clip = film()
    little, much = (pipe.edit({"name": "denoise", "noise": n}, [clip]).frames[0] for n in (1, 100))
    rebuilt = pipe.edit({"name": "variation", "strength": 0.0}, [clip]).frames[0].astype(float)
    assert np.abs(little - rebuilt).mean() < np.abs(much - rebuilt).mean()
    again = pipe.edit(
        {"name": "denoise", "noise": 100}, [clip], num_inference_steps=1, seed=5
    ).frames[0]
    first = pipe.edit(
        {"name": "denoise", "noise": 100}, [clip], num_inference_steps=1, seed=6
    ).frames[0]
    np.testing.assert_array_equal(again, first)  # one step adds no noise of its own


def test_ends_of_an_interpolation_are_what_they_are_alone(pipe):
    way = pipe.edit({"name": "interpolate", "count": 3}, [], [PROMPT, "an orc"], seed=[4, 9])
    assert len(way) == 3 and way.prompts[1] == f"{PROMPT} > an orc"
    for frames, prompt, seed in ((way.frames[0], PROMPT, 4), (way.frames[2], "an orc", 9)):
        assert np.abs(pipe(prompt, seed=seed).frames[0] - frames.astype(int)).max() <= 1
    one, two = film(), film(seed=1)
    made = pipe.edit({"name": "interpolate", "count": 4}, [one, two]).frames
    np.testing.assert_array_equal(made[0], one)
    np.testing.assert_array_equal(made[-1], two)


def test_noise_on_the_great_circle_is_noise():
    one, two = torch.randn(1, 4001), torch.randn(1, 4001)
    way = slerp(one, two, torch.linspace(0, 1, 5))
    torch.testing.assert_close(way[:1], one)
    torch.testing.assert_close(way[-1:], two)
    assert (way.std(1) - 1).abs().max() < 0.05
    torch.testing.assert_close(slerp(one, one, torch.tensor([0.3])), one)


def test_the_same_seed_is_the_same_result_in_any_batch(pipe):
    clip = film()
    together = pipe.edit(INPAINT, [clip], [PROMPT, "an orc"], seed=[7, 8]).frames
    alone = pipe.edit(INPAINT, [clip], "an orc", seed=8).frames[0]
    assert np.abs(together[1].astype(int) - alone).max() <= 1


def test_progress_is_told(pipe):
    seen = []
    pipe.edit(
        "colorize",
        [film()],
        num_inference_steps=3,
        callback_on_step_end=lambda pipe, step, *_: seen.append(step),
    )
    assert seen == [0, 1, 2]


# --- refusals -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "task, clips, message",
    [
        ("paint", [film()], "unknown task 'paint'; did you mean 'inpaint'"),
        ([], [film()], "there is no task"),
        (["loop", "loop"], [film()], "asked for twice"),
        ({"name": "variation", "strenght": 1}, [film()], "did you mean 'strength'"),
        ("extend", [], "extend takes 1 input clips, not 0"),
        ("inbetween", [film()], "inbetween takes 2 input clips, not 1"),
        ("image", [film()], "image takes 0 input clips, not 1"),
        (["image", "colorize"], [film()], "take different numbers of clips"),
        (["extend", "animate"], [film()], "both decide where the given frames go in time"),
        (["colorize", "upscale"], [film()], "both decide what is known of a pixel"),
        (["colorize", "loop"], [film(9)], "cannot close .384 pixels"),
        ("colorize", [film(3)], "has 3 frames, fewer than the 4 of one latent frame"),
        (["colorize", "loop"], [film(10)], "has 10 frames and the model makes 9"),
        ("colorize", [film(9, 8, 8)], "a clip is 8x8; colorize takes 24x16"),
        ("upscale", [film()], "a clip is 24x16; upscale takes 6x4"),
        ({"name": "upscale", "factor": 5}, [film()], "factor 5 does not divide"),
        ({"name": "upscale", "factor": 1}, [film()], "factor is 1; use 2 or more"),
        (["interpolate_frames", "loop"], [film(6)], "has 6 frames; with factor 2"),
        ({"name": "variation", "strength": 1.5}, [film()], "strength is 1.5; use 0"),
        ({"name": "variation", "strength": -0.1}, [film()], "strength is -0.1; use 0"),
        ({"name": "denoise", "noise": 0.0}, [film()], "noise is 0; use a standard deviation"),
        ({"name": "extend", "given": 9}, [film()], "given is 9; use 1 to 8"),
        ({"name": "extend", "given": 7}, [film(5)], "given is 7 and the clip has 5"),
        ({"name": "loop", "given": 5}, [film()], "no room is left between; use at most 4"),
        ({"name": "animate", "at": "middle"}, [film(1)], "at is 'middle'; use first or last"),
        ("animate", [film(5)], "animate takes pictures, and this is a clip of 5 frames"),
        ({"name": "outpaint", "place": (10, 0, 16, 16)}, [film()], "reaches beyond the picture"),
        ({"name": "outpaint", "place": (0, 0, 24, 16)}, [film()], "is the whole picture"),
        ({"name": "inpaint", "mask": MASK[1:]}, [film()], "mask is 24x15, 1 frame and the clip 24x16"),
        ({"name": "inpaint", "mask": MASK[None].repeat(4, 0)}, [film()], "4 frames and the clip"),
        ({"name": "inpaint", "mask": ~MASK & MASK}, [film()], "covers none of 384 pixels"),
        ({"name": "inpaint", "mask": MASK | True}, [film()], "covers all of 384 pixels"),
        ({"name": "interpolate", "count": 1}, [], "count is 1; use 2 to 64"),
        ("interpolate", [], "needs two of something"),
        ("interpolate", [film()], "goes between two clips, not 1"),
        (["interpolate", "loop"], [], "interpolate stands alone, without loop"),
    ],
    ids=lambda value: str(value)[:40],
)  # fmt: skip
def test_requests_that_make_no_sense(pipe, task, clips, message):
    with pytest.raises(UsageError, match=message):
        pipe.edit(task, clips, PROMPT)


def test_a_student_of_phases_does_not_edit_but_its_teacher_does(pipe, monkeypatch):
    monkeypatch.setattr(pipe.settings.student, "phases", 4)
    monkeypatch.setattr(pipe.settings.student, "num_inference_steps", 4)
    with pytest.raises(UsageError, match="trained in 4 phases"):
        pipe.edit(INPAINT, [film()], PROMPT)
    assert len(pipe.edit(INPAINT, [film()], PROMPT, use_teacher=True)) == 1


def test_the_teacher_walks_with_its_own_solver(pipe, monkeypatch):
    made = {}
    for solver, evaluations in (("euler", 10), ("heun", 18), ("dpm", 10)):
        monkeypatch.setattr(pipe.settings.teacher, "solver", solver)
        clips = pipe.edit(INPAINT, [film()], PROMPT, num_inference_steps=5, use_teacher=True)
        assert clips.evaluations == evaluations
        made[solver] = clips.frames[0]
        np.testing.assert_array_equal(made[solver][:, ~MASK], film()[:, ~MASK])
    assert (made["euler"] != made["heun"]).any() and (made["euler"] != made["dpm"]).any()
    monkeypatch.setattr(pipe.settings.teacher, "solver", "rk9")
    with pytest.raises(UsageError, match="solver is 'rk9'; use euler"):
        pipe.edit(INPAINT, [film()], PROMPT, use_teacher=True)


@pytest.mark.parametrize(
    "task, given, teacher, scale",
    [
        (INPAINT, True, False, 1.0),
        ({"name": "variation", "strength": 0.5}, True, False, 1.0),
        ({"name": "denoise", "noise": 20.0}, True, False, 1.0),
        ("loop", False, False, 3.0),
        (INPAINT, True, True, 2.0),
    ],
)
def test_a_student_that_is_given_something_works_without_guidance(
    pipe, monkeypatch, task, given, teacher, scale
):
    monkeypatch.setattr(pipe.settings.student, "guidance_scale", 3.0)
    monkeypatch.setattr(pipe.settings.student, "guidance_range", [1.0, 5.0])
    monkeypatch.setattr(pipe.settings.teacher, "guidance_scale", 2.0)
    clips, told = [film()] * given, dict(num_inference_steps=2, use_teacher=teacher)
    by_itself = pipe.edit(task, clips, PROMPT, **told).frames
    np.testing.assert_array_equal(
        by_itself, pipe.edit(task, clips, PROMPT, guidance_scale=scale, **told).frames
    )
    assert (by_itself != pipe.edit(task, clips, PROMPT, guidance_scale=5, **told).frames).any()


def test_numbers_out_of_range(pipe):
    with pytest.raises(UsageError, match="steps is 0"):
        pipe.edit("image", [], PROMPT, num_inference_steps=0)
    with pytest.raises(UsageError, match="guidance_scale is 101"):
        pipe.edit("image", [], PROMPT, guidance_scale=101)
    with pytest.raises(UsageError, match="2 seeds for 1 prompts"):
        pipe.edit("image", [], PROMPT, seed=[1, 2])
    with pytest.raises(UsageError, match="too long"):
        pipe.edit("image", [], "x" * 3000)


@pytest.mark.parametrize("name", TABLE["task"])
def test_tasks_explain_themselves(name):
    kind = lookup("task", name)
    assert kind.example.startswith("--") and len((kind.__doc__ or "").split("\n")[0]) < 90
