"""`vidcm export --to` and `--verify`: what they print, and refusals, after which nothing is there."""

import json
import re
import shutil
from pathlib import Path

import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file
from tiny_public import student as save_student

from vidcm.cli import main
from vidcm.diffusion.denoiser import Denoiser
from vidcm.exports.student import load_student
from vidcm.store import load_model, read_card, read_weights, save_model

WEIGHTS = "diffusion_pytorch_model.safetensors"


def export(student: Path, output: Path, *more: str) -> int:
    return main(["export", "--student", str(student), "--output", str(output), *more])


def refused(capsys) -> str:
    """The one line that a refusal printed."""
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: "), lines
    return lines[0]


def test_the_native_target_is_a_model_folder_in_its_precision(student_of, tmp_path, capsys):
    folder, output = student_of("wan"), tmp_path / "out"
    assert export(folder, output, "--to", "safetensors", "--storage", "fp16") == 0
    assert "network 0.0e+00" in capsys.readouterr().out
    student, card = load_model(output / "student", Denoiser), read_card(output / "student")
    assert card["spec"] == read_card(folder)["spec"]
    own = load_model(folder, Denoiser).state_dict()
    for name, w in student.state_dict().items():
        assert torch.equal(w, own[name].half().float()) or torch.equal(w, own[name]), name
    assert json.loads((output / "vidcm.json").read_text())["storage"] == "float16"
    assert main(["export", "--verify", str(output)]) == 0
    assert "network 0.0e+00" in capsys.readouterr().out


def test_precision_is_a_choice_and_embeddings_of_time_keep_theirs(student_of):
    student = load_student(student_of("wan"), storage="bf16")
    stored = student.weights()
    assert stored["blocks.0.attn1.to_q.weight"].dtype == torch.bfloat16
    assert stored["blocks.0.norm2.weight"].dtype == torch.float32
    assert stored["condition_embedder.time_embedder.linear_1.weight"].dtype == torch.float32


def test_lora_prints_its_errors(student_of, tmp_path, capsys):
    assert export(student_of("wan"), tmp_path / "out", "--to", "lora", "--rank", "2") == 0
    told = capsys.readouterr().out
    assert "blocks.1.attn2.to_k: error 0." in told and "rank 2: outputs differ" in told
    assert "tensors changed that no low-rank update holds, such as norms, biases" in told


@pytest.mark.parametrize(
    "words, message",
    [
        (["--to", "comfy", "--frames", "5"], "--frames: only for vidcm's own pipeline folders"),
        (["--to", "lora", "--storage", "int8"], "use fp32, bf16 or fp16"),
        (["--to", "comfy", "--rank", "3"], "add --to lora"),
        (["--to", "diffusers", "--steps", "9"], "is a student of 1, 2, 3, 4, 5, 6, 7, 8 steps"),
        (["--storage", "fp32"], "missing|a pipeline folder is fp16 or int8"),
    ],
)
def test_options_that_do_not_belong_together(student_of, tmp_path, capsys, words, message):
    assert export(student_of("wan"), tmp_path / "out", *words) == 2
    assert re.search(message, refused(capsys)) and list(tmp_path.iterdir()) == []


def test_what_is_there_stays(student_of, tmp_path, capsys):
    output = tmp_path / "mine"
    output.mkdir()
    (output / "thesis.txt").write_text("x")
    assert export(student_of("wan"), output, "--to", "safetensors") == 2
    assert "holds files" in refused(capsys)
    assert export(student_of("wan"), output, "--to", "safetensors", "--overwrite") == 2
    assert "is no export, and --overwrite would replace all of it" in refused(capsys)
    assert [p.name for p in tmp_path.rglob("*.*")] == ["thesis.txt"]


def test_only_students_of_public_models(public, tmp_path, capsys):
    own = tiny.save(tmp_path / "own", tiny.denoiser(guidance_embed=True))
    assert export(own, tmp_path / "out", "--to", "diffusers") == 2
    assert "holds a Denoiser; this export is for students of public models" in refused(capsys)
    spec = read_card(public("wan") / "transformer")["spec"]
    save_model(tmp_path / "teacher", spec, read_weights(public("wan") / "transformer"))
    assert export(tmp_path / "teacher", tmp_path / "out", "--to", "comfy") == 2
    assert "holds a teacher" in refused(capsys)
    assert export(tmp_path / "nothing", tmp_path / "out", "--to", "comfy") == 2
    assert "no model.json" in refused(capsys) and not (tmp_path / "out").exists()


@pytest.fixture
def copied(public, tmp_path):
    """(a pipeline that may be damaged, a student of it)."""
    root = shutil.copytree(public("wan"), tmp_path / "base")
    return root, save_student(root / "transformer", tmp_path / "student")


def drop_config(root: Path) -> None:
    (root / "transformer" / "config.json").unlink()


def drop_index(root: Path) -> None:
    (root / "model_index.json").unlink()


def drop_codec(root: Path) -> None:
    shutil.rmtree(root / "vae")


def drop_tensor(root: Path) -> None:
    path = root / "vae" / WEIGHTS
    weights = load_file(path)
    weights.pop(sorted(weights)[0])
    save_file(weights, path, {"format": "pt"})


def drop_shard(root: Path) -> None:
    index = {"weight_map": {"a": "diffusion_pytorch_model-00002-of-00002.safetensors"}}
    path = root / "transformer" / f"{WEIGHTS}.index.json"
    path.write_text(json.dumps(index))


def drop_tensor_of_network(root: Path) -> None:
    path = root / "transformer" / WEIGHTS
    weights = load_file(path)
    weights.pop("proj_out.bias")
    save_file(weights, path, {"format": "pt"})


def pickle_text(root: Path) -> None:
    (root / "text_encoder" / "model.safetensors").unlink()
    (root / "text_encoder" / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'false'\ntR.")


@pytest.mark.parametrize(
    "target, damage, message",
    [
        ("diffusers", drop_config, "no config.json"),
        ("diffusers", drop_index, "no model_index.json"),
        ("diffusers", drop_codec, "lacks vae; give the student a whole pipeline"),
        ("diffusers", drop_tensor, "is missing"),
        ("diffusers", pickle_text, "pickled weights .*, which can execute code"),
        ("lora", drop_shard, "lacks diffusion_pytorch_model-00002-of-00002.safetensors"),
        ("lora", drop_tensor_of_network, "lacks: proj_out.bias; copy it again"),
    ],
    ids=lambda v: getattr(v, "__name__", None),
)
def test_a_damaged_base_is_refused(copied, tmp_path, capsys, target, damage, message):
    root, student = copied
    damage(root)
    before = {p: p.stat().st_size for p in tmp_path.rglob("*")}
    assert export(student, tmp_path / "out", "--to", target) in (1, 2)
    assert re.search(message, refused(capsys))
    assert {p: p.stat().st_size for p in tmp_path.rglob("*")} == before


def test_a_hub_id_without_a_network_is_refused(tmp_path, student_of, capsys):
    folder = student_of("wan")
    spec = {**read_card(folder)["spec"], "base": "wan-ai/Wan2.1/transformer"}
    save_model(tmp_path / "student", spec, read_weights(folder))
    assert export(tmp_path / "student", tmp_path / "out", "--to", "diffusers") == 2
    assert "wan-ai/Wan2.1/transformer" in refused(capsys) and not (tmp_path / "out").exists()


def test_a_diffusers_without_the_class_is_refused(student_of, tmp_path, capsys, monkeypatch):
    import diffusers

    monkeypatch.setattr(diffusers, "WanTransformer3DModel", None)
    monkeypatch.delattr(diffusers, "WanTransformer3DModel")
    monkeypatch.setattr(diffusers, "_class_to_module", {}, raising=True)
    assert export(student_of("wan"), tmp_path / "out", "--to", "comfy") == 2
    assert "has no usable WanTransformer3DModel" in refused(capsys)
    assert not (tmp_path / "out").exists()
