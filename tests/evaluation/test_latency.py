"""Latency: what is counted is counted, what is compared is alike, and nothing is measured for
nothing. On a random pipeline of a few thousand weights, in real processes where it matters."""

import copy
import json
import os
import signal
import subprocess
import sys
import time
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import pytest
import tiny
import torch

import vidcm
from vidcm.cli import benchmark as command
from vidcm.diffusion import samplers
from vidcm.errors import UsageError, VidcmError
from vidcm.evaluation import latency, latency_report
from vidcm.evaluation.cost import flops_per_evaluation, speedups, summarize_times, tokens_of
from vidcm.evaluation.latency import LatencyPlan, measure_latency
from vidcm.evaluation.rows import Row
from vidcm.models.dit import DiT

REPO = Path(vidcm.__file__).parents[1]
FRAMES, HEIGHT, WIDTH = 9, 40, 56  # latents 3 x 5 x 7
ROWS = [Row("teacher", 3), Row("student", 2), Row("student", 1)]


@pytest.fixture(scope="session")
def pipeline(tmp_path_factory) -> Path:
    """A pipeline folder of tiny random models."""
    folder = tmp_path_factory.mktemp("bench")
    return tiny.pipeline(folder, frames=FRAMES, height=HEIGHT, width=WIDTH)


@pytest.fixture(scope="session")
def measured(pipeline, tmp_path_factory) -> tuple[Path, str]:
    """The JSON and the output of a real measurement, new processes included."""
    path = tmp_path_factory.mktemp("measured") / "new folder" / "bench.json"
    words = [
        "--checkpoint",
        pipeline,
        "--rows",
        "teacher-3,student-2",
        "--warmup",
        1,
        "--repeats",
        5,
        "--batch",
        2,
        "--threads",
        1,
        "--cold",
        1,
        "--output",
        path,
    ]
    with redirect_stdout(StringIO()) as out:
        assert command.main([*map(str, words)]) == 0
    assert [p.name for p in path.parent.iterdir()] == ["bench.json"]
    return path, out.getvalue()


def load(path: Path) -> dict:
    return json.loads(path.read_text())


# --- what is measured -----------------------------------------------------------------------------


def test_a_run_holds_every_row_stage_and_total(measured):
    results = load(measured[0])
    assert results["schema_version"] == latency_report.SCHEMA
    assert list(results["rows"]) == ["teacher-3", "student-2"]
    for row in results["rows"].values():
        seconds = row["seconds"]
        for name in ("text", "denoise", "decode", "write", "dit_only", "latent_to_pixels"):
            assert name in results["definition"]
            assert len(seconds[name]["samples"]) == 5 and seconds[name]["min"] > 0
        gaps = []
        for i in range(5):
            at = {k: v["samples"][i] for k, v in seconds.items()}
            assert at["dit_only"] == at["denoise"] >= at["network"]
            assert at["latent_to_pixels"] == at["denoise"] + at["decode"]
            stages = at["text"] + at["denoise"] + at["decode"] + at["write"]
            gaps.append(at["end_to_end"] - stages)
        assert min(gaps) >= 0 and min(gaps) < 0.25  # one clock, not a sum: close to it
        assert len(row["warmup"]["end_to_end"]["samples"]) == 1
        assert row["tokens"] == 3 * 5 * 7 and row["text_tokens"] == 7
        assert row["dtype"] == "float32" and row["attention"]
        assert row["peak_memory"]["process"] > 2**26
        clip_seconds = 2 * FRAMES / 8.0
        assert row["realtime_factor"] == pytest.approx(clip_seconds / seconds["end_to_end"]["p50"])


def test_evaluations_are_those_of_the_network(measured):
    rows = load(measured[0])["rows"]
    assert {name: row["evaluations"] for name, row in rows.items()} == {
        "teacher-3": 6,
        "student-2": 2,
    }
    assert [row["forwards"] for row in rows.values()] == [3, 2]


def test_a_sampler_that_evaluates_more_is_found_out(pipeline, monkeypatch):
    monkeypatch.setitem(samplers.SOLVERS, "euler", samplers.heun)
    rows = measure_latency(pipeline, "cpu", ROWS[:1], LatencyPlan(warmup=1, repeats=1))["rows"]
    assert rows["teacher-3"]["forwards"] == 5 and rows["teacher-3"]["evaluations"] == 10


def test_environment_and_hashes(measured, pipeline):
    results = load(measured[0])
    facts = results["environment"]
    assert facts["threads"] == 1 and facts["cores"] >= 1 and facts["memory"] > 2**28
    assert facts["torch"] == torch.__version__ and facts["cpu"]
    assert [len(loads) for loads in facts["load_average"]] == [3, 3]
    cards = {part: load(pipeline / part / "model.json") for part in ("codec", "student", "teacher")}
    assert facts["sha256"] == {part: card["sha256"] for part, card in cards.items()}
    assert results["recipe"]["models"]["teacher"] == cards["teacher"]["spec"]


def test_cold_starts_are_processes_with_their_own_clock(measured):
    for row in load(measured[0])["rows"].values():
        cold = {k: v["p50"] for k, v in row["cold"].items()}
        parts = sum(cold[k] for k in ("start", "load", "text", "denoise", "decode", "write"))
        assert parts - 0.01 < cold["wall"] < parts + 10  # rounding; a busy machine between stages
        assert cold["load"] > 0.2  # torch's import is most of it
        assert cold["first_call"] == pytest.approx(cold["text"] + cold["denoise"] + cold["decode"])
        assert cold["start"] > 0


def test_rows_take_turns_and_share_the_first_place(pipeline):
    order: list[str] = []
    measure_latency(pipeline, "cpu", ROWS, LatencyPlan(warmup=1, repeats=2), order.append)
    a, b, c = map(str, ROWS)
    assert order == [a, b, c, b, c, a, c, a, b]


def test_a_new_process_that_fails_is_one_line(pipeline, monkeypatch):
    monkeypatch.setattr(latency, "_GENERATE", ("-c", "import sys; sys.exit('error: no room')"))
    with pytest.raises(VidcmError, match="ended with code 1: error: no room"):
        measure_latency(pipeline, "cpu", ROWS[2:], LatencyPlan(warmup=1, repeats=1, cold=1))


def test_watching_ends_with_the_measurement(pipeline, monkeypatch):
    kept = []
    once = latency._once
    monkeypatch.setattr(
        latency, "_once", lambda pipe, *rest: (kept.append(pipe), once(pipe, *rest))[1]
    )
    measure_latency(pipeline, "cpu", ROWS[2:], LatencyPlan(warmup=1, repeats=1))
    network = kept[0].model("student").backbone
    assert not network._forward_hooks and not network._forward_pre_hooks


@pytest.mark.parametrize("guided", [False, True])
@pytest.mark.parametrize("patch, shape", [((1, 1, 1), (2, 3, 5, 7)), ((1, 2, 2), (5, 3, 22, 26))])
def test_flops_are_those_of_the_formula(guided, patch, shape):
    """With n tokens, width d, MLP width m, context c, P numbers per patch, in multiply-adds."""
    c, words, d, m, layers = 48, 11, 32, 80, 3
    dit = DiT(
        shape[0],
        c,
        hidden_size=d,
        num_layers=layers,
        num_heads=2,
        patch_size=patch,
        mlp_ratio=2.5,
        guidance_embed=guided,
    )
    _, t, height, width = shape
    n = t * height * width // (patch[1] * patch[2])
    assert tokens_of(dit, shape) == n
    p = shape[0] * patch[1] * patch[2]
    block = 4 * n * d**2 + 2 * n**2 * d  # self-attention
    block += 2 * n * d**2 + 2 * words * c * d + 2 * n * words * d  # cross-attention
    block += 2 * n * d * m
    scalars = (1 + guided) * (2 * len(dit.time.frequencies) * d + d**2)
    once = scalars + c * d + 11 * d**2 + p * d  # times, pooled text, modulations
    ends = n * p * d + n * max(d, p) * (d + p)
    assert flops_per_evaluation(dit, shape, words) == 2 * (ends + layers * block + once)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_on_a_gpu_events_agree_with_the_clock(pipeline):
    rows = measure_latency(pipeline, "cuda", ROWS, LatencyPlan(warmup=1, repeats=3))
    for row in rows["rows"].values():
        assert 0 < row["seconds"]["network"]["p50"] <= row["seconds"]["denoise"]["p50"]
        assert row["peak_memory"]["reserved"] >= row["peak_memory"]["allocated"] > 0
    assert rows["environment"]["gpu_memory"] > 2**30


# --- statistics -----------------------------------------------------------------------------------


def test_summary_is_numpys():
    numpy = pytest.importorskip("numpy")
    for count in (1, 2, 7, 20, 21):
        samples = torch.rand(count).tolist()
        found = summarize_times(samples)
        assert found["samples"] == samples
        assert [found["p50"], found["p95"]] == pytest.approx(numpy.percentile(samples, [50, 95]))
        assert found["mean"] == pytest.approx(numpy.mean(samples))
        assert (found["min"], found["max"]) == (min(samples), max(samples))


def test_ratios_pair_the_turns():
    """Noise that slows whole turns cancels; the teacher of most steps is the reference."""

    def row(steps, base, noise):
        return {"steps": steps, "seconds": {"denoise": summarize_times([base * n for n in noise])}}

    noise = [1, 5, 2, 9, 3]
    found = speedups(
        {
            "teacher-8": row(8, 16, noise),
            "teacher-50": row(50, 100, noise),
            "student-1": row(1, 2, noise),
        }
    )
    assert found == {"student-1": {"of": "teacher-50", "denoise": 50, "low": 50, "high": 50}}
    assert speedups({"student-1": row(1, 2, noise)}) == {}


# --- comparing ------------------------------------------------------------------------------------


def changed(path: Path, folder: Path, change) -> Path:
    results = load(path)
    change(results)
    out = folder / "changed.json"
    out.write_text(json.dumps(results))
    return out


def scaled(row: str, stage: str, by: float, to: float | None = None):
    def change(results: dict) -> None:
        seconds = results["rows"][row]["seconds"]
        seconds[stage]["p50"] = to or seconds[stage]["p50"] * by

    return change


def test_a_measurement_compared_with_itself(measured, capsys):
    assert command.main(["--compare", str(measured[0]), str(measured[0])]) == 0
    out, err = capsys.readouterr()
    assert err == "" and "slower" not in out and "faster" not in out
    assert "+0.0%" in out and "| teacher-3 | denoise |" in out
    assert "The clips are the same." in out and "environments differ" not in out


@pytest.mark.parametrize(
    "old, new, verdict",
    [
        (1.0, 1.079, ""),
        (1.0, 1.081, "slower"),
        (1.0, 0.919, "faster"),
        (0.010, 0.0149, ""),
        (0.010, 0.0151, "slower"),
        (0.001, 0.0059, ""),  # 490 %, but 4.9 ms
    ],
)
def test_a_change_counts_beyond_both_thresholds(measured, old, new, verdict):
    a = load(measured[0])
    b = copy.deepcopy(a)
    scaled("student-2", "decode", 0, old)(a)
    scaled("student-2", "decode", 0, new)(b)
    text, slower = latency_report.compare_latency(a, b)
    line = next(x for x in text.splitlines() if x.startswith("| student-2 | decode |"))
    assert line.endswith(f"| {new / old - 1:+.1%} | {verdict} |")
    assert slower == (verdict == "slower")


def test_slower_is_exit_code_1(measured, tmp_path, capsys):
    worse = changed(measured[0], tmp_path, scaled("student-2", "end_to_end", 0, 99.0))
    assert command.main(["--compare", str(measured[0]), str(worse)]) == 1
    assert command.main(["--compare", str(worse), str(measured[0])]) == 0
    assert capsys.readouterr().out.count("slower") == 1


def test_different_weights_or_machines_are_told_not_refused(measured):
    a = load(measured[0])
    b = copy.deepcopy(a)
    b["environment"]["threads"] = 64
    b["environment"]["sha256"]["codec"] = "0" * 64
    b["rows"]["student-2"]["clips_sha256"] = "other"
    text, _ = latency_report.compare_latency(a, b)
    assert "threads: 1 and 64" in text and "sha256" in text and "clips are not the same" in text


def test_different_things_are_refused(measured, pipeline, tmp_path, capsys):
    """Cases: A15."""
    other = tmp_path / "other.json"
    words = ["--checkpoint", pipeline, "--rows", "student-1", "--warmup", 1, "--repeats", 1]
    assert command.main([*map(str, words), "--output", str(other)]) == 0
    gpu = changed(measured[0], tmp_path, lambda r: r["recipe"].update(device="cuda"))
    newer = tmp_path / "newer.json"
    newer.write_text(json.dumps(load(measured[0]) | {"schema_version": 99}))
    capsys.readouterr()
    for path, words in (
        (other, ["different things", "batch: 2 and 1", "rows"]),
        (gpu, ["on cpu and on cuda"]),
        (newer, ["schema version 99"]),
    ):
        assert command.main(["--compare", str(measured[0]), str(path)]) == 2
        out, err = capsys.readouterr()
        assert out == "" and err.startswith("error: ") and err.count("\n") == 1
        assert all(word in err for word in words), err


# --- the table ------------------------------------------------------------------------------------


def test_the_table_is_what_was_printed(measured, capsys):
    path, printed = measured
    assert command.main(["--table", str(path)]) == 0
    text = capsys.readouterr().out
    assert text == printed
    lines = text.splitlines()
    assert [line.split(" | ")[0] for line in lines[2:4]] == ["| teacher-3", "| student-2"]
    assert len({line.count("|") for line in lines[:4]}) == 1 and "cold start" in lines[0]
    found = load(path)["ratios"]["student-2"]
    assert found["of"] == "teacher-3" and found["low"] <= found["high"]
    assert f"{found['denoise']:.1f} ({found['low']:.1f}-{found['high']:.1f})" in lines[3]
    assert "2 x 9 frames of 56x40 a call, 105 tokens, float32" in text


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_into_replaces_the_block_and_nothing_else(measured, tmp_path, newline, capsys):
    page = tmp_path / "README.md"
    before, after = f"# Süß{newline}<!-- latency:begin -->", f"<!-- latency:end -->{newline}tail"
    page.write_bytes(f"{before}{newline}stale lines{newline}{after}".encode())
    for _ in range(2):  # and again: the marks stay
        assert command.main(["--table", str(measured[0]), "--into", str(page)]) == 0
        text = page.read_bytes().decode()
        assert text.startswith(before + newline + "|") and text.endswith(newline + after)
        assert "stale" not in text and text.count("\n") == text.count(newline)
    assert capsys.readouterr().out == ""


# --- refusals -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words, expected",
    [
        (["--rows", "teacher-50,studnt-1"], "'studnt-1'"),
        (["--rows", "student-0"], "'student-0'"),
        (["--rows", "student-1001"], "N from 1 to 1000"),
        (["--rows", ""], "expected codec, teacher-N"),
        (["--rows", "student-1, student-1"], "student-1 twice"),
        (["--prompt", " "], "prompt is empty"),
        (["--checkpoint", "nowhere"], "nowhere is neither a bundled model"),
        (["--output", "taken.json"], "taken.json exists"),
        (["--output", "."], "is not a file"),
        (["--output", "/dev/null", "--overwrite"], "is not a file"),
        (["--output", "taken.json/x.json"], "cannot write"),
        (["--into", "taken.json"], "needs one line"),
        (["--into", "no.md"], "cannot read no.md"),
        (["--table", "taken.json"], "holds no benchmark"),
        (["--table", "text.md"], "is not JSON"),
        (["--table", "taken.json", "--output", "x.json"], "leave out --output"),
        (["--compare", "taken.json", "taken.json", "--into", "text.md"], "leave out --compare"),
    ],
)
def test_bad_requests_are_one_line_before_anything_is_measured(
    words, expected, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "taken.json").write_text('{"mine": 1}')
    (tmp_path / "text.md").write_text("words")
    monkeypatch.setattr(latency, "_warm", lambda *_: pytest.fail("it measured"))
    assert command.main(words) in (1, 2)
    out, err = capsys.readouterr()
    lines = [
        line for line in err.splitlines() if not line.startswith("warning: the machine is busy")
    ]
    assert out == "" and len(lines) == 1 and expected in lines[0], err
    assert (tmp_path / "taken.json").read_text() == '{"mine": 1}'
    assert sorted(p.name for p in tmp_path.iterdir()) == ["taken.json", "text.md"]


@pytest.mark.parametrize(
    "words",
    [
        ["--repeats", "0"],
        ["--warmup", "0"],
        ["--cold", "0"],
        ["--threads", "100000"],
        ["--table", "no"],
    ],
)
def test_bad_options_end_with_2(words, capsys):
    with pytest.raises(SystemExit) as ended:
        command.main(words)
    assert ended.value.code == 2 and capsys.readouterr().err.startswith("error: argument")


@pytest.mark.parametrize(
    "seconds, text",
    [
        (0.0123456, "12.3 ms"),
        (0.9996, "1 s"),
        (0.9994, "999 ms"),
        (12.34, "12.3 s"),
        (1234.5, "1234 s"),
    ],
)
def test_times_are_readable(seconds, text):
    assert latency_report._time(seconds) == text


def test_rows_are_parsed():
    assert command.parse_rows("teacher-50, student-1") == [Row("teacher", 50), Row("student", 1)]
    with pytest.raises(UsageError):
        command.parse_rows("teacher")


def test_an_interrupt_leaves_nothing_behind(pipeline, tmp_path):
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    words = [
        "--checkpoint",
        pipeline,
        "--rows",
        "student-1",
        "--repeats",
        100000,
        "--output",
        tmp_path / "x.json",
    ]
    child = subprocess.Popen(
        [sys.executable, REPO / "tools" / "benchmark.py", *map(str, words)],
        cwd=REPO,
        text=True,
        env={**os.environ, "TMPDIR": str(scratch)},
        stderr=subprocess.PIPE,
    )
    until = time.monotonic() + 600
    while not list(scratch.glob("vidcm-bench-*/*.mp4")) and time.monotonic() < until:
        time.sleep(0.02)
    child.send_signal(signal.SIGINT)
    _, err = child.communicate(timeout=600)
    assert child.returncode == 130 and err.splitlines()[-1] == "error: interrupted"
    assert list(scratch.iterdir()) == [] and not (tmp_path / "x.json").exists()


def test_help_and_comparing_need_no_torch(measured):
    code = (
        "import sys; from vidcm.cli.benchmark import main; main(sys.argv[1:]);"
        "sys.exit(any(m in sys.modules for m in ('torch', 'numpy', 'av')))"
    )
    words = [sys.executable, "-c", code, "--compare", str(measured[0]), str(measured[0])]
    assert subprocess.run(words, cwd=REPO, capture_output=True, timeout=600).returncode == 0
