"""The measurement of a server: every row is there, and the table says what the file does."""

import json

import pytest
import tiny
import torch

from vidcm.cli import benchmark
from vidcm.evaluation import serving
from vidcm.evaluation.environment import machine
from vidcm.evaluation.reports import serving_table
from vidcm.evaluation.results import to_plain


@pytest.mark.slow
def test_servers_are_measured_beside_the_pipeline(tmp_path):
    folder = tiny.pipeline(tmp_path)
    plan = serving.ServingPlan(clients=4, seconds=1.0, turns=2, num_inference_steps=2)
    results = to_plain(serving.measure_serving(str(folder), "cpu", plan))
    rows = results["rows"]
    assert list(rows) == ["pipeline", "one by one", "batched"]
    for name, row in rows.items():
        assert row["clips"] > 1 and row["seconds"]["p50"] <= row["seconds"]["p95"], name
    for row in (rows["one by one"], rows["batched"]):
        assert row["errors"] == 0 and row["answers"]["200"] == row["clips"]
        assert len(row["memory"]) == 2
    assert rows["one by one"]["batch"] == 1 < rows["batched"]["batch"] <= 4
    text = serving_table(results)
    assert "| batched |" in text and "4 clients" in text and "Model pipeline" in text


def test_the_command_keeps_the_numbers_and_writes_the_table(tmp_path, monkeypatch, capsys):
    row = {"clips": 3, "clips_per_second": 1.5, "seconds": {"p50": 0.5, "p95": 0.75}}
    asked = []

    def measured(checkpoint, device, plan):
        asked.append((checkpoint, plan))
        return {
            "kind": "serving",
            "protocol": {"clients": plan.clients, "turns": plan.turns, "seconds": plan.seconds}
            | {"num_inference_steps": 4},
            "model": {"name": "lpc-64"},
            "environments": [{**machine(torch.device("cpu")), "load_average": [[0.5, 0, 0]]}],
            "rows": {"pipeline": row, "batched": {**row, "batch": 2.0, "errors": 0, "memory": [1]}},
        }

    monkeypatch.setattr(serving, "measure_serving", measured)
    output, document = tmp_path / "serve.json", tmp_path / "serving.md"
    document.write_text("before\n<!-- serving:begin -->\nold\n<!-- serving:end -->\nafter\n")
    words = ["serve", "--seconds", "3", "--turns", "2", "--output", str(output)]
    assert benchmark.main([*words, "--into", str(document)]) == 0
    assert asked == [("lpc-64", serving.ServingPlan(clients=32, seconds=3, turns=2))]
    assert json.loads(output.read_text())["kind"] == "serving"
    text = document.read_text()
    assert "| batched | 1.50 | 0.50 | 0.75 | 2.0 | 0 |" in text and "old" not in text
    assert text.startswith("before") and text.endswith("after\n")
    assert benchmark.main(words) == 2 and "--overwrite" in capsys.readouterr().err
    assert benchmark.main([*words, "--overwrite"]) == 0 and "batched" in capsys.readouterr().out
    other = [*words, "--overwrite", "--into", str(output)]
    assert benchmark.main(other) == 2 and len(asked) == 2
