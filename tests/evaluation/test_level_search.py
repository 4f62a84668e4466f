"""The lowest noise level found by trial, written where the pipeline reads it."""

import json
from dataclasses import replace

import pytest
import tiny
import torch

from vidcm.cli.tune import main
from vidcm.errors import UsageError
from vidcm.evaluation.level_search import LevelTrial, TuningSet, save_level, search_level
from vidcm.pipeline import VideoPipeline


def test_the_level_of_highest_adherence_wins_over_all_numbers_of_steps():
    scores = {(6.0, 2): 0.9, (6.0, 4): 0.5, (15.0, 2): 0.7, (15.0, 4): 0.8}

    def measure(level: float, steps: int) -> LevelTrial:
        return LevelTrial(level, steps, scores[level, steps], 20.0)

    assert search_level(measure, [6.0, 15.0], [2, 4]) == 15.0
    assert search_level(measure, [6.0, 15.0], [2]) == 6.0


def test_ties_go_to_fidelity():
    def measure(level: float, steps: int) -> LevelTrial:
        return LevelTrial(level, steps, 0.7 + 1e-5 * level, -abs(level - 3))

    assert search_level(measure, [1.5, 3.0, 6.0], [2, 4]) == 3.0


@pytest.fixture
def folder(tmp_path):
    folder = tiny.pipeline(tmp_path)
    settings = json.loads((folder / "pipeline.json").read_text()) | {"height": 64, "width": 64}
    (folder / "pipeline.json").write_text(json.dumps(settings))
    return folder


def test_trials_repeat_and_the_pipeline_generates_the_same_clips(puppets, folder):
    pipe = VideoPipeline.from_pretrained(folder)
    tuning_set = TuningSet(pipe, puppets, 3, 5, 2)
    trial = tuning_set(9.0, 2)
    assert trial == tuning_set(9.0, 2) and 0 <= trial.adherence <= 1
    assert trial != tuning_set(0.3, 2)
    save_level(pipe, 9.0)
    again = VideoPipeline.from_pretrained(folder)
    assert again.settings.student.lowest_sigma == 9
    clips = again(tuning_set.prompts, num_inference_steps=2, seed=tuning_set.seeds)
    same = tuning_set.clips(9.0, 2)
    assert int((torch.from_numpy(clips.frames).int() - same.int()).abs().max()) <= 1


def test_refusals(puppets, folder, capsys, monkeypatch):
    monkeypatch.delenv("VIDCM_LPC_ART", raising=False)
    assert main(["--checkpoint", str(folder)]) == 2
    assert "LPC art" in capsys.readouterr().err
    pipe = VideoPipeline.from_pretrained(folder)
    for name, value in {"sampler": "flow_map", "phases": 2}.items():
        pipe.settings.student = replace(pipe.settings.student, **{name: value})
        with pytest.raises(UsageError, match="fixed by its training"):
            TuningSet(pipe, puppets, 2, 0, 2)


def test_the_command_writes_one_number_and_a_dry_run_none(puppets, folder, monkeypatch, capsys):
    monkeypatch.setattr("vidcm.lpc.dataset.LPC", lambda *_, **__: puppets)
    words = ["--checkpoint", str(folder), "--art", "x", "--count", "2", "--steps", "2", "3"]
    before = (folder / "pipeline.json").read_text()
    assert main([*words, "--levels", "90", "30", "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert out.count(" dB\n") == 4 and "lowest sigma 30, 3 steps: adherence" in out
    assert (folder / "pipeline.json").read_text() == before
    assert main([*words, "--levels", "90"]) == 0
    student = VideoPipeline.from_pretrained(folder).settings.student
    assert student.lowest_sigma == 90
