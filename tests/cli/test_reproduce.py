"""One command makes a model from its data, in a given time, and goes on where it was stopped."""

import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from tiny import CODEC, denoiser

from vidcm.cli import reproduce
from vidcm.media.write import write_clip
from vidcm.pipeline import VideoPipeline
from vidcm.yaml_file import read_keys


@pytest.fixture
def recipe(tmp_path) -> Path:
    """Codec, latents, teacher, student and pipeline of a few small videos."""
    clips = tmp_path / "clips"
    for i in range(4):
        frames = np.random.default_rng(i).integers(0, 256, (9, 16, 24, 3), dtype=np.uint8)
        write_clip(frames, clips / f"{i}.mp4", fps=8)
        (clips / f"{i}.txt").write_text(f"clip {i}")
    shape = {"num_frames": 5, "size": [16, 24], "fps": 8}
    common = {"output": "unused", "steps": 1, "batch_size": 2, "sample_every": 10**6}
    cached = {"data": {"name": "latents", "path": "unused"}, "codec": "unused"}
    flow = {"model": denoiser(), "objective": {"name": "flow_matching"}, **cached}
    configs = {
        "codec": {
            "model": CODEC,
            "objective": {"name": "autoencoding"},
            "data": {"name": "folder", "root": str(clips), **shape},
        },
        "teacher": flow,
        "student": {
            **flow,
            "model": denoiser(guidance_embed=True),
            "objective": {"name": "consistency_tuning", "stages": 2},
            "teacher": "unused",
        },
    }
    for name, keys in configs.items():
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump({**common, **keys}))
    latents = "codec={root}/codec/final data.path={root}/latents"
    stages = [
        ("codec", "train --config {configs}/codec.yaml output={root}/codec", "codec/final", 0.5),
        (
            "latents",
            f"encode --data folder --root {clips} --frames 5 --size 16x24 --codec "
            "{root}/codec/final --output {root}/latents",
            "latents/index.json",
            0,
        ),
        (
            "teacher",
            "train --config {configs}/teacher.yaml output={root}/teacher " + latents,
            "teacher/final",
            0.3,
        ),
        (
            "student",
            "train --config {configs}/student.yaml output={root}/student init={root}/teacher/final "
            "teacher={root}/teacher/final " + latents,
            "student/final",
            0.2,
        ),
        (
            "model",
            "export --codec {root}/codec/final --teacher {root}/teacher/final --student "
            "{root}/student/final --frames 5 --height 16 --width 24 --allow-still --output "
            "{root}/model",
            "model/pipeline.json",
            0,
        ),
    ]
    keys = ("name", "run", "done", "share")
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump({"stages": [dict(zip(keys, s, strict=True)) for s in stages]}))
    return path


def test_from_data_to_a_pipeline_in_one_command(recipe, tmp_path, capfd):
    root = tmp_path / "made"
    command = [str(recipe), "--minutes", "0.5", "--output", str(root)]
    whole = recipe.read_text()
    recipe.write_text(whole.replace("--frames 5 --size", "--frames 6 --size"))
    assert reproduce.main(command) == 1
    assert "the stage latents ended with code 2" in capfd.readouterr().err
    before = json.loads((root / "reproduce.json").read_text())["stages"]
    recipe.write_text(whole)
    assert reproduce.main(command) == 0
    captured = capfd.readouterr()
    assert "[1/5] codec" not in captured.out and "[2/5] latents" in captured.out
    stages = json.loads((root / "reproduce.json").read_text())["stages"]
    assert stages["codec"] == before["codec"]  # not made again
    assert set(stages) == {"codec", "latents", "teacher", "student", "model"}
    assert min(stages[n]["steps"] for n in ("codec", "teacher", "student")) >= 12
    assert VideoPipeline.from_pretrained(root / "model")("x", num_inference_steps=1).frames.any()
    report = (root / "report.md").read_text()
    assert (
        f"| teacher | {stages['teacher']['seconds'] / 60:.1f} | {stages['teacher']['steps']} |"
        in report
    )
    assert not (root / "trial").exists()
    assert reproduce.main(command) == 0 and "[" not in capfd.readouterr().out


def test_the_recipe_of_lpc_64_names_stages_in_order():
    stages = read_keys(reproduce.RECIPES["lpc-64"])["stages"]
    names = [stage["name"] for stage in stages]
    assert names == ["codec", "latents", "text", "teacher", "student", "model", "level", "quality"]
    assert sum(stage.get("share", 0) for stage in stages) == pytest.approx(1)
    for place, stage in enumerate(stages):
        for later in names[place + 1 :]:  # a stage uses what is there already
            assert f"{{root}}/{later}" not in stage["run"].replace(f"{{root}}/{stage['name']}", "")


@pytest.mark.parametrize(
    "words, message",
    [
        (["lpc-65", "--hours", "1"], "there is no config file lpc-65"),
        (["lpc-64", "--hours", "0"], "argument --hours: got '0'"),
        (["lpc-64"], "one of the arguments --hours --minutes is required"),
    ],
)
def test_refusals(words, message, tmp_path, capsys):
    try:
        code = reproduce.main([*words, "--output", str(tmp_path / "x")])
    except SystemExit as left:
        code = left.code
    assert code == 2 and message in capsys.readouterr().err
    assert not (tmp_path / "x").exists()
