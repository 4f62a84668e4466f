"""A comparison: equal seconds, resumable rows, a table and a plot; real trainings of tiny models."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from tiny import CODEC, denoiser, save

from vidcm import compare
from vidcm.cli.compare import main
from vidcm.comparison_report import plot, table
from vidcm.data.latents import write_shards
from vidcm.errors import UsageError, VidcmError
from vidcm.store import read_card

REPO = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def world(puppets, tmp_path_factory) -> Path:
    """A codec, a teacher, cached latents and a student's config."""
    folder = tmp_path_factory.mktemp("world")
    teacher = denoiser(patch=[1, 4, 4])
    save(folder / "codec", CODEC)
    save(folder / "teacher", teacher, 1)
    captions = [
        [puppets.caption(puppets.sample(np.random.default_rng(i)), np.random.default_rng(i))]
        for i in range(8)
    ]
    mark = read_card(folder / "codec")["sha256"]
    write_shards(
        folder / "latents", iter([(torch.randn(8, 5, 2, 8, 8), captions)]), codec=mark, about={}
    )
    student = {
        "output": "unused",
        "steps": 100000,
        "batch_size": 2,
        "workers": 0,
        "sample_every": 100000,
        "model": denoiser(guided=True, patch=[1, 4, 4]),
        "init": "unused",
        "teacher": "unused",
        "codec": "unused",
        "objective": {"name": "consistency_tuning"},
        "data": {"name": "latents", "path": str(folder / "latents")},
    }
    (folder / "student.yaml").write_text(yaml.safe_dump(student))
    return folder


def asked(world: Path, output: Path, **changes) -> Path:
    rows = {
        "teacher-heun": {"solver": "heun"},
        "tuning": {"config": str(world / "student.yaml"), "overrides": ["optimizer.lr=1e-5"]},
    }
    told = {
        "output": str(output / "runs"),
        "results": str(output / "comparison.json"),
        "codec": str(world / "codec"),
        "teacher": str(world / "teacher"),
        "budget": 0.5,
        "count": 2,
        "evaluations": [1, 3],
        "rows": rows,
    }
    path = output / "comparison.yaml"
    path.write_text(yaml.safe_dump(told | changes))
    return path


def test_rows_are_trained_measured_and_kept(world, puppets, tmp_path, monkeypatch):
    wish = compare.read(asked(world, tmp_path))
    results = compare.compare(wish, puppets)
    written = json.loads((tmp_path / "comparison.json").read_text())
    assert written == results and list(results["rows"]) == ["teacher-heun", "tuning"]
    heun, tuning = results["rows"].values()
    assert heun["training"] is None and tuning["training"]["peak_mb"] > 50
    assert {n: line["evaluations"] for n, line in heun["evaluations"].items()} == {"1": 2, "3": 6}
    assert {n: line["evaluations"] for n, line in tuning["evaluations"].items()} == {"1": 1, "3": 3}
    run = tmp_path / "runs" / "tuning"
    card = read_card(run / "student" / "final")["made"]
    assert card["config"]["optimizer"]["lr"] == 1e-5
    assert card["config"]["steps"] == tuning["training"]["steps"] >= 1
    trained = (run / "student" / "final" / "model.safetensors").stat().st_mtime_ns

    monkeypatch.setattr(compare, "_train", lambda *a: pytest.fail("a finished row trained again"))
    again = compare.compare(wish, puppets, ["tuning"])
    assert again["rows"].keys() == results["rows"].keys()
    assert (run / "student" / "final" / "model.safetensors").stat().st_mtime_ns == trained

    text = table(results)
    assert text.count("\n| teacher-heun |") == 2 and text.count("\n| tuning |") == 2
    pytest.importorskip("matplotlib")
    plot(results, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes()[1:4] == b"PNG"


def test_the_same_seconds_buy_fewer_slow_steps():
    assert compare.steps_within(600, 2.5) == 240 and compare.steps_within(600, 0.5) == 1200
    assert compare.steps_within(1, 3) == 1


def test_several_seeds_are_several_rows(world, tmp_path):
    rows = {"tuning": {"config": str(world / "student.yaml"), "seeds": [3, 5]}}
    found = [
        (key, seed)
        for key, _, seed in compare.entries(compare.read(asked(world, tmp_path, rows=rows)))
    ]
    assert found == [("tuning, seed 3", 3), ("tuning, seed 5", 5)]


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"rows": {"x": {}}}, "rows.x needs either a config"),
        ({"rows": {"x": {"solver": "heun", "config": "y"}}}, "rows.x needs either"),
        ({"rows": {"x": {"config": "nowhere.yaml"}}}, "nowhere.yaml"),
        ({"rows": {"x": {"slover": "heun"}}}, "unknown key 'slover'"),
        ({"rows": {"x": {"solver": "rk4"}}}, "rows.x: solver 'rk4'"),
        ({"rows": {}}, "a comparison needs"),
        ({"budget": 0}, "budget 0"),
        ({"counts": 3}, "unknown key 'counts'"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_trains(world, tmp_path, changes, message):
    with pytest.raises(UsageError, match=message):
        compare.read(asked(world, tmp_path, **changes))


def test_a_training_that_fails_names_its_config(world, puppets, tmp_path):
    rows = {"bad": {"config": str(world / "student.yaml"), "overrides": ["data.path=nowhere"]}}
    with pytest.raises(VidcmError, match="student.yaml ended with exit code 2"):
        compare.compare(compare.read(asked(world, tmp_path, rows=rows)), puppets)


def test_the_command_refuses_and_shows(tmp_path, capsys, monkeypatch):
    assert main([]) == 2 or "usage" in capsys.readouterr().err
    monkeypatch.delenv("VIDCM_LPC_ART", raising=False)
    config = str(REPO / "configs" / "lpc" / "comparison.yaml")
    monkeypatch.chdir(REPO)
    assert main(["--config", config]) == 2
    assert "LPC art" in capsys.readouterr().err
    assert main(["--config", config, "--art", "x", "--rows", "typo"]) == 2
    assert "no row 'typo'" in capsys.readouterr().err
    assert main(["--table", config]) == 2
    assert "cannot read" in capsys.readouterr().err
