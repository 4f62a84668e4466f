"""`python tools/edit.py` as users run it: real files in, exact pixels out, one-line refusals."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tiny
from PIL import Image

import vidcm
from vidcm.cli import edit
from vidcm.errors import UsageError
from vidcm.media.fit import fit, fit_mask
from vidcm.media.load import load_clip
from vidcm.media.masks import load_mask
from vidcm.media.pictures import read_picture
from vidcm.media.write import write_clip, write_png
from vidcm.registry import TABLE

REPO = Path(vidcm.__file__).parents[1]
H, W, T = 16, 24, 5


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    """A tiny model and inputs beside it."""
    folder = tmp_path_factory.mktemp("edit")
    tiny.pipeline(folder)
    rng = np.random.default_rng(0)
    clip = rng.integers(0, 256, (T, H, W, 3), np.uint8)
    clip[:, 2:8, 4:12] = (255, 0, 255)
    write_clip(clip, folder / "clip/")
    write_clip(clip[:3], folder / "short/")
    write_clip(clip[:1], folder / "picture.png")
    write_clip(clip[..., :1].repeat(3, -1), folder / "grey/")
    wide = np.full((12, 30, 40, 3), 90, np.uint8)
    wide[:, 8:20, 10:30] = (200, 40, 60)
    write_clip(wide, folder / "wide.mp4", fps=16)
    mask = np.zeros((H, W, 3), np.uint8)
    mask[3:9, 5:19] = 255
    write_png(mask, folder / "mask.png")
    write_png(mask[1:], folder / "low.png")
    write_png(mask * 0, folder / "empty.png")
    write_png(mask * 0 + 255, folder / "full.png")
    write_clip(np.stack([mask] * 3), folder / "three/")
    write_clip(np.stack([np.roll(mask, i, 1) for i in range(T)]), folder / "moving/")
    (folder / "old.png").write_text("mine")
    return folder


def frames(folder: Path) -> np.ndarray:
    return np.stack([read_picture(p) for p in sorted(folder.glob("*.png"))])


def main(capsys, *words: object) -> tuple[int, str, str]:
    """The command in this process: exit code, stdout, stderr."""
    try:
        code = edit.main([*map(str, words)])
    except SystemExit as left:
        code = int(left.code or 0)
    return code, *capsys.readouterr()


def test_one_command_keeps_what_no_mask_covers(world, tmp_path):
    words = ["inpaint", "--input", world / "clip", "--mask", world / "mask.png"]
    words += ["--prompt", "an orc", "--checkpoint", world / "pipeline", "--scale", 1]
    words += ["--output", f"{tmp_path}/out/", "--preview", tmp_path / "sheet.png", "--json"]
    call = [sys.executable, str(REPO / "tools" / "edit.py"), *map(str, words)]
    done = subprocess.run(call, capture_output=True, text=True, cwd=tmp_path, timeout=300)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["task"] == ["inpaint"] and told["frames"] == T and told["evaluations"] == 2
    given, made = frames(world / "clip"), frames(tmp_path / "out")
    mask = read_picture(world / "mask.png")[..., 0] > 0
    np.testing.assert_array_equal(made[:, ~mask], given[:, ~mask])
    assert (made[:, mask] != given[:, mask]).mean() > 0.5
    assert sorted(os.listdir(tmp_path)) == ["out", "sheet.png"]
    assert read_picture(tmp_path / "sheet.png").shape[0] > 2 * H


@pytest.mark.parametrize(
    "mask, covered",
    [
        ("5,3,14,6", lambda m: m[:, 3:9, 5:19].all() and m.sum() == T * 6 * 14),
        ("5,3,14,6,0.2,0.3", lambda m: m[2].sum() == 6 * 14 == m.sum()),
        ("#ff00ff", lambda m: m[:, 2:8, 4:12].all() and m.sum() < T * 60),
        ("moving", lambda m: (m[2] == np.roll(m[0], 2, 1)).all() and m.any((1, 2)).all()),
    ],
)
def test_masks_may_be_boxes_colours_and_clips(world, monkeypatch, mask, covered):
    monkeypatch.chdir(world)
    film = load_clip(world / "clip", 8, None)
    found = load_mask(mask, film, 8)
    assert found.shape == (T, H, W) and covered(found)


def test_whatever_a_small_mask_touches_is_masked():
    mask = np.zeros((1, 256, 256), bool)
    mask[0, 129, 129] = True
    for side in (64, 4, 63, 20):  # reductions by a whole number, and not; one pixel of 4096 counts
        small = fit_mask(mask, (side, side))
        assert small[0, 129 * side // 256, 129 * side // 256] and small.sum() <= 4
        assert small.sum() == 1 or 256 % side


@pytest.mark.parametrize("wide, size", [(24, (16, 24)), (35, (16, 24)), (24, (11, 24))])
def test_enlarged_pixels_come_back_exactly(wide, size):
    rng = np.random.default_rng(0)
    clip = rng.integers(0, 256, (3, 16, wide, 3), np.uint8)
    mask = rng.random((3, 16, wide)) < 0.5
    for times in (2, 3, 4, 7):
        large = clip.repeat(times, 1).repeat(times, 2)
        np.testing.assert_array_equal(fit(large, size), fit(clip, size))
        large = mask.repeat(times, 1).repeat(times, 2)
        np.testing.assert_array_equal(fit_mask(large, size), fit_mask(mask, size))


def test_a_reduction_by_a_whole_number_is_the_mean_of_blocks():
    clip = np.random.default_rng(0).integers(0, 256, (2, 48, 80, 3), np.uint8)
    means = clip[:, :, 3:75].reshape(2, 16, 3, 24, 3, 3).mean((2, 4))
    assert np.abs(fit(clip, (16, 24)) - means).max() <= 0.5


def test_an_edit_of_an_enlarged_mp4_keeps_its_pixels(world, tmp_path, capsys):
    blocks = np.random.default_rng(0).integers(30, 220, (T, H // 4, W // 4, 3), np.uint8)
    clip = blocks.repeat(4, 1).repeat(4, 2)
    write_clip(clip, tmp_path / "large.mp4", scale=4)
    film = load_clip(tmp_path / "large.mp4", 8, None)
    found = fit(film.frames, (H, W)).astype(int)
    assert np.abs(found - clip).mean() < 4
    box = fit_mask(load_mask("32,16,40,24", film, 8), (H, W))
    assert box[:, 4:10, 8:18].all() and box.sum() == T * 6 * 10


def test_any_size_and_rate_is_resampled_and_said_so(world, tmp_path, capsys):
    words = ["colorize", "--input", world / "wide.mp4", "--checkpoint"]
    code, out, error = main(
        capsys, *words, world / "pipeline", "--output", tmp_path / "x.gif", "--scale", 1
    )
    assert code == 0, error
    said = "wide.mp4: 40x30 at 16 fps, resampled to 24x16 at 8 fps"
    assert error.count("\n") == 1 and error.strip().endswith(said)
    few = ["--frames", 5, "--overwrite"]
    code, out, error = main(
        capsys, *words, world / "pipeline", "--output", tmp_path / "x.gif", "--scale", 1, *few
    )
    said += ", cut to 5 of 6 frames"
    assert error.count("\n") == 1 and error.strip().endswith(said)
    assert out.splitlines()[0] == str(tmp_path / "x.gif")


def test_nothing_is_said_of_a_clip_that_fits(world, tmp_path, capsys):
    words = ["colorize", "--input", world / "clip", "--checkpoint", world / "pipeline"]
    code, _, error = main(capsys, *words, "--output", tmp_path / "x.png", "--scale", 1)
    assert code == 0 and error == ""


def test_results_of_two_and_of_none(world, tmp_path, capsys):
    common = ["--checkpoint", world / "pipeline", "--scale", 1, "--json"]
    picture = world / "picture.png"
    two = ["inbetween", "--input", picture, "--input", picture]
    code, out, error = main(capsys, *two, *common, "--output", f"{tmp_path}/two/")
    assert code == 0, error
    made = frames(tmp_path / "two")
    assert len(made) == T and (made[[0, -1]] == read_picture(picture)).all()
    way = ["interpolate", "--count", 3, "--seed", 1, "--seed", 2]
    code, out, error = main(capsys, *way, *common, "--output", tmp_path / "way.png")
    assert code == 0, error
    assert [Path(p).name for p in json.loads(out)["paths"]] == [f"way-{i}.png" for i in (1, 2, 3)]


def test_a_photograph_is_brought_to_life(world, tmp_path, capsys):
    Image.fromarray(np.full((H, W, 3), 90, np.uint8)).save(tmp_path / "photo.JPG", quality=95)
    words = ["animate", "--input", tmp_path / "photo.JPG", "--scale", 1]
    for output in (f"{tmp_path}/out/", tmp_path / "out.mp4"):
        code, _, error = main(
            capsys, *words, "--checkpoint", world / "pipeline", "--output", output
        )
        assert code == 0 and error == "", error
    made = frames(tmp_path / "out")
    assert len(made) == T and (made[0] == read_picture(tmp_path / "photo.JPG")).all()


def test_help_teaches_each_task_by_an_example(capsys):
    code, out, _ = main(capsys, "--help")
    assert code == 0
    for name in TABLE["task"]:
        assert f"\n  {name}: " in out and f"vidcm edit {name} --" in out
    code, out, _ = main(capsys, "extend", "--help")
    assert code == 0 and "vidcm edit extend --input" in out and "edit loop" not in out


def test_without_arguments_it_says_how_it_is_used(capsys):
    code, out, error = main(capsys)
    assert code == 2 and out == "" and error.startswith("usage: vidcm edit [-h]")
    assert "the following arguments are required: TASK" in error


def test_options_of_several_tasks_go_together(capsys):
    with pytest.raises(SystemExit) as left:
        edit.main(["colorize,extend", "--given", "5", "--factor", "2"])
    error = capsys.readouterr().err
    assert left.value.code == 2 and "--factor is for upscale, interpolate_frames, not for" in error


@pytest.mark.parametrize(
    "words",
    [
        ["image", "--output", "old.png"],
        ["image", "--prompt", "..."],
        ["extend", "--input", "clip", "--input", "clip"],
        ["inpaint", "--input", "clip"],
        ["colorize", "--input", "old.png"],
        ["colorize", "--input", "wide.mp4", "--start", "9"],
        ["colorize", "--input", "clip", "--start", "1e300"],
        ["colorize", "--input", "pipeline"],
        ["image", "--seed", "1", "--seed", "2"],
    ],
)
def test_what_needs_no_model_is_refused_before_torch(world, words):
    code = (
        f"import sys; from vidcm.cli.edit import main; sys.argv[1:] = {words!r}\n"
        "try: code = main()\n"
        "except SystemExit as left: code = left.code\n"
        "print(code, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=world)
    assert done.stdout in ("2 False\n", "1 False\n") and done.stderr.startswith("error: ")


def test_the_filled_box_is_named_in_the_model_s_pixels(world, tmp_path, capsys):
    """A mask is drawn in the input's pixels, and generate enlarges what it writes."""
    large = np.zeros((T, 4 * H, 4 * W, 3), np.uint8)
    write_clip(large, tmp_path / "large/")
    words = ["inpaint", "--input", tmp_path / "large", "--mask", "20,12,56,24", "--scale", 1]
    common = ["--checkpoint", world / "pipeline", "--output", tmp_path / "x.png"]
    code, _, error = main(capsys, *words, *common)
    assert code == 0 and f"filled x 5 to 19, y 3 to 9 of the model's {W}x{H} pixels" in error
    words = ["outpaint", "--input", world / "clip", "--place", "8,4,12,8", "--scale", 1]
    code, _, error = main(capsys, *words, *common, "--overwrite")
    assert code == 0 and f"at x 8 to 20, y 4 to 12 of the model's {W}x{H} pixels" in error


def test_results_are_numbered_as_clips_are(world, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = ["image", "--checkpoint", world / "pipeline", "--prompt", "an orc", "--scale", 1]
    for name in ("edited.mp4", "edited-2.mp4"):
        code, out, error = main(capsys, *words)
        assert code == 0 and out.splitlines()[0].endswith(f"/{name}"), error


def test_help_imports_nothing_heavy():
    code = (
        "import sys; from vidcm.cli.edit import parser; parser().format_help();"
        "print([m for m in ('torch', 'av', 'tqdm') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=REPO)
    assert done.stdout.strip() == "[]", done.stderr


def test_help_without_docstrings():
    command = [sys.executable, "-OO", str(REPO / "tools" / "edit.py"), "--help"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0 and "--mask" in done.stdout, done.stderr


INPAINT = ["inpaint", "--input", "clip"]


@pytest.mark.parametrize(
    "words, message",
    [
        (["inpiant", "--input", "clip"], "unknown task 'inpiant'; did you mean 'inpaint'"),
        (["inpaint", "--input", "clap"], "no such file 'clap'; did you mean 'clip'"),
        (INPAINT, "the following arguments are required: --mask (see vidcm edit inpaint --help)"),
        ([*INPAINT, "--mask", "mask.png", "--strength", "0.5"], "--strength is for variation, interpolate, not for inpaint"),
        ([*INPAINT, "--mask", "low.png"], "low.png is 24x15 and the clip 24x16"),
        ([*INPAINT, "--mask", "three"], "three has 3 frames and the clip 5"),
        ([*INPAINT, "--mask", "empty.png"], "covers none of 384 pixels"),
        ([*INPAINT, "--mask", "full.png"], "covers all of 384 pixels"),
        ([*INPAINT, "--mask", "20,8,24,16"], "does not lie in the clip's 24x16 pixels"),
        ([*INPAINT, "--mask", "1,2,3"], "is not a box; give x,y,width,height"),
        ([*INPAINT, "--mask", "1,2,3,4,7,9"], "is for 7 to 9 s and the clip lasts from 0 to 0.5 s"),
        ([*INPAINT, "--mask", "musk.png"], "is no file, no x,y,width,height and no colour"),
        (["inpaint", "--input", "grey", "--mask", "#ff00ff"], "grey is grey"),
        (["inpaint", "--input", "wide.mp4", "--mask", "#00ff80"], "no pixel of"),
        (["colorize", "--input", "short"], "has 3 frames, fewer than the 4"),
        (["variation", "--input", "clip", "--strength", "1.5"], "--strength: got '1.5', expected a number from 0 to 1"),
        (["extend,animate", "--input", "clip"], "both decide where"),
        (["image", "--input", "clip"], "image takes 0 input clips, not 1"),
        (["loop,loop"], "loop stands twice"),
        (["--input", "clip"], "the first word is the task, as in: vidcm edit extend"),
        (["image", "--output", "x.avi"], ".avi"),
        (["image", "--output", "old.png"], "old.png exists"),
        (["image", "--preview", "x.gif"], "--preview writes .png files"),
        (["image", "--output", "x.png", "--preview", "./x.png"], "are both ./x.png"),
        (["image", "--prompt", "a", "--prompt", "b"], "only interpolate takes two"),
        (["image", "--seed", "1", "--seed", "2"], "got 2 seeds; only interpolate takes two"),
        (["image", "--size", "512x512", "--scale", "64", "--output", "x.mp4"], "lower the scale"),
        (["colorize", "--input", ""], "got an empty name"),
        (["loop", "--start", "3"], "--start is about an input"),
        ([*INPAINT, "--mask", ""], "the mask '' is no file"),
        ([*INPAINT, "--mask", "mask.png", "--output", "clip/", "--overwrite"], "is an input and an output"),
        (["animate", "--input", "picture.png", "--preview", "picture.png", "--overwrite"], "is an input and an output"),
        (["variation", "--input", "clip", "--strength", "nan"], "--strength: got 'nan'"),
        (["extend", "--input", "wide.mp4", "--given", "9"], "given is 9; use 1 to 4"),
        (["denoise", "--input", "clip", "--noise", "-3"], "--noise: got '-3', expected a number from 0"),
        (["upscale", "--input", "clip", "--factor", "5"], "factor 5 does not divide"),
        (["colorize", "--input", "clip", "--start", "9"], "has 5 frames; start before"),
        (["interpolate_frames", "--input", "picture.png"], "has 1 frames"),
        (["animate", "--input", "clip"], "this is a clip of 5 frames"),
        (["interpolate", "--prompt", "a"], "needs two of something"),
        (["outpaint", "--input", "clip", "--place", "1,2,3"], "expected x,y,width,height"),
        (["outpaint", "--input", "clip", "--place", "9,2,24,3"], "reaches beyond"),
    ],
    ids=lambda value: " ".join(value)[:40] if isinstance(value, list) else "",
)  # fmt: skip
def test_refusals_are_one_line_and_leave_nothing(world, monkeypatch, capsys, words, message):
    monkeypatch.chdir(world)
    before = sorted(str(p) for p in world.rglob("*"))
    output = [] if "--output" in words else ["--output", "new.png"]
    code, out, error = main(capsys, *words, "--checkpoint", "pipeline", *output)
    assert code == 2 and out == "" and message in error, error
    assert error.startswith("error: ") and error.count("\n") == 1
    assert sorted(str(p) for p in world.rglob("*")) == before
    assert (world / "old.png").read_text() == "mine"


def test_a_start_beyond_the_end(world):
    with pytest.raises(UsageError, match="has 5 frames; start before 0.62 s"):
        load_clip(world / "clip", 8, None, start=1.0)
    with pytest.raises(UsageError, match="ends at 0.75 s"):
        load_clip(world / "wide.mp4", 8, None, start=1.0)
