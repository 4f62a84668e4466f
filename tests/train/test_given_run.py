"""From a config with given frames to an edit that shows them: teacher, student, export, pipeline."""

import json
from pathlib import Path

import numpy as np
import pytest
import tiny

from vidcm import VideoPipeline
from vidcm.cli import export
from vidcm.config import TrainConfig
from vidcm.errors import UsageError
from vidcm.media.write import write_clip
from vidcm.schema import from_dict
from vidcm.store import read_card
from vidcm.train.launch import launch

GIVEN = {"first": 0.7, "random": 0.2}


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """A folder of clips, and a codec."""
    root = tmp_path_factory.mktemp("given")
    (root / "clips").mkdir()
    lines = []
    for i in range(4):
        write_clip(np.full((9, 16, 24, 3), 60 * i, np.uint8), root / f"clips/{i}.mp4", fps=8)
        lines.append(json.dumps({"file_name": f"{i}.mp4", "text": "a wall"}))
    (root / "clips" / "metadata.jsonl").write_text("\n".join(lines))
    tiny.save(root / "codec", tiny.CODEC)
    return root


def config(root: Path, output: str, objective: dict, **keys) -> TrainConfig:
    data = {"name": "folder", "root": str(root / "clips"), "num_frames": 9, "size": [16, 24]}
    common = {"steps": 2, "batch_size": 4, "sample_every": 2, "num_workers": 0}
    common |= {"codec": str(root / "codec"), "output": str(root / output)}
    spec = {"objective": objective, "data": data | {"fps": 8}, "model": tiny.denoiser(), **keys}
    return from_dict(TrainConfig, common | spec, "here")


def test_a_teacher_and_its_student_are_trained_with_given_frames(root):
    teacher, tuning = str(root / "teacher" / "final"), {"name": "consistency_tuning"}
    model = tiny.denoiser(guidance_embed=True)
    student = config(root, "taught", tuning | {"given_frames": GIVEN}, model=model)
    student.teacher = str(tiny.save(root / "plain", tiny.denoiser()))
    with pytest.raises(UsageError, match="first, random, which the teacher .* was not"):
        launch(student, "cpu")
    assert (
        launch(config(root, "teacher", {"name": "flow_matching", "given_frames": GIVEN}), "cpu")
        == 0
    )
    student.teacher = student.init = teacher
    assert launch(student, "cpu") == 0
    card = read_card(root / "taught" / "final")
    assert card["metadata"]["config"]["objective"]["given_frames"] == GIVEN
    assert card["spec"]["given_frames"] == sorted(GIVEN)

    models = {"codec": root / "codec", "teacher": teacher, "student": root / "taught" / "final"}
    words = [*tiny.export_arguments(models, root / "pipeline"), "--frames", "9", "--allow-still"]
    assert export.main(words) == 0
    pipe = VideoPipeline.from_pretrained(root / "pipeline", device="cpu")
    for role in ("student", "teacher"):
        seen, backbone = [], pipe.model(role).backbone
        backbone.register_forward_hook(lambda _, inputs, out, seen=seen: seen.append(inputs[1]))
        picture = np.zeros((1, 16, 24, 3), np.uint8)
        pipe.edit(
            "animate", [picture], "a wall", num_inference_steps=2, use_teacher=role == "teacher"
        )
        assert [(t[:, 0] == 0).all() and (t[:, 1:] > 0).all() for t in seen] == [True] * 2
