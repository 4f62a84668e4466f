"""Cases with known truth, the numbers made of them, and what is shown and said of both."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tiny
import torch

from vidcm import VideoPipeline
from vidcm.cli import evaluate as command
from vidcm.errors import UsageError, VidcmError
from vidcm.evaluation import edit_sheet as show
from vidcm.evaluation.edit_cases import NAMES, NOISE, NUM_INTERPOLATED, Case, cases_of
from vidcm.evaluation.edit_report import edit_tables
from vidcm.evaluation.edit_scores import questions_on_filled, score_edit, summarize_scores
from vidcm.evaluation.edit_sheet import write_edit_sheet, write_examples
from vidcm.evaluation.edits import evaluate_edits, run_edit
from vidcm.evaluation.eval_set import EvalJob
from vidcm.evaluation.results import read_results
from vidcm.evaluation.rows import Row
from vidcm.lpc.adherence import AttributeQuestion
from vidcm.registry import TABLE

H, W = 16, 24  # the tiny pipeline makes 9 frames of this size
AREA = H * W


@pytest.fixture
def clips() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (2, 9, H, W, 3), np.uint8)


def case_of(name: str, clips: np.ndarray) -> Case:
    return cases_of(name, clips, ["one", "two"])[1]


def question(*where: int) -> AttributeQuestion:
    """Black or white at some places."""
    shown = np.zeros((2, len(where), 3), np.uint8)
    shown[1] = 255
    return AttributeQuestion(["a", "b"], 0, np.array(where, np.int32), shown)


def world(clips: np.ndarray) -> SimpleNamespace:
    """What a measurement asks of the truth."""
    return SimpleNamespace(
        count=2,
        seed=3,
        seeds=[3, 4],
        captions=["a man walks left", "an orc walks left"],
        frames=torch.from_numpy(clips),
        questions=[{"hair": question(8 * AREA - 1)}, {}],
        lpc=SimpleNamespace(num_frames=9, attributes=["hair", "sex"]),
    )


@pytest.fixture(scope="module")
def pipe(tmp_path_factory) -> VideoPipeline:
    pipe = VideoPipeline.from_pretrained(
        tiny.pipeline(tmp_path_factory.mktemp("measured")), device="cpu"
    )
    pipe.settings.num_frames = 9
    return pipe


# --- cases and scores -----------------------------------------------------------------------------


def test_every_task_has_a_case(clips):
    assert {case_of(name, clips).spec["name"] for name in NAMES} == TABLE["task"].keys()


@pytest.mark.parametrize("name", NAMES)
def test_a_baseline_keeps_what_is_given(name, clips):
    case = case_of(name, clips)
    for method, frames in case.baselines.items():
        assert frames.dtype == np.uint8, method
        if case.truth is not None:
            assert frames.shape == case.truth.shape
        kept = case.kept[: len(frames)]
        np.testing.assert_array_equal(frames[kept], case.given[: len(frames)][kept])
        assert score_edit(case, frames).kept in (None, 0) or method == "bicubic"


@pytest.mark.parametrize("name", NAMES)
def test_the_truth_is_right_in_every_number(name, clips):
    case = case_of(name, clips)
    if case.truth is None:
        return
    np.testing.assert_array_equal(case.truth, clips[1][: len(case.truth)])
    np.testing.assert_array_equal(case.truth[case.kept], case.given[case.kept])
    found = score_edit(case, case.truth)
    assert found.psnr == 100 and found.ssim == pytest.approx(1) and found.path is None
    assert found.kept is None or found.kept <= 0.5  # of block means: rounding
    ratios = summarize_scores([found, found])
    for number in ("flicker", "motion") + ("seam",) * (not case.periodic):
        assert ratios[number] in (None, pytest.approx(1, rel=0.2 if case.periodic else 1e-9))
    for frames in case.baselines.values():
        assert score_edit(case, frames).psnr < 40


def test_what_is_lost_shows(clips):
    case = case_of("inpaint", clips)
    wrong = clips[1].copy()
    wrong[0, 0, 0] ^= 8
    assert score_edit(case, wrong).kept == 8
    grey = case_of("colorize", clips)
    assert score_edit(grey, grey.baselines["luminance only"]).kept == 0
    assert score_edit(grey, clips[1] // 2).kept > 50


def test_seams_are_where_given_and_filled_meet(clips):
    case = case_of("extend", clips)  # frames 0-4 are given
    held = case.baselines["last frame repeated"]
    assert score_edit(case, held).seam[0] == 0  # no step at all
    jump = held.copy()
    jump[5:] = 255 - jump[5:]
    later = held.copy()
    later[7:] = 255 - later[7:]
    assert score_edit(case, jump).seam[0] > 0 == score_edit(case, later).seam[0]


def test_flicker_is_not_motion():
    """A ramp moves without flicker, its zigzag of the same steps is nothing but flicker."""
    ramp = np.broadcast_to((10 * np.arange(9, dtype=np.uint8))[:, None, None, None], (9, H, W, 3))
    zigzag = np.where(np.arange(9) % 2, 10, 0).astype(np.uint8)[:, None, None, None] + 0 * ramp
    case = case_of("image", np.stack([ramp, ramp]))
    case = Case({"name": "x"}, [], case.given, np.zeros((9, H, W), bool), ramp)
    assert score_edit(case, ramp).motion == (10, 10) and score_edit(case, ramp).flicker == (0, 0)
    assert score_edit(case, zigzag).motion == (10, 10) and score_edit(case, zigzag).flicker == (
        20,
        0,
    )


def test_only_what_is_filled_in_counts_as_motion(clips):
    case, held = case_of("extend", clips), case_of("extend", clips).baselines["last frame repeated"]
    assert score_edit(case, held).motion[0] == 0 and score_edit(case, held).motion[1] > 50


def test_a_loop_s_seam_is_its_wrap(clips):
    case = case_of("loop", clips)
    slow = np.arange(6, dtype=np.uint8)[:, None, None, None] + np.zeros((6, H, W, 3), np.uint8)
    cut, back = score_edit(case, slow), score_edit(case, np.concatenate([slow, slow[4:0:-1]]))
    assert cut.seam == (5, 1) and back.seam == (1, 1)
    assert cut.psnr is None and summarize_scores([cut, back])["seam"] == 3


def test_a_way_is_as_even_as_its_steps(clips):
    case = case_of("interpolate", clips)
    assert case.prompts == ("one", "two") and len(case.given) == NUM_INTERPOLATED * 9
    even = summarize_scores([score_edit(case, case.baselines["linear blending"])])
    assert even["seam"] == pytest.approx(1, abs=0.02)
    assert even["path"] == pytest.approx(1, abs=0.02)
    leap = np.concatenate([np.tile(clips[0], (NUM_INTERPOLATED - 1, 1, 1, 1)), clips[1]])
    assert summarize_scores([score_edit(case, leap)])["seam"] == pytest.approx(NUM_INTERPOLATED - 1)
    assert score_edit(case, leap).kept == 0 and score_edit(case, leap[::-1]).kept > 200


def test_simple_ways_are_what_they_say(clips):
    true = clips[1]
    frames = case_of("interpolate_frames", clips).baselines
    middle = (true[0].astype(float) + true[2]) / 2
    assert np.abs(frames["linear blending"][1] - middle).max() <= 0.5
    assert (frames["frames repeated"][1] == true[0]).all()
    assert (case_of("extend", clips).baselines["last frame repeated"][5:] == true[4]).all()
    across = case_of("inpaint", clips).baselines["linear blending"][2, 7]
    ends = true[2, 7, [5, 18]].astype(float)
    assert np.abs(across[6] - (ends[0] + (ends[1] - ends[0]) / 13)).max() <= 0.5
    noisy = case_of("denoise", np.full_like(clips, 128))
    assert noisy.clips[0].std() == pytest.approx(NOISE, rel=0.05)
    assert noisy.baselines["median of 3x3"].std() < NOISE / 2


def test_only_what_is_filled_in_is_asked_about(clips):
    case = case_of("extend", clips)  # frames 0-4 are given
    exam = {"x": question(3, 6 * AREA + 1), "y": question(3)}
    found = questions_on_filled(exam, case)
    assert list(found) == ["x"] and found["x"].positions.tolist() == [6 * AREA + 1]
    picture = questions_on_filled(exam, case_of("image", clips))  # frame 0 alone
    assert picture["x"].positions.tolist() == [3]
    assert questions_on_filled(exam, case_of("loop", clips)) == {}


# --- a measurement --------------------------------------------------------------------------------


def test_a_measurement_goes_on_where_it_stopped(pipe, clips, tmp_path, monkeypatch):
    output, truth = tmp_path / "edits.json", world(clips)
    tasks, rows = ["extend", "loop_alone", "interpolate"], [Row("student", 1), Row("teacher", 50)]
    job = EvalJob(pipe, truth, output, "tiny")
    evaluate_edits(job, rows[:1], tasks)
    before = read_results(output, "editing")["rows"]
    assert list(before["extend"]) == ["last frame repeated", "student-1"]
    done = []

    def count(*at):
        done.append(at[2])
        return run_edit(*at)

    monkeypatch.setattr("vidcm.evaluation.edits.run_edit", count)
    found = evaluate_edits(job, rows, tasks)
    assert done == [Row("teacher", 50)] * 2 * len(tasks)
    assert json.loads(output.read_text()) == json.loads(json.dumps(found))
    for task, of in before.items():
        assert of.items() <= found["rows"][task].items()
    extended = found["rows"]["extend"]["student-1"]
    assert extended["kept"] == 0 and extended["seconds"] > 0 and extended["adherence"] in (0, 1)
    assert found["rows"]["interpolate"]["student-1"]["path"] >= 1
    assert found["rows"]["loop_alone"]["teacher-50"]["kept"] is None
    truth.seed = 5
    with pytest.raises(UsageError, match="another protocol.seed: 3, not 5"):
        evaluate_edits(job, rows, tasks)
    text = edit_tables(found)
    assert "| extend |" in text and "2 held-out combinations, seed 3" in text


def found_of(**numbers) -> dict:
    names = ("psnr", "ssim", "adherence", "kept", "seam", "flicker", "motion", "path", "seconds")
    return dict.fromkeys(names) | {"kept": 0.0, "seconds": 0.5} | numbers


def test_edit_tables_say_where_the_student_loses():
    good = found_of(psnr=20.0, ssim=0.8, adherence=0.5, seam=1.5, flicker=0.25, motion=0.75)
    simple = found_of(psnr=12.0, ssim=0.9, adherence=0.25, kept=3.5)
    worst = found_of(psnr=9.0, ssim=0.1, adherence=0.1)
    slow = good | {"psnr": 21.0, "ssim": 0.9, "seconds": 6.0}
    ways = {"student-4": good, "student-1": good | {"ssim": 0.95}, "teacher-50": slow}
    results = {
        "protocol": {"count": 2, "seed": 0},
        "model": {"name": "m"},
        "environments": [
            {"commit": None, "dirty": None, "cpu": "c", "device": "cpu", "threads": 1, "torch": "t"}
        ],
        "rows": {
            "upscale": {"nearest": worst, "bicubic": simple, **ways},
            "image": {"student-4": good},
            "loop": {"cut": found_of(seam=9.0), "student-4": found_of(seam=0.5)},
        },
    }
    text = edit_tables(json.loads(json.dumps(results)))
    lines = [
        "| task | best baseline | student 1 | student 4 | teacher 50 |",
        "| upscale | 12.0 / 0.900 / 25% (bicubic) | 20.0 / 0.950 / 50% | 20.0 / 0.800 / 50% | "
        "21.0 / 0.900 / 50% |",
        "| image | - | - | 20.0 / 0.800 / 50% | - |",
        "| loop | 9.00 / - / - (cut) | - | 0.50 / - / - | - |",
        "| upscale | 0 | 3.5 | 0.50 | 0.50 | 6.00 |",
    ]
    for line in lines:
        assert line in text.splitlines()
    assert "It loses on upscale (SSIM 0.800, bicubic 0.900)." in text
    assert "Comparisons lost, of 3: 0 in 1 step, 1 in 4 steps." in text
    assert "takes 12 times as long" in text
    assert "They do not on upscale (SSIM 0.800, not 0.900)." in text
    assert "measured with commit unknown, c, 1 thread, torch t." in text


# --- pictures -------------------------------------------------------------------------------------


def test_before_and_after_of_every_task(pipe, clips, tmp_path):
    truth = world(clips)
    write_edit_sheet(pipe, truth, tmp_path / "sheet.png")
    tasks = ["loop", "interpolate", "image"]
    found = write_examples(pipe, truth, tmp_path / "gifs", tasks=tasks)
    assert [p.name for p in found] == ["loop.gif", "interpolate.gif", "image.gif"]
    assert all(p.stat().st_size <= show.MAX_BYTES for p in found)
    assert sorted(p.name for p in (tmp_path / "gifs").iterdir()) == sorted(p.name for p in found)
    with pytest.raises(UsageError, match="loop.gif exists"):
        write_examples(pipe, truth, tmp_path / "gifs", tasks=["loop"])


def test_an_example_that_cannot_be_small(tmp_path, monkeypatch):
    noise = np.random.default_rng(0).integers(0, 256, (5, H, W, 3), np.uint8)
    monkeypatch.setattr(show, "MAX_BYTES", 1000)
    with pytest.raises(VidcmError, match="larger than 1000 bytes"):
        show._write_small(noise, Path(tmp_path / "x.gif"), 8)
    assert list(tmp_path.iterdir()) == []


# --- the command ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words, message",
    [
        (["--examples", "x/", "--output", "x.json"], "--examples is about edits; give --editing"),
        (["--tasks", "extend", "--sheet", "x.png"], "--tasks is about edits; give --editing"),
        (["--editing", "x.json", "--tasks", "extnd"], "no 'extnd'; did you mean 'extend'?"),
        (["--editing", "x.json", "--rows", "codec"], "edits have no row codec"),
        (["--editing", ".", "--count", "2"], "is a folder; give the name of a .json file"),
        (["--editing", "x.json", "--examples", "old/"], "loop.gif exists"),
        (["--editing", "x.json"], "give --art, or set VIDCM_LPC_ART"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_measurements_that_make_no_sense(monkeypatch, capsys, tmp_path, words, message):
    monkeypatch.delenv("VIDCM_LPC_ART", raising=False)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "loop.gif").touch()
    assert command.main(words) == 2
    out, error = capsys.readouterr()
    assert out == "" and message in error and error.count("\n") == 1
    assert [p.name for p in tmp_path.rglob("*")] == ["old", "loop.gif"]
