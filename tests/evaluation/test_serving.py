"""The measurement of a server: every row is there, and the table says what the file does."""

import pytest
import tiny

from vidcm.evaluation import serving
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
