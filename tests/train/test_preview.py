"""What a preview asks of a student is what the student was taught."""

import pytest
import tiny
import torch

from vidcm.config import TrainConfig
from vidcm.diffusion.denoiser import Denoiser
from vidcm.registry import build
from vidcm.store import load_model, save_model
from vidcm.train import denoiser_task as module
from vidcm.train import preview as sheets

CPU = torch.device("cpu")
STUDENTS = {"name": "consistency_tuning"}


@pytest.mark.parametrize(
    "options, scale",
    [({}, 3.0), ({"guidance_range": [1.0, 2.0]}, 2.0), ({"guidance_range": [4.0, 6.0]}, 4.0)],
    ids=["inside", "below", "above"],
)
def test_previews_stay_inside_the_range_of_scales(tmp_path, monkeypatch, options, scale):
    models = tiny.parts(tmp_path)
    config = TrainConfig(
        model=tiny.denoiser(guidance_embed=True),
        objective={"name": "consistency_tuning", **options},
        data={"name": "clips"},
        output=str(tmp_path / "run"),
        steps=1,
        teacher=str(models["teacher"]),
        codec=str(models["codec"]),
        preview_prompts=["an orc", "a lady"],
    )
    made = module.denoiser_task(config, build("model", config.model), tiny.Clips(), CPU)
    told, walked = [], []
    encode, guided = Denoiser.encode, sheets.CFGDenoiser

    def heard(self, prompts, guidance=None):
        told.extend([] if guidance is None else guidance.tolist())
        return encode(self, prompts, guidance)

    def walks(flow, by, negative):
        walked.append(by)
        return guided(flow, by, negative)

    monkeypatch.setattr(Denoiser, "encode", heard)
    monkeypatch.setattr(sheets, "CFGDenoiser", walks)
    made.preview(made.model.state_dict(), tmp_path / "sheet.png")
    assert told == [scale, scale] and walked == [scale]


def test_a_frozen_teacher_is_sampled_once_in_a_run(tmp_path, monkeypatch):
    """The second preview draws the same teacher, and evaluates the student alone."""
    models = tiny.parts(tmp_path)
    config = TrainConfig(
        model=tiny.denoiser(guidance_embed=True),
        objective={"name": "consistency_tuning"},
        data={"name": "clips"},
        output=str(tmp_path / "run"),
        steps=1,
        teacher=str(models["teacher"]),
        codec=str(models["codec"]),
        preview_prompts=["an orc", "a lady"],
    )
    task = module.denoiser_task(config, build("model", config.model), tiny.Clips(), CPU)
    calls, predict = [], Denoiser.predict

    def count(self, x_t, t, cond, s=None):
        calls.append(self)
        return predict(self, x_t, t, cond, s)

    monkeypatch.setattr(Denoiser, "predict", count)
    numbers, counts = [], []
    for name in ("first", "second"):
        calls.clear()
        numbers.append(task.preview(task.model.state_dict(), tmp_path / f"{name}.png"))
        counts.append(len(calls))
    student = sum(sheets.STUDENT_STEPS)
    assert counts == [sheets.TEACHER_STEPS + student, student]
    assert numbers[0] == numbers[1]
    assert (tmp_path / "first.png").read_bytes() == (tmp_path / "second.png").read_bytes()


def test_large_clips_are_drawn_one_by_one(tmp_path, monkeypatch):
    models = tiny.parts(tmp_path)
    config = TrainConfig(
        model=tiny.denoiser(guidance_embed=True),
        objective={"name": "consistency_tuning"},
        data={"name": "clips"},
        output=str(tmp_path / "run"),
        steps=1,
        teacher=str(models["teacher"]),
        codec=str(models["codec"]),
        preview_prompts=["an orc", "a lady", "a man"],
    )
    sizes, predict = set(), Denoiser.predict

    def measure(self, x_t, t, cond, s=None):
        sizes.add(len(x_t))
        return predict(self, x_t, t, cond, s)

    monkeypatch.setattr(Denoiser, "predict", measure)
    sheets_of = []
    for pixels in (2**21, 1):
        sizes.clear()
        monkeypatch.setattr(sheets, "BATCH_PIXELS", pixels)
        task = module.denoiser_task(config, build("model", config.model), tiny.Clips(), CPU)
        state = (
            torch.load(tmp_path / "w.pt")
            if (tmp_path / "w.pt").exists()
            else task.model.state_dict()
        )
        torch.save(state, tmp_path / "w.pt")
        sheets_of.append(task.preview(state, tmp_path / f"{pixels}.png"))
        assert sizes == ({6, 3} if pixels > 1 else {2, 1})
    assert sheets_of[0] == pytest.approx(sheets_of[1], rel=1e-3)


def test_a_student_that_is_trained_on_is_compared_with_what_it_was(tmp_path):
    models = tiny.parts(tmp_path)
    spec = tiny.denoiser(guidance_embed=True)
    facts = {"config": {"objective": STUDENTS}}
    weights = build("model", spec).state_dict()
    save_model(tmp_path / "student", spec, weights, metadata=facts)
    config = TrainConfig(
        model=spec,
        objective=STUDENTS,
        data={"name": "clips"},
        output=str(tmp_path / "run"),
        steps=1,
        init=str(tmp_path / "student"),
        teacher=str(models["teacher"]),
        codec=str(models["codec"]),
        preview_prompts=["an orc", "a lady"],
    )
    student = load_model(tmp_path / "student", Denoiser)
    task = module.denoiser_task(config, student, tiny.Clips(), CPU)
    same = task.preview(student.state_dict(), tmp_path / "same.png")
    assert [same[f"preview/drift_{n}"] for n in (1, 2, 4)] == [0, 0, 0]
    other = {k: v + 0.1 * torch.randn_like(v) for k, v in student.state_dict().items()}
    moved = task.preview(other, tmp_path / "moved.png")
    assert all(moved[f"preview/drift_{n}"] > 0 for n in (1, 2, 4))


def test_a_student_that_begins_as_its_teacher_has_no_drift(tmp_path):
    models = tiny.parts(tmp_path)
    config = TrainConfig(
        model=tiny.denoiser(guidance_embed=True),
        objective=STUDENTS,
        data={"name": "clips"},
        output=str(tmp_path / "run"),
        steps=1,
        init=str(models["teacher"]),
        teacher=str(models["teacher"]),
        codec=str(models["codec"]),
        preview_prompts=["an orc"],
    )
    task = module.denoiser_task(config, build("model", config.model), tiny.Clips(), CPU)
    numbers = task.preview(task.model.state_dict(), tmp_path / "sheet.png")
    assert "preview/healthy" in numbers and not [name for name in numbers if "drift" in name]
