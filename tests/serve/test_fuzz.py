"""The API under schemathesis: what its OpenAPI document says is what it does."""

import subprocess
import sys

import pytest
from serve.serving import served, service_of

# Some rules cannot be said in a schema (frames are 4k + 1, a task takes so many clips), so requests
# that are valid by it may be refused.
EXCLUDED = "positive_data_acceptance"


def fuzz(folder, tmp_path, *words: str) -> str:
    with (
        service_of(folder, max_frames=9, max_size=64, max_steps=4) as service,
        served(service) as client,
    ):
        command = [sys.executable, "-m", "schemathesis.cli", "run", "--exclude-checks", EXCLUDED]
        command += ["--seed", "0", "--no-color", *words]
        command.append(f"http://127.0.0.1:{client.port}/openapi.json")
        done = subprocess.run(
            command, cwd=tmp_path, capture_output=True, text=True, timeout=600, check=False
        )
        assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
        assert client("GET", "/health").status == 200
        return done.stdout


def test_the_document_is_true(folder, tmp_path):
    report = fuzz(folder, tmp_path, "--phases", "fuzzing", "--max-examples", "8")
    assert "12 passed" in report  # operations


@pytest.mark.slow
def test_the_document_is_true_in_every_phase(folder, tmp_path):
    fuzz(folder, tmp_path, "--max-examples", "40")
