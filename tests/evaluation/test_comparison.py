"""A comparison: equal seconds, resumable rows, a table and a plot; real trainings of tiny models."""

import importlib.util
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
import yaml
from tiny import CODEC, denoiser, save

from vidcm.cli.compare import main
from vidcm.errors import UsageError, VidcmError
from vidcm.evaluation import comparison, timed_training
from vidcm.evaluation.comparison_config import read_comparison_config, row_entries
from vidcm.evaluation.comparison_report import comparison_table, plot_comparison
from vidcm.lpc import adherence
from vidcm.store import read_card

REPO = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def world(puppets, tmp_path_factory) -> Path:
    """A codec, a teacher, cached latents and a student's config."""
    folder = tmp_path_factory.mktemp("world")
    teacher = denoiser(patch_size=[1, 4, 4])
    save(folder / "codec", CODEC)
    save(folder / "teacher", teacher, 1)
    captions = [
        [puppets.caption(puppets.sample(np.random.default_rng(i)), np.random.default_rng(i))]
        for i in range(8)
    ]
    mark = read_card(folder / "codec")["sha256"]
    tiny.latent_cache(folder / "latents", [(torch.randn(8, 5, 2, 8, 8), captions)], mark)
    student = {
        "output": "unused",
        "steps": 100000,
        "batch_size": 2,
        "num_workers": 0,
        "sample_every": 100000,
        "model": denoiser(guidance_embed=True, patch_size=[1, 4, 4]),
        "init": "unused",
        "teacher": "unused",
        "codec": "unused",
        "objective": {"name": "consistency_tuning"},
        "data": {"name": "latents", "path": str(folder / "latents")},
    }
    (folder / "student.yaml").write_text(yaml.safe_dump(student))
    return folder


def config_of(world: Path, output: Path, **changes) -> Path:
    rows = {
        "teacher-heun": {"solver": "heun"},
        "tuning": {"config": str(world / "student.yaml"), "overrides": ["optimizer.lr=1e-5"]},
    }
    settings = {
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
    path.write_text(yaml.safe_dump(settings | changes))
    return path


def test_rows_are_trained_measured_and_kept(world, puppets, tmp_path, monkeypatch):
    config = read_comparison_config(config_of(world, tmp_path))
    questions, seen = adherence.attribute_questions, []
    monkeypatch.setattr(
        adherence, "attribute_questions", lambda *a: seen.append(a) or questions(*a)
    )
    results = comparison.run_comparison(config, puppets)
    assert len(seen) == 2  # the truth of 2 clips is made once, not for each row
    written = json.loads((tmp_path / "comparison.json").read_text())
    assert written == results and list(results["rows"]) == ["teacher-heun", "tuning"]
    heun, tuning = results["rows"].values()
    assert heun["training"] is None and tuning["training"]["peak_mb"] > 50
    assert {n: line["evaluations"] for n, line in heun["evaluations"].items()} == {"1": 2, "3": 6}
    assert {n: line["evaluations"] for n, line in tuning["evaluations"].items()} == {"1": 1, "3": 3}
    run = tmp_path / "runs" / "tuning"
    card = read_card(run / "student" / "final")["metadata"]
    assert card["config"]["optimizer"]["lr"] == 1e-5
    assert card["config"]["steps"] == tuning["training"]["steps"] >= 1
    trained = (run / "student" / "final" / "model.safetensors").stat().st_mtime_ns

    monkeypatch.setattr(
        timed_training, "train", lambda *a: pytest.fail("a finished row trained again")
    )
    again = comparison.run_comparison(config, puppets, ["tuning"])
    assert again["rows"] == results["rows"]
    assert (run / "student" / "final" / "model.safetensors").stat().st_mtime_ns == trained

    other = config_of(world, tmp_path, rows={"tuning": {"config": str(world / "student.yaml")}})
    with pytest.raises(UsageError, match="tuning holds a row of another optimizer.lr: 1e-05, not"):
        comparison.run_comparison(read_comparison_config(other), puppets)
    (run / "row.json").unlink()
    with pytest.raises(UsageError, match="tuning has no row.json that says what it holds; remove"):
        comparison.run_comparison(config, puppets)

    text = comparison_table(results)
    assert text.count("\n| teacher-heun |") == 2 and text.count("\n| tuning |") == 2
    for heading in ("adherence, %", "PSNR", "SSIM", "Fréchet", "motion", "diversity", "peak MB"):
        assert heading in text.splitlines()[0]
    pytest.importorskip("matplotlib")
    plot_comparison(results, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes()[1:4] == b"PNG"


def test_the_same_seconds_buy_fewer_slow_steps():
    assert (
        timed_training.steps_within(600, 2.5) == 240
        and timed_training.steps_within(600, 0.5) == 1200
    )
    assert timed_training.steps_within(1, 3) == 1


def test_several_seeds_are_several_rows(world, tmp_path):
    rows = {"tuning": {"config": str(world / "student.yaml"), "seeds": [3, 5]}}
    found = [
        (key, seed)
        for key, _, seed in row_entries(
            read_comparison_config(config_of(world, tmp_path, rows=rows))
        )
    ]
    assert found == [("tuning, seed 3", 3), ("tuning, seed 5", 5)]


def test_seeds_of_a_row_train_as_many_steps(world, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(comparison, "train_for_seconds", lambda *args: seen.append(args[-2:]) or {})
    rows = {"tuning": {"config": str(world / "student.yaml"), "seeds": [3, 5]}}
    config = read_comparison_config(config_of(world, tmp_path, rows=rows))
    for job in comparison._jobs(config):
        comparison.train_row(config, job)
    (run, timing), (another, same) = seen
    assert run != another and timing == same == Path(config.output) / "tuning" / "timing.json"


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
        ({"evaluations": [0, 1]}, "must be at least 1"),
        ({"rows": {"x": "y.yaml"}}, "rows.x: 'y.yaml' is not a row"),
        ({"rows": {"x": {"solver": "dpm", "seeds": [0, 1]}}}, "the teacher is not trained"),
        ({"rows": {"x": {"solver": "dpm", "guidance": 101}}}, "rows.x: guidance is 101"),
        ({"rows": {"x": {"solver": "dpm", "shift": 0}}}, "rows.x: shift 0 is for solvers"),
        ({"rows": {"x y": {"solver": "dpm"}, "x-y": {"solver": "dpm"}}}, "share the folder 'x-y'"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_trains(world, tmp_path, changes, message):
    with pytest.raises(UsageError, match=message):
        read_comparison_config(config_of(world, tmp_path, **changes))


def test_a_training_that_fails_names_its_config(world, puppets, tmp_path):
    """Its row is recorded with the reason, and the rows after it are measured all the same."""
    rows = {
        "bad": {"config": str(world / "student.yaml"), "overrides": ["data.path=nowhere"]},
        "teacher-dpm": {"solver": "dpm", "guidance": 2},
    }
    config = read_comparison_config(config_of(world, tmp_path, rows=rows, evaluations=[1]))
    with pytest.raises(VidcmError, match="student.yaml ended with exit code 2") as caught:
        comparison.run_comparison(config, puppets)
    assert "1 of 2 rows failed: bad: training" in str(caught.value)
    assert isinstance(caught.value, comparison.RowsFailed) and not isinstance(
        caught.value, UsageError
    )
    results = json.loads((tmp_path / "comparison.json").read_text())
    assert results == caught.value.results and list(results["rows"]) == ["bad", "teacher-dpm"]
    bad, teacher = results["rows"].values()
    assert "nowhere" in bad["failed"] and bad["evaluations"] == {}
    assert teacher["guidance"] == 2 and "failed" not in teacher
    text = comparison_table(results)
    assert "\n- bad: training" in text and "| teacher-dpm | 1 | 2 |" in text
    assert "\n| bad |" not in text


def test_the_command_shows_what_went_well_and_ends_as_failed(
    world, puppets, tmp_path, capsys, monkeypatch
):
    rows = {"teacher-dpm": {"solver": "dpm"}}
    path = config_of(world, tmp_path, rows=rows, evaluations=[1])
    results = comparison.run_comparison(read_comparison_config(path), puppets)

    def fail(*args) -> dict:
        raise comparison.RowsFailed(results, {"bad": "it fell"}, 2)

    monkeypatch.setattr(comparison, "run_comparison", fail)
    assert main(["--config", str(path), "--art", str(tmp_path)]) == 1
    out, err = capsys.readouterr()
    assert "| teacher-dpm | 1 | 3 |" in out
    assert "error: 1 of 2 rows failed: bad: it fell. Mend it" in err
    words = ["--config", str(path), "--art", str(tmp_path), "--into", str(path)]
    assert main(words) == 2  # before anything is measured
    assert "needs one line <!-- comparison:begin -->" in capsys.readouterr().err


def test_results_of_another_comparison_are_refused_and_stay(world, puppets, tmp_path):
    config = read_comparison_config(config_of(world, tmp_path))
    model = {r: read_card(world / r)["sha256"] for r in ("teacher", "codec")}
    protocol = {"version": 2, "budget": 0.5, "count": 2, "seed": 0}
    same = {"kind": "comparison", "environments": [], "rows": {}}
    for change, message in (
        ({"budget": 600.0}, "another protocol.budget: 600.0, not 0.5; give another file"),
        ({"count": 3}, "another protocol.count: 3, not 2"),
        (
            {"teacher": "f" * 64},
            f"another model.teacher: 'fffffffffffff...', not '{model['teacher'][:13]}",
        ),
        ({"version": 1}, "another protocol.version: 1, not 2"),
    ):
        facts = {
            "protocol": protocol | {k: v for k, v in change.items() if k in protocol},
            "model": model | {k: v for k, v in change.items() if k in model},
        }
        text = json.dumps(same | facts)
        Path(config.results).write_text(text)
        with pytest.raises(UsageError, match=message):
            comparison.run_comparison(config, puppets)
        assert Path(config.results).read_text() == text and not (tmp_path / "runs").exists()


def test_solvers_are_measured_at_the_evaluations_they_really_take(world, puppets, tmp_path):
    rows = {"heun": {"solver": "heun", "shift": 8}}
    config = read_comparison_config(config_of(world, tmp_path, rows=rows, evaluations=[1, 2, 4]))
    lines = comparison.run_comparison(config, puppets)["rows"]["heun"]["evaluations"]
    assert {n: line["evaluations"] for n, line in lines.items()} == {"1": 2, "3": 6}
    settings = json.loads((tmp_path / "runs" / "heun" / "pipeline" / "pipeline.json").read_text())
    assert settings["teacher"]["shift"] == 8 and settings["teacher"]["guidance_scale"] == 3


def test_seeds_are_shown_as_mean_and_deviation():
    def row(seed: int, score: float) -> dict:
        line = {
            "adherence": {"score": score},
            "fidelity": {"psnr": 20.0, "ssim": 0.5},
            "frechet": {"distance": 3.0},
            "motion": {"ratio": None},
            "diversity": {"ratio": 1.0},
        }
        made = {"steps": 7, "batch_size": 3, "seconds_per_step": 0.25, "peak_mb": 512.0}
        row = {"row": "tuning", "seed": seed, "guidance": 1.5, "training": made}
        return row | {"evaluations": {"1": line}}

    rows = {"tuning, seed 0": row(0, 0.5), "tuning, seed 1": row(1, 0.7)}
    machine = {"cpu": "abacus", "device": "cpu", "threads": 1, "torch": "2"}
    results = {
        "protocol": {"budget": 60, "count": 2, "seed": 0},
        "model": {},
        "environments": [machine | {"commit": None, "dirty": None}],
        "rows": rows,
    }
    text = comparison_table(results)
    line = "| tuning | 1 | 1.5 | 60.0 ± 14.1 | 20.0 ± 0.0 | 0.500 ± 0.000 | 3.00 ± 0.00 | - |"
    assert line in text and "| 7 x 3 | 0.25 ± 0.00 | 512 ± 0 |" in text
    assert text.count("\n| tuning") == 1 and "deviation over training seeds" in text


def test_seconds_a_step_are_those_of_the_log(tmp_path):
    lines = [
        {"step": 1, "samples_per_second": 1.0},
        {"step": 2, "samples_per_second": 6.0},
        {"step": 2, "preview/motion": 3.0},
        {"step": 5, "samples_per_second": 2.0},
    ]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (tmp_path / "metrics.jsonl").write_text(text)
    assert timed_training.seconds_per_step(tmp_path, 6) == pytest.approx((6 + 1 + 9) / 5)
    assert timed_training.seconds_per_step(tmp_path, 6, after=1) == pytest.approx((1 + 9) / 4)
    (tmp_path / "metrics.jsonl").write_text(json.dumps({"step": 4, "samples_per_second": 0.0}))
    with pytest.raises(VidcmError, match="were any steps finite"):
        timed_training.seconds_per_step(tmp_path, 6)


def test_peak_memory_is_the_training_s_own_not_that_of_who_started_it():
    ballast = bytearray(b"x") * (900 * 2**20)
    code = "from vidcm.evaluation.timed_training import peak_memory; print(peak_memory())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=REPO)
    assert 5 < float(done.stdout) < len(ballast) / 2**20


def test_an_interrupt_stops_the_training_too_and_leaves_a_checkpoint(world, tmp_path):
    words = [f"output={tmp_path / 'run'}", "steps=100000", "log_every=1", "teacher=null"]
    words += [f"codec={world / 'codec'}", f"init={world / 'teacher'}"]
    config, peak = str(world / "student.yaml"), str(tmp_path / "peak.json")
    code = (
        f"from vidcm.evaluation.timed_training import train; train({config!r}, {words}, {peak!r})"
    )
    child = subprocess.Popen([sys.executable, "-c", code], cwd=REPO, stderr=subprocess.DEVNULL)
    log = tmp_path / "run" / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while not (log.exists() and log.stat().st_size) and time.monotonic() < deadline:
        time.sleep(0.1)
    child.send_signal(signal.SIGINT)
    assert child.wait(60) != 0
    assert len(list((tmp_path / "run" / "checkpoints").iterdir())) == 1


def test_an_interrupt_is_no_failure_of_a_row(world, puppets, tmp_path, monkeypatch):
    def stop(*args) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(timed_training, "train", stop)
    with pytest.raises(KeyboardInterrupt):
        comparison.run_comparison(
            read_comparison_config(config_of(world, tmp_path)), puppets, ["tuning"]
        )
    assert not (tmp_path / "comparison.json").exists()


def test_the_command_refuses_and_shows(tmp_path, capsys, monkeypatch):
    assert main([]) == 2 or "usage" in capsys.readouterr().err
    monkeypatch.delenv("VIDCM_LPC_ART", raising=False)
    config = str(REPO / "configs" / "lpc" / "comparison.yaml")
    monkeypatch.chdir(REPO)
    assert main(["--config", config]) == 2
    assert "LPC art" in capsys.readouterr().err
    assert main(["--config", config, "--art", "x", "--rows", "typo"]) == 2
    assert "no row 'typo'" in capsys.readouterr().err
    for row in ("consistency tuning", "consistency tuning, seed 1"):
        assert main(["--config", config, "--art", "x", "--rows", row]) != 0
        assert "no row" not in capsys.readouterr().err
    assert main(["--table", config]) == 2
    assert "is not JSON" in capsys.readouterr().err


def test_an_unknown_row_is_named_before_a_missing_config(world, tmp_path, capsys):
    rows = {"x": {"config": "nowhere.yaml"}}
    path = str(config_of(world, tmp_path, rows=rows))
    assert main(["--config", path, "--art", "x", "--rows", "typo"]) == 2
    assert "no row 'typo'" in capsys.readouterr().err
    assert main(["--config", path, "--art", "x", "--rows", "x"]) == 2
    assert "nowhere.yaml" in capsys.readouterr().err


def test_a_plot_without_matplotlib_is_refused_before_training(world, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(comparison, "run_comparison", lambda *_: pytest.fail("it trained"))
    path = str(config_of(world, tmp_path))
    assert main(["--config", path, "--art", "x", "--plot", str(tmp_path / "plot.png")]) == 1
    assert "--plot needs matplotlib; pip install" in capsys.readouterr().err
