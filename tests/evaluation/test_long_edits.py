"""Long edits: cut and joined rightly, measured rightly on an oracle, written by the command."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tiny
import torch

from vidcm import VideoPipeline
from vidcm.cli import evaluate as command
from vidcm.evaluation.edit_cases import CASES
from vidcm.evaluation.eval_set import EvalSet
from vidcm.evaluation.long_edits import (
    LONG_EDIT_ROWS,
    edit_in_pieces,
    repeat_frames,
    steps_at_joins,
)
from vidcm.metrics import fidelity

COUNT = 2
PIECE, FRAMES = 5, 17  # of puppets


class Oracle:
    """Long clips as they are; of their pieces every second one is off by two grey levels."""

    def __init__(self, folder: Path, truth: EvalSet):
        self.folder, self.truth, self.device = folder, truth, torch.device("cpu")
        self.settings = tiny.settings(PIECE, phases=3)
        (folder / "pipeline.json").write_text("{}")
        self.at, self.calls, self.told = 0, [], set()

    def edit(self, spec, clips, prompts, *, num_inference_steps, seed):
        steps = num_inference_steps
        (clip,), slow = clips, spec["name"] == "interpolate_frames"
        frames = 2 * len(clip) - 1 if slow else len(clip)
        if whole := frames == FRAMES:
            self.at = 0
        place = seed - self.truth.seed
        true = repeat_frames(self.truth.frames[place].numpy(), FRAMES, False)
        made = clip if spec["name"] == "inpaint" else true[self.at : self.at + frames]
        if not whole:
            made = made ^ np.uint8(2 * ((self.at + slow) // (PIECE - slow) % 2))
            self.at += frames - slow
        self.calls.append((spec["name"], frames, steps))
        self.told.add((spec["name"], prompts))
        return made[None]


@pytest.fixture
def pipe(puppets, tmp_path) -> Oracle:
    folder = tmp_path / "pipeline"
    folder.mkdir()
    return Oracle(folder, EvalSet(puppets, COUNT, 3))


def test_both_ways_get_the_numbers_they_deserve(pipe, puppets, tmp_path, capsys, monkeypatch):
    loaded = SimpleNamespace(from_pretrained=lambda name, **options: pipe)
    monkeypatch.setattr("vidcm.pipeline.VideoPipeline", loaded)
    monkeypatch.setattr("vidcm.lpc.dataset.LPC", lambda art, num_frames: puppets)
    path, page = tmp_path / "l.json", tmp_path / "page.md"
    page.write_text("<!-- long-edits:begin -->\n<!-- long-edits:end -->\n")
    argv = ["--long-edits", str(path), "--art", "x", "--seed", "3", "--into", str(page)]
    argv += ["--count", str(COUNT)]
    assert command.main(argv) == 0 and capsys.readouterr().out == ""
    rows = json.loads(path.read_text())["rows"]
    assert list(rows) == [row.name for row in LONG_EDIT_ROWS]
    for row in LONG_EDIT_ROWS:
        windows, pieces = rows[row.name]["windows"], rows[row.name]["pieces"]
        assert windows == {"psnr": fidelity.MAX_PSNR, "step": 1}
        # 5, 5, 5 and 2 frames; 5, 4, 4 and 4 that hold two unknown ones each
        share = 1 / 2 if row.task == "interpolate_frames" else 7 / 17
        assert pieces["psnr"] == pytest.approx(10 * np.log10(255**2 / (4 * share)))
        assert pieces["step"] > 1
    assert {steps for *_, steps in pipe.calls} == {3}
    assert [n for task, n, _ in pipe.calls if task == "denoise"] == [17, 5, 5, 5, 2] * COUNT
    slow = [n for task, n, _ in pipe.calls if task == "interpolate_frames"]
    assert slow == [17, 5, 5, 5, 5] * COUNT
    said = set(pipe.truth.captions)
    assert pipe.told == {
        (r.task, s) for r in LONG_EDIT_ROWS for s in (said if r.with_prompt else {""})
    }
    text = page.read_text()
    assert f"| inpaint | {fidelity.MAX_PSNR:.1f} |" in text and "| colorize, no prompt |" in text
    assert (
        "2 held-out combinations, seed 3" in text
        and "clips of 17 frames" in text
        and "in a shorter cycle every 3" in text
    )
    results = json.loads(path.read_text())
    lost = results["rows"].pop("upscale")
    path.write_text(json.dumps(results))
    pipe.calls.clear()
    assert command.main(argv) == 0  # what is missing is measured again, nothing else
    assert {task for task, *_ in pipe.calls} == {"upscale"}
    assert json.loads(path.read_text())["rows"]["upscale"] == lost
    assert command.main([*argv, "--tasks", "inpaint"]) == 2
    assert "--tasks is about edits; give --editing too" in capsys.readouterr().err
    assert command.main(["--long-edits", str(tmp_path), "--art", "x"]) == 2
    assert "is a folder" in capsys.readouterr().err


def test_frames_repeat_frames():
    clip = np.arange(5)[:, None, None, None]
    assert repeat_frames(clip, 10, False).ravel().tolist() == [0, 1, 2, 3, 4, 1, 2, 3, 4, 1]
    assert repeat_frames(clip, 9, True).ravel().tolist() == [0, 1, 2, 3, 1, 2, 3, 1, 2]


def test_steps_are_those_where_pieces_join_and_something_is_filled_in():
    truth = np.random.default_rng(0).integers(0, 256, (13, 8, 16, 3), np.uint8)
    flat = np.zeros_like(truth)
    case = CASES["inpaint"](truth)
    bright = flat.copy()
    bright[5:10] = 7  # the second piece
    bright[:, 0] = np.arange(13)[:, None, None]  # a given row, however it moves
    hole = np.s_[2:6, 4:12]
    true = np.abs(np.diff(truth.astype(int), axis=0))[[4, 9]][(slice(None), *hole)].mean()
    assert steps_at_joins(case, bright, 5) == (7, pytest.approx(true))
    slow = flat.copy()
    slow[4], slow[5] = 8, 2  # shared by two pieces: steps of 8 and 6; none at frame 8
    case = CASES["interpolate_frames"](truth)
    true = np.abs(np.diff(truth.astype(int), axis=0))[[3, 4, 7, 8]].mean()
    assert steps_at_joins(case, slow, 5) == ((8 + 6) / 4, pytest.approx(true))


@pytest.mark.parametrize("task", sorted({row.task for row in LONG_EDIT_ROWS}))
def test_the_pipeline_edits_what_pieces_are_given(task, pipeline):
    """Every piece as if it were alone; a whole clip is one piece."""
    rng = np.random.default_rng(0)
    height, width = tiny.SIZE["height"], tiny.SIZE["width"]
    case = CASES[task](rng.integers(0, 256, (9, height, width, 3), np.uint8))
    options = {"num_inference_steps": 1, "seed": 3}
    pieces = edit_in_pieces(pipeline, case, 5, "a man walks", steps=1, seed=3)
    whole = edit_in_pieces(pipeline, case, 9, "a man walks", steps=1, seed=3)
    assert pieces.shape == whole.shape == (9, height, width, 3)
    np.testing.assert_array_equal(pieces[case.kept], case.given[case.kept])
    np.testing.assert_array_equal(
        whole, pipeline.edit(case.spec, case.clips, "a man walks", **options).frames[0]
    )
    if task == "interpolate_frames":
        last = pipeline.edit(case.spec, [case.clips[0][2:]], "a man walks", **options).frames[0]
        np.testing.assert_array_equal(pieces[4:], last)
    elif task != "inpaint":
        last = pipeline.edit(case.spec, [case.clips[0][5:]], "a man walks", **options).frames[0]
        np.testing.assert_array_equal(pieces[5:], last)


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory) -> VideoPipeline:
    return VideoPipeline.from_pretrained(
        tiny.pipeline(tmp_path_factory.mktemp("tiny")), device="cpu"
    )
