"""Students that jump: the denoiser's map from t to s, its backbone of two times, and the way from
an objective's name through training and export to a sampled clip."""

import json
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch

from vidcm import VideoPipeline
from vidcm.cli import export
from vidcm.config import TrainConfig
from vidcm.diffusion.denoiser import Denoiser
from vidcm.diffusion.samplers import euler, flow_map
from vidcm.diffusion.times import student_timesteps
from vidcm.errors import UsageError, VidcmError
from vidcm.registry import build
from vidcm.rng import SampleRng
from vidcm.schema import from_dict
from vidcm.store import read_card, read_weights, save_model
from vidcm.train.launch import student_settings

NAMES = ["rectified_flow", "trig_flow", "variance_exploding"]
PROMPTS = ["a woman walks left", "an orc"]
RATIOS, ENDS = torch.tensor([0.3, 7.0]), torch.tensor([0.1, 2.0])
both = pytest.mark.parametrize("two_times", [False, True])
every_path = pytest.mark.parametrize("path", NAMES)


def denoiser(path: str = "rectified_flow", shake: bool = True, **options) -> Denoiser:
    torch.manual_seed(0)
    model = build("model", tiny.denoiser(**options) | {"path": {"name": path}}).eval()
    return tiny.shaken(model) if shake else model


def latents() -> torch.Tensor:
    return torch.randn(2, 5, 3, 2, 4)


# --- the map --------------------------------------------------------------------------------------


@both
@every_path
def test_nowhere_and_all_the_way_are_known_whatever_the_weights(path, two_times):
    model, x = denoiser(path, two_times=two_times), latents()
    t, cond = model.path.t_from_sigma(RATIOS), model.encode(PROMPTS)
    torch.testing.assert_close(model.flow_map(x, t, t, cond), x, rtol=1e-4, atol=1e-5)
    assert model.flow_map(x, t, torch.zeros(2), cond).equal(model.predict_x0(x, t, cond))
    assert not model.flow_map(x, t, t / 2, cond).allclose(x, atol=1e-2)


@both
@pytest.mark.parametrize("path", ["rectified_flow", "variance_exploding"])
def test_on_straight_paths_it_is_the_average_velocity(path, two_times):
    model, x = denoiser(path, two_times=two_times), latents()
    t, s = (model.path.t_from_sigma(r) for r in (RATIOS, ENDS))
    cond = model.encode(PROMPTS)
    gap = (t - s).view(-1, 1, 1, 1, 1)
    straight = x - gap * model.velocity(x, t, cond, s)
    torch.testing.assert_close(model.flow_map(x, t, s, cond), straight, rtol=1e-4, atol=1e-4)


@both
def test_all_paths_show_the_network_the_same_jump(two_times):
    x0, eps, found = latents(), latents(), []
    for name in NAMES:
        model = denoiser(name, two_times=two_times)
        t, s = (model.path.t_from_sigma(r) for r in (RATIOS, ENDS))
        x_s = model.flow_map(model.path.add_noise(x0, eps, t), t, s, model.encode(PROMPTS))
        size = torch.hypot(model.path.alpha(s), model.path.sigma(s))
        found.append(x_s / size.view(-1, 1, 1, 1, 1))
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=1e-4, atol=1e-4)


@both
def test_equal_times_per_frame_are_one_time(two_times):
    model, x = denoiser(two_times=two_times, patch_size=[1, 1, 2]), latents()
    cond = model.encode(PROMPTS)
    t, s = (model.path.t_from_sigma(r) for r in (RATIOS, ENDS))
    frames = [u[:, None].expand(-1, 3) for u in (t, s)]
    torch.testing.assert_close(model.flow_map(x, *frames, cond), model.flow_map(x, t, s, cond))


# --- two times ------------------------------------------------------------------------------------


def test_a_fresh_student_of_two_times_is_its_teacher_wherever_it_goes():
    teacher, student = denoiser(), denoiser(shake=False, two_times=True, guidance_embed=True)
    missing = student.load_state_dict(teacher.state_dict(), strict=False)
    assert all(k.startswith(("backbone.span.", "backbone.guidance.")) for k in missing.missing_keys)
    assert any(k.startswith("backbone.span.") for k in missing.missing_keys)
    x, cond, t = latents(), teacher.encode(PROMPTS), torch.tensor([0.3, 0.9])
    for s in (t, t / 3, torch.zeros(2)):
        assert student.velocity(x, t, cond, s).equal(teacher.velocity(x, t, cond))
        assert student.flow_map(x, t, s, cond).equal(teacher.flow_map(x, t, s, cond))


def test_the_second_time_is_heard_and_the_velocity_is_its_limit():
    model, x, t = denoiser(two_times=True), latents(), torch.tensor([0.3, 0.9])
    cond = model.encode(PROMPTS)
    still = model.velocity(x, t, cond)
    assert still.equal(model.velocity(x, t, cond, t))
    assert not still.allclose(model.velocity(x, t, cond, t / 2), atol=1e-3)
    torch.testing.assert_close(model.velocity(x, t, cond, t - 1e-5), still, rtol=1e-3, atol=1e-3)


def test_a_denoiser_of_one_time_does_not_hear_it():
    model, x, t = denoiser(), latents(), torch.tensor([0.3, 0.9])
    cond = model.encode(PROMPTS)
    assert not model.two_times and denoiser(two_times=True).two_times
    assert model.velocity(x, t, cond, t / 2).equal(model.velocity(x, t, cond))


def test_on_a_straight_path_ddim_is_euler():
    model, times = denoiser(), student_timesteps(4)
    rng = SampleRng(3, range(2))
    noise, cond = rng.normal(5, 3, 2, 4), model.encode(PROMPTS)
    walked = euler(model, noise * times[0], [*times, 0.0], cond)
    jumped = flow_map(model, noise * times[0], times, cond)
    torch.testing.assert_close(jumped, walked, rtol=1e-3, atol=1e-4)


# --- from an objective to a clip ------------------------------------------------------------------

OBJECTIVES = {
    "latent_consistency": {"name": "latent_consistency", "intervals": 12},
    "phased_consistency": {"name": "phased_consistency", "phases": 3, "intervals": 12},
    "progressive_distillation": {"name": "progressive_distillation", "steps": 3, "halvings": 2},
    "flow_map": {"name": "flow_map"},
}


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> dict[str, Path]:
    return tiny.parts(tmp_path_factory.mktemp("models"))


def exported(models: dict[str, Path], name: str, folder: Path, steps: int = 2) -> int:
    """Export a student whose card says that it was trained by an objective."""
    spec = tiny.denoiser(guidance_embed=True, **({"two_times": True} if name == "flow_map" else {}))
    shaken = tiny.save(folder / "shaken", spec, seed=5)
    objective = build("objective", OBJECTIVES[name], teacher=None)
    made = student_settings(objective, build("model", spec))
    save_model(folder / "student", spec, read_weights(shaken), metadata=made)
    words = tiny.export_arguments(models | {"student": folder / "student"}, folder / "pipeline")
    words[words.index("--steps") + 1] = str(steps)
    return export.main(words)


@pytest.mark.parametrize("name, steps", [("phased_consistency", 3), ("flow_map", 2)])
def test_students_are_sampled_as_they_were_trained(models, tmp_path, name, steps):
    assert exported(models, name, tmp_path, steps) == 0
    settings = json.loads((tmp_path / "pipeline" / "pipeline.json").read_text())["student"]
    assert settings["sampler"] == "flow_map" and settings.get("phases") == (
        3 if steps == 3 else None
    )
    pipe = VideoPipeline.from_pretrained(tmp_path / "pipeline", device="cpu")
    clip = pipe("an orc", seed=4)
    assert clip.evaluations == steps and clip.frames.std() > 1
    assert np.array_equal(pipe("an orc", seed=4).frames, clip.frames)
    model = pipe.model("student")
    rng = SampleRng(4, [0])
    noise = rng.normal(*pipe.codec.latent_shape(5, 16, 24))
    times = settings.get("timesteps") or student_timesteps(steps)
    with torch.no_grad():
        cond = model.encode(["an orc"], torch.full((1,), float(settings["guidance_scale"])))
        video = pipe.codec.decode(flow_map(model, noise * times[0], times, cond))
    by_hand = ((video.clamp(-1, 1) + 1) * 127.5).round()[0].permute(1, 2, 3, 0)
    assert (by_hand - torch.from_numpy(clip.frames[0])).abs().max() <= 1
    away = pipe("an orc", seed=4, negative_prompt="a man in red")
    assert away.evaluations == 3 * steps and not np.array_equal(away.frames, clip.frames)


def test_a_latent_consistency_student_is_sampled_as_ever(models, tmp_path):
    assert exported(models, "latent_consistency", tmp_path) == 0
    settings = json.loads((tmp_path / "pipeline" / "pipeline.json").read_text())["student"]
    assert settings["sampler"] == "consistency" and "phases" not in settings


def test_phases_allow_one_number_of_steps(models, tmp_path, capsys):
    assert exported(models, "phased_consistency", tmp_path, 4) == 2
    assert "give --steps 3" in capsys.readouterr().err and not (tmp_path / "pipeline").exists()
    assert exported(models, "phased_consistency", tmp_path, 3) == 0
    pipe = VideoPipeline.from_pretrained(tmp_path / "pipeline", device="cpu")
    with pytest.raises(UsageError, match="3 phases of one step each; use 3"):
        pipe("an orc", num_inference_steps=4)


def test_an_unknown_sampler_is_refused(models, tmp_path):
    assert exported(models, "flow_map", tmp_path) == 0
    path = tmp_path / "pipeline" / "pipeline.json"
    settings = json.loads(path.read_text())
    settings["student"]["sampler"] = "leap"
    path.write_text(json.dumps(settings))
    with pytest.raises(
        VidcmError, match="the sampler 'leap'; this version knows consistency, flow_map"
    ):
        VideoPipeline.from_pretrained(tmp_path / "pipeline")


@pytest.fixture(scope="module")
def clips(tmp_path_factory) -> Path:
    from vidcm.media.write import write_clip

    folder = tmp_path_factory.mktemp("clips")
    lines = []
    for i in range(4):
        write_clip(np.full((5, 16, 24, 3), 60 * i, np.uint8), folder / f"{i}.mp4", fps=8)
        lines.append(json.dumps({"file_name": f"{i}.mp4", "text": "a wall"}))
    (folder / "metadata.jsonl").write_text("\n".join(lines))
    return folder


def config(name: str, models: dict[str, Path], clips: Path, output: Path, **options) -> TrainConfig:
    data = {"name": "folder", "root": str(clips), "num_frames": 5, "size": [16, 24], "fps": 8}
    keys = {
        "model": tiny.denoiser(guidance_embed=True, **options),
        "objective": OBJECTIVES[name],
        "data": data,
        "output": str(output),
        "teacher": str(models["teacher"]),
        "codec": str(models["codec"]),
        "steps": 2,
        "batch_size": 2,
        "sample_every": 2,
        "num_workers": 0,
    }
    return from_dict(TrainConfig, keys, "here")


@pytest.mark.parametrize("name", OBJECTIVES)
def test_training_draws_samples_as_the_student_is_sampled(models, clips, tmp_path, name):
    from vidcm.train.launch import launch

    options = {"two_times": True} if name == "flow_map" else {}
    assert launch(config(name, models, clips, tmp_path / "run", **options), "cpu") == 0
    text = (tmp_path / "run" / "metrics.jsonl").read_text("utf-8")
    logs = [json.loads(line) for line in text.splitlines()]
    drawn = {k for entry in logs for k in entry if k.startswith("preview/motion_ratio_")}
    steps = (3,) if name in ("phased_consistency", "progressive_distillation") else (1, 2, 4)
    assert drawn == {f"preview/motion_ratio_{n}" for n in steps}
    assert (
        read_card(tmp_path / "run" / "final")["metadata"]["config"]["objective"] == OBJECTIVES[name]
    )


def test_a_student_of_one_time_cannot_learn_a_flow_map(models, clips, tmp_path):
    from vidcm.train.launch import launch

    with pytest.raises(UsageError, match="set model.backbone.two_times to true"):
        launch(config("flow_map", models, clips, tmp_path / "run"), "cpu")
