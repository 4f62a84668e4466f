"""Rows of a results table whose clips diffusers makes from an export."""

import pytest

pytest.importorskip("diffusers", reason="public families need diffusers: pip install -e '.[test]'")

import tiny_public
import torch

from vidcm.errors import UsageError
from vidcm.evaluation.diffusers_clips import diffusers_generator
from vidcm.evaluation.row_clips import clip_generator
from vidcm.evaluation.rows import Row
from vidcm.exports.run import export_student
from vidcm.exports.student import load_student
from vidcm.pipeline import VideoPipeline
from vidcm.registry import build
from vidcm.settings import PipelineSettings, StudentSettings, TeacherSettings

PROMPTS, SEEDS = ["a robot", "a red ball rolls to the left", "two foxes"], [3, 5, 7]
TRUE = torch.zeros(3, 9, 16, 32, 3, dtype=torch.uint8)


@pytest.fixture(scope="module")
def wan(tmp_path_factory):
    """A pipeline of vidcm, and the folder of its student's exports."""
    root = tmp_path_factory.mktemp("wan")
    public = tiny_public.save("wan", root / "public")
    student = tiny_public.student(public / "transformer", root / "student")
    settings = PipelineSettings(9, 16, 32, 8.0, StudentSettings(2, 1.0), TeacherSettings(2, 1.0))
    parts = {"codec": public / "vae", "teacher": public / "transformer", "student": student}
    settings.folders = {name: str(folder) for name, folder in parts.items()}
    (root / "pipe").mkdir()
    settings.save(root / "pipe")
    return VideoPipeline.from_pretrained(root / "pipe", device="cpu"), root


def export(root, target: str):
    folder = root / target
    if not folder.exists():
        student = load_student(root / "student", 2, storage="fp32")
        export_student(student, build("export_target", {"name": target}), folder)
    return folder


def test_one_step_of_diffusers_is_the_clip_of_vidcm_in_any_batch(wan):
    pipe, root = wan
    own = clip_generator(pipe, Row.parse("student-1"), 3)(PROMPTS, TRUE, SEEDS)
    folder = export(root, "diffusers")
    for batch in (2, 3):
        made = diffusers_generator(pipe, folder, Row.parse("diffusers-1"), batch)(
            PROMPTS, TRUE, SEEDS
        )
        assert made.evaluations == 1 and made.frames.shape == TRUE.shape
        assert (made.frames.int() - own.frames.int()).abs().max() <= 1
    assert len({clip.numpy().tobytes() for clip in made.frames}) == 3


def test_more_steps_differ_by_the_noise_between_them_alone(wan):
    pipe, root = wan
    folder = export(root, "diffusers")
    one, two = (
        diffusers_generator(pipe, folder, Row.parse(f"diffusers-{n}"), 3)(PROMPTS, TRUE, SEEDS)
        for n in (1, 2)
    )
    assert two.evaluations == 2 and not torch.equal(one.frames, two.frames)
    own = clip_generator(pipe, Row.parse("student-2"), 3)(PROMPTS, TRUE, SEEDS)
    assert own.frames.double().std().item() == pytest.approx(two.frames.double().std().item(), 0.2)


def test_exports_to_others_are_refused(wan):
    pipe, root = wan
    with pytest.raises(UsageError, match="is an export to safetensors"):
        diffusers_generator(pipe, export(root, "safetensors"), Row.parse("diffusers-1"), 3)
    with pytest.raises(UsageError, match="no export of vidcm"):
        diffusers_generator(pipe, root / "public", Row.parse("diffusers-1"), 3)
