"""Students of public models by the ordinary commands: encode, train, export, generate, edit."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from public_runs import CAPTION, run

from vidcm.cli import edit, export, generate, train
from vidcm.config import load
from vidcm.store import load_model, read_card, read_weights


@pytest.mark.parametrize("family", ["wan", "ltx", "cogvideox"])
def test_the_whole_road(tmp_path, public, latents, family):
    code, folder = run(tmp_path, public, latents, family)
    assert code == 0
    card = read_card(folder / "final")
    assert card["metadata"]["student"]["guidance_range"] == [4, 4]
    before, after = read_weights(public(family) / "transformer"), read_weights(folder / "final")
    assert before.keys() == after.keys()
    assert any(not torch.equal(before[k], after[k]) for k in before)

    root, pipe = public(family), tmp_path / "pipe"
    models = [f"--codec={root}/vae", f"--teacher={root}/transformer", f"--student={folder}/final"]
    shape = ["--frames", "9", "--height", "32", "--width", "32", "--allow-still"]
    assert export.main([*models, *shape, "--output", str(pipe)]) == 0
    settings = json.loads((pipe / "pipeline.json").read_text())
    assert settings["student"]["guidance_scale"] == 4
    for steps in ("1", "4"):
        output = tmp_path / f"{steps}.mp4"
        words = ["--checkpoint", str(pipe), "--prompt", CAPTION, "--output", str(output)]
        assert generate.main([*words, "--steps", steps]) == 0 and output.is_file()


def test_editing_with_a_student(tmp_path, public, latents, clips):
    _, folder = run(tmp_path, public, latents)
    root, pipe = public("wan"), tmp_path / "pipe"
    models = [f"--codec={root}/vae", f"--teacher={root}/transformer", f"--student={folder}/final"]
    shape = ["--frames", "9", "--height", "32", "--width", "32", "--allow-still"]
    assert export.main([*models, *shape, "--output", str(pipe)]) == 0
    words = ["inpaint", "--checkpoint", str(pipe), "--input", str(clips / "0.mp4"), "--prompt"]
    output = tmp_path / "edited.mp4"
    box = ["--mask", "8,8,16,16", "--output", str(output)]
    assert edit.main([*words, CAPTION, *box]) == 0 and output.is_file()


OBJECTIVES = {
    "flow_matching": {},
    "latent_consistency": {"guidance_range": [4, 4]},
    "phased_consistency": {"guidance_range": [4, 4]},
    "progressive_distillation": {"guidance_range": [4, 4]},
    "continuous_consistency": {"guidance_range": [4, 4]},
    "distribution_matching": {"guidance_range": [4, 4], "student_update_freq": 2},
    "adversarial": {"guidance_range": [4, 4], "student_update_freq": 2, "blocks": [0, 1]},
    "rcm": {
        "student_update_freq": 2,
        "start": 0.0,
        "consistency": {"name": "consistency_tuning", "guidance_range": [4, 4]},
        "matching": {"steps": [1, 2], "guidance_range": [4, 4]},
    },
}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_objectives(tmp_path, public, latents, name):
    more = {}
    if name == "flow_matching":
        base = f"{public('wan')}/transformer"
        more = {"teacher": None, "model": {"name": "public_denoiser", "base": base}}
    code, folder = run(
        tmp_path, public, latents, objective={"name": name, **OBJECTIVES[name]}, **more
    )
    assert code == 0
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert all(np.isfinite(line["loss"]) for line in lines if "loss" in line)


def test_flow_maps_are_of_two_times(tmp_path, public, latents):
    code, folder = run(
        tmp_path, public, latents, "anyflow",
        objective={"name": "flow_map", "guidance_range": [4, 4]},
    )  # fmt: skip
    assert code == 0
    student = load_model(folder / "final")
    x = torch.randn(1, 16, 3, 4, 4)
    cond, t = student.encode([CAPTION]), torch.tensor([0.9])
    near, far = (student.flow_map(x, t, torch.tensor([s]), cond) for s in (0.8, 0.1))
    assert not torch.allclose(near, far)
    assert torch.allclose(student.flow_map(x, t, t, cond), x, atol=1e-6)


def test_low_rank_students(tmp_path, public, latents):
    lora = {"rank": 2, "alpha": 2, "targets": ["to_q", "to_v"]}
    code, folder = run(tmp_path, public, latents, lora=lora)
    assert code == 0
    before, after = read_weights(public("wan") / "transformer"), read_weights(folder / "final")
    changed = {k for k in before if not torch.equal(before[k], after[k])}
    assert changed and all(k.split(".")[-2] in ("to_q", "to_v") for k in changed)


def test_checkpointing_changes_no_loss(tmp_path, public, latents):
    losses = []
    for i, on in enumerate((False, True)):
        part = tmp_path / str(i)
        part.mkdir()
        code, folder = run(part, public, latents, activation_checkpointing=on)
        assert code == 0
        lines = (folder / "metrics.jsonl").read_text().splitlines()
        losses.append([json.loads(line)["loss"] for line in lines if '"loss"' in line])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"objective": {"name": "consistency_tuning", "guidance_range": [1, 5]}}, "built in"),
        ({"teacher": "nowhere"}, "nowhere is not a model folder"),
        ({"model": {"name": "public_denoiser"}}, "needs base"),
    ],
)
def test_refusals(tmp_path, public, latents, capsys, more, message):
    code, _ = run(tmp_path, public, latents, **more)
    error = capsys.readouterr().err
    assert code == 2 and message in error and error.strip().count("\n") == 0


def test_a_teacher_is_no_student(tmp_path, public, latents, capsys):
    base = f"{public('wan')}/transformer"
    code, _ = run(tmp_path, public, latents, model={"name": "public_denoiser", "base": base})
    assert code == 2 and "model.guidance_scale" in capsys.readouterr().err


def test_a_public_architecture_from_scratch(tmp_path, public, latents):
    config = json.loads((public("wan") / "transformer" / "config.json").read_text())
    model = {
        "name": "public_denoiser",
        "config": config,
        "conditioner": {
            "name": "hashed_words",
            "hidden_size": 32,
            "num_layers": 1,
            "max_words": 12,
        },
    }
    code, folder = run(
        tmp_path, public, latents, model=model, teacher=None, init=None,
        objective={"name": "flow_matching"},
    )  # fmt: skip
    assert code == 0
    model = load_model(folder / "final")
    one, two = model.encode([CAPTION]), model.encode([CAPTION, "a robot " * 8])
    assert one.tokens.shape == (1, 12, 32) and torch.allclose(
        one.tokens[0], two.tokens[0], atol=1e-4
    )


def test_half_precision_keeps_what_diffusers_keeps(tmp_path, public, latents):
    code, folder = run(tmp_path, public, latents, precision="bf16")
    assert code == 0
    base = public("wan") / "transformer"
    teacher, half = load_model(base), load_model(base).store_in(torch.bfloat16)
    kinds = {n: p.dtype for n, p in half.backbone.transformer.named_parameters()}
    assert kinds["blocks.0.attn1.to_q.weight"] == torch.bfloat16
    assert kinds["blocks.0.scale_shift_table"] == torch.float32
    x, t, cond = torch.randn(1, 16, 3, 4, 4), torch.tensor([0.7]), teacher.encode([CAPTION])
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        one, two = teacher.velocity(x, t, cond), half.velocity(x, t, cond)
    assert (one - two).norm() < 0.02 * one.norm()


CONFIGS = sorted(
    path
    for path in (Path(__file__).parents[2] / "configs").glob("*/*.yaml")
    if path.parent.name not in ("cluster", "lpc")
)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_configs_of_public_models_train(tmp_path, public, latents, controlled, path):
    """Each config, with the tiny model of its family in the place of the real one."""
    tiny = {"wan21": "wan", "wan22": "wan_5b" if "5b" in path.parent.name else "wan_experts"}
    name = path.parent.name.split("_")[0]
    family = "wan_image" if path.stem == "i2v" else tiny.get(name, name)
    cached = controlled if path.stem == "i2v" else latents
    root, config = public(family), load(path)
    pipeline, _, part = config.model["base"].rpartition("/")
    assert config.codec == f"{pipeline}/vae" and config.teacher == f"{pipeline}/{part}"
    words = [
        f"model.base={root}/{part}",
        f"teacher={root}/{part}",
        f"codec={root}/vae",
        f"data.path={cached(family)}",
        f"output={tmp_path / 'run'}",
        "steps=2",
        "batch_size=2",
        "zero=0",
        "num_workers=0",
        *([f"init={root}/{part}"] if config.init else []),
        *(["lora.rank=2"] if config.lora else []),
    ]
    assert train.main(["--config", str(path), *words]) == 0
    assert (tmp_path / "run" / "final" / "model.json").is_file()
