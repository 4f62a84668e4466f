"""Steering: measured rightly on oracles, and still there in the bundled student."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tiny
import torch

from vidcm.cli import evaluate as command
from vidcm.diffusion import samplers
from vidcm.diffusion.guidance import CFGDenoiser
from vidcm.diffusion.times import SHIFT, T_START, shifted_timesteps, to_path_time
from vidcm.evaluation import steering
from vidcm.evaluation.eval_set import EvalJob, EvalSet
from vidcm.evaluation.reports import steering_table
from vidcm.lpc.combinations import vocabulary
from vidcm.pipeline import VideoPipeline
from vidcm.rng import SampleRng

COUNT = 5
PROMPTS = [
    "a woman with purple hair in a red dress walks left",
    "a man with a blonde mohawk and chain mail slashes to the right",
    "a dark-skinned girl with white pigtails, a teal shirt and red pants shoots, seen from behind",
]


class Oracle:
    """Brightens the true clip by the scale, the teacher twice as much; a negative prompt that names
    the background shown gives another one, to the teacher only."""

    def __init__(self, folder: Path, truth: EvalSet):
        self.folder, self.truth, self.device = folder, truth, torch.device("cpu")
        self.settings = tiny.settings(phases=4)
        (folder / "pipeline.json").write_text("{}")
        self.steps: set[tuple[bool, int]] = set()

    def __call__(
        self, prompts, *, num_inference_steps, guidance_scale, negative_prompt, seed, use_teacher,
        batch_size, complete_prompt, negative_prompt_method,
    ):  # fmt: skip
        steps, guidance, teacher = num_inference_steps, guidance_scale, use_teacher
        self.steps.add((teacher, steps))
        combinations = [self.truth.combinations[s - self.truth.seed] for s in seed]
        words = self.truth.lpc.words["background"]
        for i, c in enumerate(combinations):
            away = teacher or negative_prompt_method == "nag"
            if away and negative_prompt == f"{words[c['background']]['phrases'][0]} background":
                values = list(words)
                combinations[i] = c | {"background": values[values.index(c["background"]) - 1]}
        frames = self.truth.lpc.render(combinations).int()
        if prompts[0] in self.truth.captions:
            frames = frames + int(guidance - 1) * (1 + teacher)
        return SimpleNamespace(frames=frames.clamp(max=255).to(torch.uint8).numpy())


@pytest.fixture
def pipe(puppets, tmp_path) -> Oracle:
    folder = tmp_path / "pipeline"
    folder.mkdir()
    return Oracle(folder, EvalSet(puppets, COUNT, 3))


def test_movements_and_negatives_get_the_numbers_they_deserve(pipe, puppets, tmp_path):
    job = EvalJob(pipe, pipe.truth, tmp_path / "s.json", "fake", batch_size=2)
    results = steering.measure_steering(job)
    assert json.loads((tmp_path / "s.json").read_text()) == results
    student, teacher = results["rows"]["student"], results["rows"]["teacher"]
    assert pipe.steps == {(False, 4), (True, steering.TEACHER_STEPS)}
    assert student["guidance"]["scales"]["1"] == {"adherence": 1, "moved": 0}
    for scale in (2, 3, 5):
        mine, theirs = (row["guidance"]["scales"][str(scale)] for row in (student, teacher))
        assert mine["moved"] == pytest.approx(scale - 1, rel=0.2)
        assert theirs["moved"] == pytest.approx(2 * mine["moved"], rel=0.2)
        assert 0.9 < mine["cosine"] <= 1 and "cosine" not in theirs
    assert student["negative"] == {"named": 1, "another": 1, "environment": 0}
    nag = results["rows"][steering.NAG]
    assert nag["negative"] == {"named": 0, "another": 1, "environment": 0}
    assert teacher["negative"] == {"named": 0, "another": 1, "environment": 0}
    text = steering_table(results)
    assert "| teacher | 0 | 100 |" in text and "| guidance | 1 | 2 | 3 | 5 |" in text
    assert "| student: cosine with the teacher's movement | - |" in text


def test_the_command_measures_into_a_file(pipe, puppets, tmp_path, capsys, monkeypatch):
    loaded = SimpleNamespace(from_pretrained=lambda name, **options: pipe)
    monkeypatch.setattr("vidcm.pipeline.VideoPipeline", loaded)
    monkeypatch.setattr("vidcm.lpc.dataset.LPC", lambda art, num_frames: puppets)
    page = tmp_path / "page.md"
    page.write_text("<!-- steering:begin -->\n<!-- steering:end -->\n")
    argv = ["--steering", str(tmp_path / "s.json"), "--art", "x", "--seed", "3"]
    argv += ["--count", str(COUNT), "--into", str(page)]
    assert command.main(argv) == 0
    assert "| teacher | 0 | 100 |" in page.read_text() and capsys.readouterr().out == ""
    results = json.loads((tmp_path / "s.json").read_text())
    lost = results["rows"]["teacher"].pop("negative")
    (tmp_path / "s.json").write_text(json.dumps(results))
    pipe.steps.clear()
    assert command.main(argv) == 0  # what is missing is measured again, nothing else
    assert pipe.steps == {(True, steering.TEACHER_STEPS)}
    assert json.loads((tmp_path / "s.json").read_text())["rows"]["teacher"]["negative"] == lost
    assert command.main([*argv, "--rows", "student-1"]) == 2
    assert "--rows has no meaning with --steering" in capsys.readouterr().err
    page.write_text("")
    assert command.main([*argv, "--overwrite"]) == 2
    assert "needs one line <!-- steering:begin -->" in capsys.readouterr().err


# --- the bundled model ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bundled() -> VideoPipeline:
    return VideoPipeline.from_pretrained("lpc-64", device="cpu")


@torch.no_grad()
def test_guidance_moves_the_bundled_student_where_it_moves_its_teacher(bundled):
    """Both from the same noise; the student in one step, the teacher in six."""
    student, teacher = bundled.model("student"), bundled.model("teacher")
    count = len(PROMPTS)
    size = bundled.settings.size
    noise = SampleRng.of_seeds(range(count), bundled.device).normal(
        *bundled.codec.latent_shape(*size)
    )
    times = to_path_time(teacher.path, shifted_timesteps(6, by=SHIFT)).tolist()

    def taught(scale: float) -> torch.Tensor:
        flow = CFGDenoiser(teacher, scale, teacher.encode([""] * count))
        return samplers.euler(flow, noise, times, teacher.encode(PROMPTS))

    def learnt(scale: float) -> torch.Tensor:
        cond = student.encode(PROMPTS, torch.full((count,), scale))
        rng = SampleRng.of_seeds(range(count), bundled.device)
        return samplers.consistency(student, noise * T_START, [T_START], cond, rng)

    there, first = (taught(3.0) - taught(1.0)).flatten(1), learnt(1.0)
    for scale in (2.0, 3.0, 5.0):
        moved = (learnt(scale) - first).flatten(1)
        cosine = torch.nn.functional.cosine_similarity(moved, there)
        assert (cosine > 0.1).all(), (scale, cosine)


def test_negative_prompts_move_the_bundled_student_away(bundled):
    """From the background that its clips show where the prompt leaves it open."""
    words = vocabulary()["attributes"]["background"]
    colors = np.array([entry["rgb"] for entry in words.values()])

    def shown(frames: np.ndarray) -> np.ndarray:
        corner = np.median(frames[:, :6, :6].reshape(-1, 3), axis=0)
        return np.linalg.norm(colors - corner, axis=1)

    nearer = []
    for seed, prompt in enumerate(PROMPTS):
        before = shown(
            bundled(prompt, num_inference_steps=1, guidance_scale=3.0, seed=seed).frames[0]
        )
        named = int(before.argmin())
        negative = f"{list(words.values())[named]['phrases'][0]} background"
        steered = bundled(
            prompt, num_inference_steps=1, guidance_scale=3.0, seed=seed, negative_prompt=negative
        )
        nearer.append(before[named] - shown(steered.frames[0])[named])
    assert np.mean(nearer) < 0 and sum(n < 0 for n in nearer) >= 2
