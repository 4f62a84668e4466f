"""Sampling with given frames: the exact law given them, in the closed-form world of clips."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from correlated import MEANS, Clips, covariance, given_law
from oracle import PATHS, start

from vidcm import VideoPipeline
from vidcm.cli import evaluate
from vidcm.diffusion import samplers
from vidcm.diffusion.base import combine
from vidcm.diffusion.given_frames import GivenFramesDenoiser, GivenLatents
from vidcm.diffusion.guidance import CFGDenoiser
from vidcm.diffusion.projection import ProjectedDenoiser
from vidcm.diffusion.times import shifted_timesteps, to_path_time
from vidcm.editing.edit import output_spec
from vidcm.editing.observations import given_latents
from vidcm.editing.scene import compose
from vidcm.editing.timing import Animate, Extend, ExtendBackward, Inbetween
from vidcm.evaluation.edit_cases import CASES
from vidcm.evaluation.edits import run_edit
from vidcm.evaluation.rows import Row
from vidcm.media.pixels import to_video

FRAMES = 3
MASKS = {"first": "100", "two": "110", "last": "001", "both": "101"}
SEEN = torch.tensor([1.3, -0.4, 0.6], dtype=torch.float64)  # of which the given ones count
every_path = pytest.mark.parametrize("path", PATHS, ids=[type(p).__name__ for p in PATHS])
every_mask = pytest.mark.parametrize("mask", MASKS)


def frames(mask: str) -> GivenLatents:
    given = torch.tensor([c == "1" for c in MASKS[mask]])
    return GivenLatents(SEEN.view(1, 1, -1, 1, 1), given)


class Basis:
    """Draws that are nothing, and each of a sampler's random numbers in turn alone: what comes out
    is affine in them, so that mean and covariance of it are exact."""

    def __init__(self, draws: int):
        self.size, self.at = draws * FRAMES, 0

    def normal(self, *shape: int) -> torch.Tensor:
        x = torch.zeros(1 + self.size, FRAMES, dtype=torch.float64)
        for frame in range(FRAMES):
            if self.at + frame < self.size:
                x[1 + self.at + frame, frame] = 1
        self.at += FRAMES
        return x.view(-1, 1, FRAMES, 1, 1)


def law(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and covariance of frames, of what `Basis` led to."""
    flat = x.view(len(x), FRAMES)
    spread = flat[1:] - flat[0]
    return flat[0], spread.T @ spread


def right(mask: str, mean: float = MEANS["up"]) -> tuple[torch.Tensor, torch.Tensor]:
    given = frames(mask).given
    centre, cov = given_law(
        torch.full((FRAMES,), mean).double(), covariance(), given, SEEN[given, None]
    )
    whole, spread = SEEN.clone(), torch.zeros(FRAMES, FRAMES, dtype=torch.float64)
    whole[~given] = centre[:, 0]
    spread[torch.outer(~given, ~given)] = cov.flatten()
    return whole, spread


def few(path, denoiser, steps: int, walker: str = "consistency") -> torch.Tensor:
    """Clean clips of a student, from all noise on."""
    rng = Basis(steps)
    noise = rng.normal()
    cond = Clips(path).encode(["up"] * len(noise))
    times = to_path_time(
        path, torch.tensor([1.0, 0.9, 0.6, 0.3], dtype=torch.float64)[:steps]
    ).tolist()
    times[0] = path.t_max
    x = start(path, noise, times)
    return samplers.SAMPLERS[walker](denoiser, x, times, cond, rng)


@every_path
@every_mask
@pytest.mark.parametrize("steps", [1, 4])
def test_a_student_draws_from_the_law_given_the_frames(path, mask, steps):
    shown = frames(mask)
    x = few(path, ProjectedDenoiser(GivenFramesDenoiser(Clips(path), shown), shown), steps)
    mean, cov = law(x)
    expected = right(mask)
    # The exploding path ends at ratio 160, where a little of the data is left.
    near = 1e-2 if path.t_max > 100 else 1e-6
    torch.testing.assert_close(mean, expected[0], atol=near, rtol=near)
    torch.testing.assert_close(cov, expected[1], atol=near, rtol=near)


@every_path
@every_mask
def test_so_does_one_that_jumps(path, mask):
    shown, near = frames(mask), 1e-2 if path.t_max > 100 else 1e-6
    x = few(path, ProjectedDenoiser(GivenFramesDenoiser(Clips(path), shown), shown), 4, "flow_map")
    for found, expected in zip(law(x), right(mask), strict=True):
        torch.testing.assert_close(found, expected, atol=near, rtol=near)


def walked(path, flow, shown: GivenLatents) -> torch.Tensor:
    noise = Basis(1).normal()
    times = to_path_time(path, shifted_timesteps(150, by=8.0))
    x = noise * path.sigma(times[:1]).view(1, 1, 1, 1, 1)
    cond = Clips(path).encode(["up"] * len(noise))
    return samplers.heun(ProjectedDenoiser(flow, shown), x, times, cond)


@every_path
@every_mask
def test_a_teacher_walks_to_the_law_given_the_frames(path, mask):
    shown = frames(mask)
    x = walked(path, GivenFramesDenoiser(Clips(path), shown), shown)
    for found, expected in zip(law(x), right(mask), strict=True):
        torch.testing.assert_close(found, expected, atol=2e-2, rtol=2e-2)


def test_guidance_is_that_of_the_law_given_the_frames():
    path, shown = PATHS[0], frames("first")
    world, scale = Clips(path), 2.5
    flow = CFGDenoiser(world, scale, world.encode([""] * (1 + FRAMES)))
    x = walked(path, GivenFramesDenoiser(flow, shown), shown)
    guided = MEANS[""] + scale * (MEANS["up"] - MEANS[""])
    for found, expected in zip(law(x), right("first", guided), strict=True):
        torch.testing.assert_close(found, expected, atol=2e-2, rtol=2e-2)


@pytest.mark.parametrize("steps", [1, 4])
def test_projected_guesses_alone_do_not_reach_it(steps):
    """What training with given frames is for: without being shown them, the first guess knows
    nothing of them, and the next ones too little."""
    path, shown = PATHS[0], frames("first")
    x = few(path, ProjectedDenoiser(Clips(path), shown), steps)
    assert (law(x)[0] - right("first")[0]).abs().max() > 0.1


class Untimed(GivenFramesDenoiser):
    """A planted mistake: the frames are an input, their times are not."""

    def predict(self, x_t, t, cond, s=None):
        return self.denoiser.predict(self.frames(x_t), t, cond, s)


class Unshown(GivenFramesDenoiser):
    """Another: the times are an input, the frames are not."""

    def predict(self, x_t, t, cond, s=None):
        target = None if s is None else self.frames.times(s)
        return self.denoiser.predict(x_t, self.frames.times(t), cond, target)


@pytest.mark.parametrize("kind", [Untimed, Unshown])
def test_frames_and_their_times_are_both_needed(kind):
    path, shown = PATHS[0], frames("first")
    x = few(path, ProjectedDenoiser(kind(Clips(path), shown), shown), 1)
    off = [
        (found - expected).abs().max()
        for found, expected in zip(law(x), right("first"), strict=True)
    ]
    assert max(off) > 0.1


# --- in a pipeline --------------------------------------------------------------------------------


def trained(folder: Path, role: str, kinds: list[str]) -> None:
    """Have a model's spec say that it was trained with given frames."""
    path = folder / role / "model.json"
    card = json.loads(path.read_text("utf-8"))
    card["spec"]["given_frames"] = kinds
    path.write_text(json.dumps(card), "utf-8")


@pytest.fixture(scope="module")
def pipe(tmp_path_factory) -> VideoPipeline:
    folder = tiny.pipeline(tmp_path_factory.mktemp("conditioned"), frames=9)
    for role in ("teacher", "student"):
        trained(folder, role, ["first", "both"])
    return VideoPipeline.from_pretrained(folder, device="cpu")


def film(frames: int) -> np.ndarray:
    return np.random.default_rng(5).integers(0, 256, (frames, 16, 24, 3), np.uint8)


TWO = film(8)
TASKS = {
    "animate": ({"name": "animate"}, [film(1)], [0], [0]),
    "extend": ({"name": "extend"}, [film(7)], [0, 1, 2, 3, 4], [0, 1]),
    "inbetween": (
        {"name": "inbetween", "given": 4},
        [TWO[:4], TWO[4:]],
        [0, 1, 2, 3, 5, 6, 7, 8],
        [0, 2],
    ),
    "extend_backward": ({"name": "extend_backward"}, [film(4)], [5, 6, 7, 8], None),
    "colorize": ({"name": "colorize"}, [film(9)], [], None),
    "image": ({"name": "image"}, [], [], None),
}


@pytest.mark.parametrize("teacher", [False, True], ids=["student", "teacher"])
@pytest.mark.parametrize("name", TASKS)
@pytest.mark.parametrize("zero_shot", [False, True])
def test_the_network_is_shown_what_it_was_trained_with(pipe, name, teacher, zero_shot, monkeypatch):
    """`extend_backward` gives an end, which these models were not trained with; the others no whole
    frame."""
    task, clips, _, held = TASKS[name]
    seen, backbone = [], pipe.model("teacher" if teacher else "student").backbone
    forward = backbone.forward

    def seeing(x, time, *rest):
        seen.append((x, time))
        return forward(x, time, *rest)

    monkeypatch.setattr(backbone, "forward", seeing)
    made = pipe.edit(
        task, clips, ["an orc", ""], num_inference_steps=3, use_teacher=teacher, zero_shot=zero_shot
    )
    assert len(seen) == 3 and len(made.frames) == 2
    if held is None or zero_shot:
        assert all(time.ndim == 1 for _, time in seen)
        return
    free = [k for k in range(3) if k not in held]
    for x, time in seen:
        assert (time[:, held] == 0).all() and (time[:, free] > 0).all()
        assert x[:, :, held].equal(seen[0][0][:, :, held])
    shown, codec = seen[0][0][:1], pipe.codec
    if 0 in held:
        first = torch.from_numpy(clips[0][-max(1, len(held) * 4 - 3) :][:1])
        torch.testing.assert_close(shown[:, :, :1], codec.encode(to_video(first[None])))


@pytest.mark.parametrize("name", ["animate", "extend", "inbetween"])
def test_given_frames_are_kept_to_the_bit(pipe, name):
    task, clips, kept, _ = TASKS[name]
    made = pipe.edit(task, clips, "an orc").frames[0]
    whole = np.concatenate(clips)
    made = made[len(made) - 9 :]
    np.testing.assert_array_equal(made[kept], whole[len(whole) - len(kept) :])
    other = pipe.edit(task, clips, "an orc", zero_shot=True).frames[0]
    assert (other[-9:] != made).any(), "the frames shown change the others"


@pytest.mark.parametrize("teacher", [False, True], ids=["student", "teacher"])
@pytest.mark.parametrize("given", [4, 1], ids=["whole latent frames", "a picture at the end"])
def test_what_the_network_says_of_given_frames_is_overruled(pipe, teacher, given, monkeypatch):
    """At time 0 its answer for them says nothing of the noise that the sampler holds there."""
    predict = GivenFramesDenoiser.predict

    def louder(self, *args):
        given = self.frames.given.view(-1, 1, 1)
        return combine(lambda x: torch.where(given, x + 100, x), predict(self, *args))

    ask = ({"name": "inbetween", "given": given}, [TWO[:4], TWO[4:]], "an orc")
    made = pipe.edit(*ask, num_inference_steps=3, use_teacher=teacher).frames
    monkeypatch.setattr(GivenFramesDenoiser, "predict", louder)
    np.testing.assert_array_equal(
        pipe.edit(*ask, num_inference_steps=3, use_teacher=teacher).frames, made
    )


@pytest.mark.parametrize(
    "task, clips, all",
    [
        (Animate(), [film(1)], True),
        (Extend(5), [film(7)], True),
        (Extend(6), [film(7)], False),
        (ExtendBackward(4), [film(4)], True),
        (ExtendBackward(5), [film(5)], False),
        (Inbetween(1), [film(1)] * 2, False),
    ],
)
def test_what_more_is_known_than_whole_latent_frames(pipe, task, clips, all):
    scene = compose({"any": task}, clips, output_spec(pipe.generation()))[1]
    found = given_latents(scene, pipe.codec, pipe.device)
    assert found is not None and found.complete is all
    looped = given_latents(replace(scene, periodic=True), pipe.codec, pipe.device)
    assert looped is not None and not looped.complete


def test_the_table_has_both_ways(pipe):
    clip = film(9)
    case = CASES["extend"](clip)
    for zero_shot in (False, True):
        frames = run_edit(pipe, case, Row("student", 2, zero_shot), "an orc", 3)
        same = pipe.edit(
            case.spec, case.clips, "an orc", seed=3, num_inference_steps=2, zero_shot=zero_shot
        )
        np.testing.assert_array_equal(frames, same.frames[0])


def test_both_ways_are_a_question_about_edits(tmp_path, capsys):
    assert evaluate.main(["--zero-shot", "--output", str(tmp_path / "x.json")]) == 2
    assert "--zero-shot is about edits; give --editing too" in capsys.readouterr().err


def test_a_gap_holds_its_nearest_frame(pipe):
    """What latents of an end are encoded with."""
    scene = compose(
        {"inbetween": Inbetween(4)}, [TWO[:4], TWO[4:]], output_spec(pipe.generation())
    )[1]
    found = given_latents(scene, pipe.codec, pipe.device)
    clip = np.concatenate([TWO[:4], TWO[3:4], TWO[4:]])
    expected = pipe.codec.encode(to_video(torch.from_numpy(clip[None])))
    assert found is not None and found.given.tolist() == [True, False, True] and not found.complete
    torch.testing.assert_close(found.latents, expected)
