"""Students as low-rank updates: what the file holds, and that diffusers and vidcm read it alike."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny_public import student as save_student

from vidcm.cli import main
from vidcm.diffusion.denoiser import Denoiser
from vidcm.errors import UsageError, VidcmError
from vidcm.exports.run import export_student, verify
from vidcm.exports.student import load_student
from vidcm.families.lora import LoraFile
from vidcm.pipeline import VideoPipeline
from vidcm.registry import build
from vidcm.settings import PipelineSettings, StudentSettings, TeacherSettings
from vidcm.store import load_model, read_card, read_weights, save_model

NAME = "lora.safetensors"


def exported(student: Path, output: Path, rank: int | None = None, storage: str = "fp32"):
    target = build("export_target", {"name": "lora", "rank": rank} if rank else {"name": "lora"})
    return export_student(load_student(student, storage=storage), target, output)


@pytest.fixture(scope="module")
def low_rank_student(public, tmp_path_factory):
    """A student that differs from its base by updates of rank 3, as after training with LoRA."""
    base = public("wan") / "transformer"
    generator = torch.Generator().manual_seed(4)
    weights = read_weights(base)
    for name, w in weights.items():
        if w.ndim == 2 and ".blocks." in name and name.endswith(".weight"):
            up, down = (torch.randn(n, 3, generator=generator) for n in w.shape)
            weights[name] = w + 0.05 * up @ down.T
    spec = {**read_card(base)["spec"], "guidance_scale": 3.0}
    folder = tmp_path_factory.mktemp("low_rank") / "final"
    facts = {"guidance_range": [3.0, 3.0], "sampler": "consistency"}
    metadata = {"student": facts, "config": {"lora": {"rank": 3, "alpha": 3}}}
    save_model(folder, spec, weights, metadata=metadata)
    return folder


@pytest.fixture(scope="module")
def lora(low_rank_student, tmp_path_factory):
    """(manifest, folder) of that student's export."""
    folder = tmp_path_factory.mktemp("lora") / "out"
    return exported(low_rank_student, folder), folder


def test_a_student_trained_with_lora_is_held_whole(lora, low_rank_student):
    manifest, folder = lora
    assert manifest["rank"] == 3 and not manifest["left_out"]
    assert max(manifest["layer_errors"].values()) < 1e-5
    assert manifest["output_error"] < 1e-5 < 0.01 < manifest["output_change"]
    student = load_student(low_rank_student)
    base = load_model(student.base, Denoiser).backbone
    updates = LoraFile.read(folder / NAME).updates(base.family, base.transformer)
    for name, w in student.transformer.state_dict().items():
        whole = base.transformer.state_dict()[name] + updates.get(name, 0)
        assert torch.allclose(whole, w, atol=1e-5)


def test_one_file_has_the_names_that_both_programs_read(lora):
    tensors = load_file(lora[1] / NAME)
    layers = {k.removesuffix(".lora_A.weight") for k in tensors if k.endswith(".lora_A.weight")}
    assert "diffusion_model.blocks.0.self_attn.q" in layers
    assert "diffusion_model.blocks.1.ffn.2" in layers
    for layer in layers:
        down, up = tensors[f"{layer}.lora_A.weight"], tensors[f"{layer}.lora_B.weight"]
        assert down.shape[0] == up.shape[1] == 3 == float(tensors[f"{layer}.alpha"])
    with safe_open(lora[1] / NAME, "pt") as file:
        facts = json.loads(file.metadata()["vidcm"])
    assert facts["student"]["shift"] == 3 and facts["base_hash"] == lora[0]["base_hash"]


def test_diffusers_has_the_same_effect_at_two_scales(public, lora):
    """With an alpha that is not the rank, which some readers lose."""
    from diffusers import WanPipeline

    pipeline = WanPipeline.from_pretrained(public("wan"))
    x, text = torch.randn(1, 16, 3, 4, 4), torch.randn(1, 8, 32)

    def run():
        with torch.no_grad():
            return pipeline.transformer(x, torch.tensor([700.0]), text, return_dict=False)[0]

    plain = run()
    tensors = load_file(lora[1] / NAME)
    doubled = {k: 2 * v if k.endswith(".alpha") else v for k, v in tensors.items()}
    save_file(doubled, lora[1].parent / "doubled.safetensors")
    for file, factor in ((lora[1] / NAME, 1), (lora[1].parent / "doubled.safetensors", 2)):
        base = load_model(public("wan") / "transformer", Denoiser).backbone
        updates = LoraFile.read(file).updates(base.family, base.transformer)
        own = {k: v.clone() for k, v in base.transformer.state_dict().items()}
        pipeline.load_lora_weights(str(file.parent), weight_name=file.name, adapter_name="a")
        for scale in (1.0, 0.4):
            pipeline.set_adapters("a", scale)
            base.transformer.load_state_dict(
                {k: v + scale * updates.get(k, torch.zeros(())) for k, v in own.items()}
            )
            with torch.no_grad():
                t = torch.tensor([700.0])
                ours = base.transformer(x, t, text, return_dict=False)[0] - plain
            assert ours.abs().max() > 0.005 * factor
            assert (run() - plain - ours).abs().max() < 1e-4 * ours.abs().max()
        pipeline.delete_adapters("a")


def test_what_a_rank_cannot_hold_is_measured(student_of, tmp_path):
    """Every tensor of this student moved, so that errors fall with the rank to what is left out."""
    small = exported(student_of("wan"), tmp_path / "small", rank=2)
    large = exported(student_of("wan"), tmp_path / "large", rank=32)
    for name, error in small["layer_errors"].items():
        assert 0.05 < error < 1 and error > large["layer_errors"][name]
    assert small["output_error"] > large["output_error"]
    assert large["output_error_left_out"] == pytest.approx(large["output_error"], rel=0.5)
    left = large["left_out"]
    assert {"scale_shift_table", "blocks.0.attn1.norm_q.weight", "proj_out.bias"} <= left.keys()
    assert not any(name.endswith("to_q.weight") for name in left)
    assert verify(tmp_path / "small").keys() == {"effect at scale 1", "effect at scale 0.5"}


def test_updates_are_the_nearest_of_their_rank():
    from vidcm.exports.lora import low_rank

    matrix = torch.randn(40, 24)
    down, up = low_rank(matrix, 5)
    singular = torch.linalg.svdvals(matrix)
    assert (matrix - up @ down).norm() == pytest.approx(float(singular[5:].norm()), rel=1e-4)


def pipeline_folder(public, folder: Path, student: Path) -> Path:
    """A pipeline of vidcm out of a public teacher, its codec and a student."""
    folder.mkdir()
    parts = {"codec": public("wan") / "vae", "teacher": public("wan") / "transformer"}
    settings = PipelineSettings(9, 32, 32, 8.0, StudentSettings(2, 1.0), TeacherSettings(2, 1.0))
    settings.folders = {k: str(v) for k, v in (parts | {"student": student}).items()}
    settings.save(folder)
    return folder


def test_vidcm_makes_the_students_clips_of_its_base_and_the_update(
    public, lora, low_rank_student, student_of, tmp_path
):
    folder = pipeline_folder(public, tmp_path / "pipe", student_of("wan"))
    own = pipeline_folder(public, tmp_path / "own", low_rank_student)
    call = {"output_type": "latent", "seed": 3, "num_inference_steps": 2, "guidance_scale": 3.0}
    pipe = VideoPipeline.from_pretrained(folder, device="cpu")
    teacher = pipe("a robot", use_teacher=True, **call).frames
    pipe.load_lora_weights(lora[1] / NAME)
    assert pipe.settings.student.shift == 3 and pipe.settings.student.num_inference_steps == 4
    expected = VideoPipeline.from_pretrained(own, device="cpu")
    expected.settings.student.shift = 3.0
    expected = expected("a robot", **call).frames
    assert torch.allclose(pipe("a robot", **call).frames, expected, atol=1e-4)
    assert torch.equal(pipe("a robot", use_teacher=True, **call).frames, teacher)


def test_updates_of_others_are_added_at_their_scale(public, student_of, lora, tmp_path):
    file = tmp_path / "style.safetensors"
    save_file(load_file(lora[1] / NAME), file)  # without what vidcm knows of it
    folder = pipeline_folder(public, tmp_path / "pipe", student_of("wan"))
    pipe = VideoPipeline.from_pretrained(folder, device="cpu").load_lora_weights(file, 0.5)
    plain = VideoPipeline.from_pretrained(folder, device="cpu")
    for role in ("student", "teacher"):
        before, after = plain.model(role).backbone, pipe.model(role).backbone
        updates = LoraFile.read(file).updates(before.family, before.transformer)
        name = "blocks.1.attn2.to_v.weight"
        change = after.transformer.get_parameter(name) - before.transformer.get_parameter(name)
        assert torch.allclose(change, 0.5 * updates[name], atol=1e-6)


def test_the_command_takes_updates(public, lora, student_of, tmp_path, capsys):
    folder = pipeline_folder(public, tmp_path / "pipe", student_of("wan"))
    words = ["generate", "--checkpoint", str(folder), "--prompt", "a robot", "--device", "cpu"]
    words += ["--steps", "1", "--scale", "1"]
    frames = []
    for i, more in enumerate(([], ["--lora", f"{lora[1] / NAME}:0.5"])):
        output = str(tmp_path / f"{i}" / "x") + "/"
        assert main([*words, *more, "--output", output]) == 0
        frames.append(sorted(Path(output).glob("*.png"))[-1].read_bytes())
    assert frames[0] != frames[1]
    capsys.readouterr()
    for bad, message in (
        ("nowhere.safetensors", "no such file"),
        (f"{lora[1] / NAME}:much", "expected a number"),
    ):
        with pytest.raises(SystemExit):
            main([*words, "--lora", bad, "--output", str(tmp_path / "y") + "/"])
        assert message in capsys.readouterr().err
    other = ["generate", "--prompt", "a robot", "--lora", str(lora[1] / NAME)]
    assert main([*other, "--output", str(tmp_path / "z") + "/"]) == 2
    told = capsys.readouterr().err.strip().splitlines()[-1]
    assert told.startswith("error:") and "is for public models" in told
    assert not (tmp_path / "z").exists()


def test_updates_of_another_base_are_refused(public, lora, student_of, tmp_path):
    import shutil

    base = shutil.copytree(public("wan"), tmp_path / "base") / "transformer"
    weights = load_file(base / "diffusion_pytorch_model.safetensors")
    weights["proj_out.bias"] += 1
    save_file(weights, base / "diffusion_pytorch_model.safetensors", {"format": "pt"})
    student = save_student(base, tmp_path / "student")
    folder = pipeline_folder(public, tmp_path / "pipe", student)
    settings = PipelineSettings.load(folder)
    settings.folders["teacher"] = str(base)
    settings.save(folder)
    pipe = VideoPipeline.from_pretrained(folder, device="cpu").load_lora_weights(lora[1] / NAME)
    with pytest.raises(UsageError, match="is an update of .*, and .*base.* has other weights"):
        pipe("a robot", num_inference_steps=1)


def test_updates_of_another_architecture_are_refused(public, lora):
    base = load_model(public("ltx") / "transformer", Denoiser).backbone
    with pytest.raises(UsageError, match="for another network than this ltx"):
        LoraFile.read(lora[1] / NAME).updates(base.family, base.transformer)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda t: {"x.diff": torch.zeros(2)}, "has the tensor x.diff; vidcm reads low-rank"),
        (lambda t: {}, "holds no low-rank update"),
        (lambda t: dict(list(t.items())[:1]), "no pair of matrices"),
        (
            lambda t: {k.replace("blocks.1", "blocks.7"): v for k, v in t.items()},
            "is for another network than this wan: it updates diffusion_model.blocks.7",
        ),
        (lambda t: {k: v[..., :2] if v.ndim else v for k, v in t.items()}, "rank|and the network"),
    ],
)
def test_files_that_do_not_fit(public, lora, tmp_path, change, message):
    file = tmp_path / "bad.safetensors"
    tensors = {k: v.contiguous() for k, v in change(load_file(lora[1] / NAME)).items()}
    save_file(tensors, file)
    base = load_model(public("wan") / "transformer", Denoiser).backbone
    with pytest.raises((UsageError, VidcmError), match=message):
        LoraFile.read(file).updates(base.family, base.transformer)


def test_pickles_are_not_opened(tmp_path):
    file = tmp_path / "lora.pt"
    file.write_bytes(b"cos\nsystem\n(S'false'\ntR.")
    with pytest.raises(UsageError, match="can execute code and are not read"):
        LoraFile.read(file)
    (tmp_path / "x.safetensors").write_bytes(file.read_bytes())
    with pytest.raises(VidcmError, match="cannot read"):
        LoraFile.read(tmp_path / "x.safetensors")


def test_families_without_published_names_are_refused(student_of, tmp_path):
    with pytest.raises(UsageError, match="no map .* of cogvideox"):
        exported(student_of("cogvideox"), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("family", ["ltx", "wan_image", "wan_vace"])
def test_updates_of_other_networks(student_of, tmp_path, family):
    """Layers that diffusers reads under their published names; the others are told of."""
    manifest = exported(student_of(family), tmp_path / "out", rank=4)
    assert max(manifest["differences"].values()) < 1e-4
    keys = set(load_file(tmp_path / "out" / NAME))
    assert any(key.endswith(".lora_A.weight") for key in keys)
    if family == "ltx":
        assert not any(key.endswith(".alpha") for key in keys)
        assert "proj_in.weight" in manifest["left_out"]
    if family == "wan_vace":
        assert any(name.startswith("vace_blocks.0.attn1") for name in manifest["left_out"])
