"""The whole road, by commands only: a user's own clips in, a clip of a student trained on them out."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from tiny import CODEC, denoiser

from vidcm.media.read import read_frames
from vidcm.media.write import write_clip

REPO = Path(__file__).parents[1]


def run(tool: str, *words: object) -> str:
    """The standard output of a command, run as from a shell."""
    call = [sys.executable, str(REPO / "tools" / f"{tool}.py"), *map(str, words)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(call, capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.fixture(scope="module")
def clips(tmp_path_factory) -> Path:
    """Bright squares that move left or right, with their captions."""
    folder = tmp_path_factory.mktemp("clips")
    lines = []
    for i in range(8):
        frames = np.full((9, 32, 48, 3), 30, np.uint8)
        for t in range(9):
            x = 3 * t if i % 2 else 32 - 3 * t
            frames[t, 8 + i : 20 + i, x : x + 12] = (200, 40 * (i % 4), 90)
        write_clip(frames, folder / f"{i}.mp4", fps=8)
        text = f"a square moves {'right' if i % 2 else 'left'}"
        lines.append(json.dumps({"file_name": f"{i}.mp4", "text": text}))
    (folder / "metadata.jsonl").write_text("\n".join(lines))
    return folder


def test_from_clips_to_a_clip(clips, tmp_path):
    def config(name: str, **keys) -> list[str]:
        common = {"steps": 4, "batch_size": 4, "log_every": 1, "sample_every": 4, "save_every": 2}
        path = tmp_path / f"{name}.yaml"
        path.write_text(yaml.safe_dump({"output": str(tmp_path / name), **common, **keys}))
        return ["--config", str(path)]

    def final(name: str) -> str:
        return str(tmp_path / name / "final")

    latents = str(tmp_path / "latents")
    shape = {"num_frames": 5, "size": [16, 24], "fps": 8}
    folder = {"name": "folder", "root": str(clips), **shape}
    run("train", *config("codec", model=CODEC, objective={"name": "autoencoding"}, data=folder))
    size = ["--frames", 5, "--size", "16x24", "--fps", 8]
    source = ["--data", "folder", "--root", clips, *size]
    printed = run("encode", "--codec", final("codec"), *source, "--output", latents)
    assert "8 clips" in printed

    cached = {"data": {"name": "latents", "path": latents}, "codec": final("codec")}
    teacher = config("teacher", model=denoiser(), objective={"name": "flow_matching"}, **cached)
    run("train", *teacher)
    student = config(
        "student",
        model=denoiser(guidance_embed=True),
        objective={"name": "consistency_tuning", "stages": 2},
        init=final("teacher"),
        teacher=final("teacher"),
        **cached,
    )
    run("train", *student, "steps=2")
    run("train", *student)  # goes on to step 4
    log = [json.loads(x) for x in (tmp_path / "student/metrics.jsonl").read_text().splitlines()]
    assert [x["step"] for x in log if "loss" in x] == [1, 2, 3, 4]
    assert any("preview/motion_ratio_4" in x for x in log)
    assert (tmp_path / "student/samples/step-00000004.png").is_file()

    model = tmp_path / "model"
    parts = [w for role in ("codec", "teacher", "student") for w in (f"--{role}", final(role))]
    shape = ["--frames", 5, "--height", 16, "--width", 24]
    run("export", *parts, "--output", model, *shape, "--allow-still")  # four steps old
    clip = tmp_path / "clip.mp4"
    prompt = ["--checkpoint", model, "--prompt", "a square moves left", "--scale", 1]
    summary = json.loads(run("generate", *prompt, "--steps", 2, "--output", clip, "--json"))
    assert summary["evaluations"] == 2 and summary["clips"][0]["path"] == str(clip)
    assert read_frames(str(clip), [i / 8 for i in range(5)]).frames.shape == (5, 16, 24, 3)
