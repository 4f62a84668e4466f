"""Edits of clips longer and larger than the model's: whole, exact, in windows; and never by accident."""

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from editing.test_command import frames as frames_of
from editing.test_command import main
from editing.test_edit import INPAINT, MASK, PLACE, PROMPT, H, W, film, grey
from puppets import small

from vidcm import VideoPipeline
from vidcm.diffusion.base import DenoiserBase
from vidcm.editing import edit, inputs, observations
from vidcm.editing.operators import Pixels
from vidcm.errors import UsageError
from vidcm.generation import Generation
from vidcm.lpc.dataset import LPC
from vidcm.media import load
from vidcm.media.write import write_clip, write_png
from vidcm.registry import TABLE, lookup

LONG = 14  # frames; the next that windows fill is 17
WINDOWS = 2  # of three latent frames each, the first of them the clip's first


@pytest.fixture(scope="module")
def pipe(tmp_path_factory) -> VideoPipeline:
    """A model of 9 frames, three latent ones."""
    return tiny.load(tmp_path_factory.mktemp("long"), frames=9)


def all_of(frames: np.ndarray) -> np.ndarray:
    return frames


def sums(frames: np.ndarray) -> np.ndarray:
    t, h, w = frames.shape[:3]
    return frames.reshape(t, h // 4, 4, w // 4, 4, 3).astype(int).sum((2, 4))


KEPT = {  # task: what it is told, its clip, what must be alike in the result and in the clip
    "inpaint": (INPAINT, film(LONG), lambda x: x[:, ~MASK], lambda x: x[:, ~MASK]),
    "outpaint": (PLACE, film(LONG, 8, 16), lambda x: x[:, 4:12, 3:19], all_of),
    "colorize": ("colorize", film(LONG), grey, grey),
    "upscale": ("upscale", film(LONG, 4, 6), sums, lambda x: 16 * x.astype(int)),
    "interpolate_frames": ("interpolate_frames", film(7), lambda x: x[::2], all_of),
    "variation": ("variation", film(LONG), len, len),
    "denoise": ({"name": "denoise", "noise": 20}, film(LONG), len, len),
}


def test_these_are_the_tasks_along_a_whole_clip():
    assert {name for name in TABLE["task"] if lookup("task", name).follows_input} == set(KEPT)


# --- long -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", KEPT)
def test_a_long_clip_comes_back_whole_and_exact(pipe, task):
    asked, clip, made_part, given_part = KEPT[task]
    made = pipe.edit(asked, [clip], PROMPT, num_inference_steps=3)
    assert made.frames.shape == (1, 13 if task == "interpolate_frames" else LONG, H, W, 3)
    np.testing.assert_array_equal(made_part(made.frames[0]), given_part(clip))
    assert made.evaluations == 3 * WINDOWS


def test_the_network_sees_windows_alone_and_time_runs_through_them(pipe, monkeypatch):
    student, seen = pipe.model("student"), []
    predict = type(student).predict

    def watched(self, x_t, *rest):
        seen.append(tuple(x_t.shape))
        return predict(self, x_t, *rest)

    monkeypatch.setattr(type(student), "predict", watched)
    pipe.edit(
        "colorize", [film(25, 2 * H)], [PROMPT, "an orc"], num_inference_steps=1, height=2 * H
    )
    assert {shape[1:] for shape in seen} == {(5, 3, H // 8, W // 8)}
    assert sum(rows for rows, *_ in seen) == 2 * 3 * 3  # clips, windows in time and in space


def test_a_long_edit_begins_as_the_edit_of_its_beginning(pipe):
    """What the first window shows depends on no later one, nor does what a causal codec decodes."""
    clip = film(25)
    for asked in (INPAINT, "colorize", {"name": "variation", "strength": 0.5}):
        long, short = (pipe.edit(asked, [c], PROMPT, seed=5).frames[0] for c in (clip, clip[:9]))
        assert np.abs(long[:9].astype(int) - short).max() <= 1


def test_the_teacher_walks_in_windows_too(pipe):
    clip = film(LONG)
    made = pipe.edit(INPAINT, [clip], PROMPT, use_teacher=True, num_inference_steps=3)
    np.testing.assert_array_equal(made.frames[0][:, ~MASK], clip[:, ~MASK])
    assert made.evaluations == 2 * 3 * WINDOWS


def test_a_mask_that_moves_along_a_long_clip(pipe):
    clip, mask = film(LONG), np.zeros((LONG, H, W), bool)
    for i in range(LONG):
        mask[i, 2:8, i : i + 6] = True
    made = pipe.edit({"name": "inpaint", "mask": mask}, [clip]).frames[0]
    np.testing.assert_array_equal(made[~mask], clip[~mask])
    assert (made[mask] != clip[mask]).mean() > 0.9


def test_what_is_carried_takes_memory_as_the_clip_does():
    """A mask of which every pixel has a history of its own."""
    seen = torch.rand(1000, 6, 4) > 0.5
    known = Pixels(torch.zeros(1000, 6, 4, 3, dtype=torch.uint8), seen, carry=0.9)
    held = sum(x.numel() for part in known.carried for x in part)
    assert held == 4 * seen.numel()


def test_tasks_in_time_make_as_many_frames_as_they_are_asked_for(pipe):
    clip = film(7)
    made = pipe.edit("extend", [clip], PROMPT, num_frames=17)
    np.testing.assert_array_equal(made.frames[0][:7], clip)
    assert made.frames.shape[1] == 17 and made.evaluations == 2 * WINDOWS
    made = pipe.edit("animate", [clip[:1]], PROMPT, num_frames=17).frames[0]
    np.testing.assert_array_equal(made[0], clip[0])
    assert len(made) == 17
    made = pipe.edit(["colorize", "extend"], [clip], PROMPT, num_frames=17).frames[0]
    np.testing.assert_array_equal(grey(made[:7]), grey(clip))
    assert len(made) == 17


def test_windows_fill_in_no_worse_than_pieces_edited_alone(lpc_art):
    """A person whose middle is covered, twice as long as the bundled model's clips."""
    data = small(LPC(lpc_art))
    rng = np.random.default_rng(4)
    combination = data.sample(rng)
    clip = data.render([combination])[0].numpy()[[0, *(1 + i % 7 for i in range(16))]]
    mask = np.zeros((64, 64), bool)
    mask[16:48, 16:48] = True
    bundled, asked = (
        VideoPipeline.from_pretrained("lpc-64", device="cpu"),
        {"name": "inpaint", "mask": mask},
    )
    caption = data.caption(combination, rng, full=True)
    long = bundled.edit(asked, [clip], caption, num_inference_steps=1).frames[0]
    pieces = [
        bundled.edit(asked, [part], caption, num_inference_steps=1).frames[0]
        for part in (clip[:9], clip[9:])
    ]
    off = [np.square(made.astype(float) - clip).mean() for made in (long, np.concatenate(pieces))]
    assert off[0] < 1.1 * off[1]


# --- large ----------------------------------------------------------------------------------------


def test_other_sizes_than_the_model_s(pipe):
    clip = film(9)
    place = {"name": "outpaint", "place": (8, 0, W, H)}
    made = pipe.edit(place, [clip], PROMPT, width=2 * W).frames[0]
    assert made.shape == (9, H, 2 * W, 3)
    np.testing.assert_array_equal(made[:, :, 8 : 8 + W], clip)
    made = pipe.edit({"name": "upscale", "factor": 4}, [clip[:, :8]], height=32, width=4 * W)
    assert made.frames.shape == (1, 9, 32, 4 * W, 3)
    np.testing.assert_array_equal(sums(made.frames[0]), 16 * clip[:, :8].astype(int))
    made = pipe.edit("image", [], PROMPT, height=8, width=40).frames
    assert made.shape == (1, 1, 8, 40, 3)


# --- what must not change -------------------------------------------------------------------------


class Bare(DenoiserBase):
    """A denoiser without windows, and noise that does not repeat: what edits were made with."""

    def __init__(self, denoiser):
        self.denoiser, self.path = denoiser, denoiser.path

    def predict(self, x_t, t, cond, s=None):
        return self.denoiser.predict(x_t, t, cond, s)

    def repeated_noise(self, rng):
        return rng

    def padded_frames(self, frames: int) -> int:
        return frames

    def windows(self, *shape: int) -> list:
        return [None]


@pytest.mark.parametrize("teacher", [False, True], ids=["student", "teacher"])
@pytest.mark.parametrize("task", [*KEPT, "extend", "loop", "animate"])
def test_clips_that_the_model_makes_in_one_go_are_what_they_were(pipe, monkeypatch, task, teacher):
    asked, clip = KEPT[task][:2] if task in KEPT else (task, film(6))
    clip = clip[: {"interpolate_frames": 5, "animate": 1, "loop": 6}.get(task, 9)]
    made = pipe.edit(asked, [clip], PROMPT, seed=3, num_inference_steps=2, use_teacher=teacher)
    monkeypatch.setattr(Generation, "denoiser", property(lambda self: Bare(self.model)))
    for module in (edit, observations):
        monkeypatch.setattr(module, "encode_chunked", lambda codec, x: codec.encode(x))
        monkeypatch.setattr(module, "decoded", lambda codec, x: codec.decode(x))
    before = pipe.edit(asked, [clip], PROMPT, seed=3, num_inference_steps=2, use_teacher=teacher)
    np.testing.assert_array_equal(made.frames, before.frames)
    assert made.evaluations == before.evaluations


# --- refusals -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "task, clip, options, message",
    [
        ("colorize", film(10), {"num_frames": 9}, "colorize of 10 frames makes 10 and frames is 9; ask"),
        ("interpolate_frames", film(6), {"num_frames": 9}, "of 6 frames makes 11 and frames is 9"),
        ("extend", film(9), {"num_frames": 13}, "extend cannot make 13 frames; use 9 or 17"),
        ("extend", film(9), {"num_frames": 6}, "extend cannot make 6 frames; use 5 or 9"),
        ("image", None, {"num_frames": 9}, "image always makes 1 frames; leave frames out"),
        ("interpolate", None, {"num_frames": 17}, "leave frames, height and width out"),
        ("colorize", film(9), {"height": 20}, "height 20 is not a multiple of 8; use 16 or 24"),
        ("colorize", film(9), {"width": 0}, "width is 0; use 1 to 65536"),
        ("colorize", film(9), {"width": 32}, "a clip is 24x16; colorize takes 32x16"),
        ({"name": "upscale", "factor": 3}, film(9), {"width": 32}, "does not divide the picture of 32x16"),
        ({"name": "inpaint", "mask": MASK[None].repeat(9, 0)}, film(14), {}, "9 frames and the clip 24x16, 14 frames"),
        ("colorize", film(101), {}, "101 frames of 24x16 are more than memory should hold; take at most 50"),
        ("image", None, {"height": 8000}, "1 frames of 24x8000 are more .*; use a smaller size"),
    ],
    ids=lambda value: str(value)[:30],
)  # fmt: skip
def test_lengths_and_sizes_that_do_not_fit(pipe, monkeypatch, task, clip, options, message):
    monkeypatch.setattr(edit, "MAX_PIXELS", 50 * H * W)
    with pytest.raises(UsageError, match=message):
        pipe.edit(task, [] if clip is None else [clip], PROMPT, **options)


def test_what_a_model_makes_by_itself_is_never_too_much(pipe, monkeypatch):
    monkeypatch.setattr(edit, "MAX_PIXELS", 1)
    assert pipe.edit("colorize", [film(9)], num_inference_steps=1).frames.shape[1] == 9


# --- the command ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("long_command")
    tiny.pipeline(folder)
    write_clip(film(13), folder / "clip/")
    write_clip(film(4), folder / "slow/")
    write_clip(film(3, 12, 40), folder / "wide.mp4", fps=2)
    mask = np.zeros((H, W, 3), np.uint8)
    mask[3:9, 5:19] = 255
    write_clip(np.stack([np.roll(mask, i % 5, 1) for i in range(13)]), folder / "mask/")
    write_png(film(1, 12, 40)[0], folder / "low.png")
    return folder


def call(capsys, world, task: str, source: str, *words: object) -> tuple[int, str]:
    common = ["--checkpoint", world / "pipeline", "--scale", 1, "--steps", 1]
    code, _, error = main(capsys, task, "--input", world / source, *common, *words)
    return code, error


def test_the_command_gives_the_whole_clip_back(world, tmp_path, capsys):
    words = ["--mask", world / "mask", "--output", f"{tmp_path}/out/"]
    code, error = call(capsys, world, "inpaint", "clip", *words)
    assert code == 0 and error == "filled x 5 to 23, y 3 to 9 of the model's 24x16 pixels\n"
    made, clip = frames_of(tmp_path / "out"), film(13)
    kept = frames_of(world / "mask")[..., 0] == 0
    np.testing.assert_array_equal(made[kept], clip[kept])


def test_frames_says_how_much_of_a_clip(world, tmp_path, capsys):
    words = ["--frames", 6, "--mask", world / "mask", "--output", f"{tmp_path}/six/"]
    code, error = call(capsys, world, "inpaint", "clip", *words)
    assert code == 0 and "clip: cut to 6 of 13 frames\n" in error
    assert len(frames_of(tmp_path / "six")) == 6
    words = ["--frames", 6, "--output", f"{tmp_path}/slow/"]
    code, error = call(capsys, world, "interpolate_frames", "slow", *words)
    assert code == 0 and error.endswith("slow: cut to 3 of 4 frames\n")
    np.testing.assert_array_equal(frames_of(tmp_path / "slow")[::2], film(4)[:3])


def limit_memory(monkeypatch, pixels: int) -> None:
    for name in ("load_clip", "load_every_frame", "frames_in_memory"):
        monkeypatch.setattr(load, name, partial(getattr(load, name), max_pixels=pixels))


def test_a_film_is_not_read_to_its_end_by_accident(world, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(inputs, "EDITED_SECONDS", 0.75)
    code, error = call(capsys, world, "colorize", "clip", "--output", f"{tmp_path}/out/")
    assert code == 0 and error.endswith("clip: cut to 6 of 13 frames (--frames takes more)\n")
    np.testing.assert_array_equal(grey(frames_of(tmp_path / "out")), grey(film(13)[:6]))
    monkeypatch.setattr(inputs, "EDITED_SECONDS", 1e9)
    limit_memory(monkeypatch, 7 * 12 * 40)
    code, error = call(capsys, world, "colorize", "wide.mp4", "--output", tmp_path / "x.gif")
    assert code == 0 and "cut to 7 of 12 frames (--frames takes more)\n" in error


def test_sizes_are_height_by_width_as_of_generate(world, tmp_path, capsys):
    words = ["--size", f"{H}x{2 * W}", "--place", f"8,0,{W},{H}", "--output", f"{tmp_path}/out/"]
    code, error = call(capsys, world, "outpaint", "clip", *words)
    assert code == 0, error
    np.testing.assert_array_equal(frames_of(tmp_path / "out")[:, :, 8 : 8 + W], film(13))


@pytest.mark.parametrize(
    "task, source, words, message",
    [
        ("colorize", "clip", ["--size", "20x24"], "height 20 is not a multiple of 8; use 16 or 24"),
        ("colorize", "clip", ["--size", "16"], "expected HEIGHTxWIDTH"),
        ("colorize", "clip", ["--frames", "0"], "--frames"),
        ("colorize", "clip", ["--frames", "2"], "has 2 frames, fewer than the 4"),
        ("extend", "clip", ["--frames", "6"], "extend cannot make 6 frames; use 5 or 9"),
        ("colorize", "wide.mp4", ["--frames", "9"], "9 frames of 40x12 are more than"),
        ("inpaint", "clip", ["--mask", "low.png"], "low.png is 40x12 and the clip 24x16"),
    ],
)  # fmt: skip
def test_one_line_refusals(world, tmp_path, capsys, monkeypatch, task, source, words, message):
    if source == "wide.mp4":
        limit_memory(monkeypatch, 7 * 12 * 40)
    monkeypatch.chdir(world)
    code, error = call(capsys, world, task, source, *words, "--output", tmp_path / "x.png")
    assert code == 2 and message in error and error.count("\n") == 1, error
    assert not list(tmp_path.iterdir())
