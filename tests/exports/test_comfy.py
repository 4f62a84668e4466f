"""The file for ComfyUI is Wan in its authors' layout, by diffusers' own reader of that layout."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from tiny_public import WAN

from vidcm.errors import UsageError, VidcmError
from vidcm.exports.run import export_student, verify
from vidcm.exports.student import load_student
from vidcm.families import original
from vidcm.families.original import original_names
from vidcm.families.wan import Wan
from vidcm.registry import build

REPO = Path(__file__).parents[2]


def target():
    return build("export_target", {"name": "comfy"})


@pytest.fixture(scope="module")
def exported(student_of, tmp_path_factory):
    """(student, its export)."""
    student = load_student(student_of("wan_comfy"), storage="fp32")
    output = tmp_path_factory.mktemp("comfy") / "out"
    export_student(student, target(), output)
    return student, output


def test_every_tensor_comes_back_through_diffusers(exported):
    from diffusers import WanTransformer3DModel

    student, folder = exported
    file = folder / "wan_4_steps.safetensors"
    network = WanTransformer3DModel.from_single_file(str(file), config=str(folder))
    theirs, ours = network.state_dict(), student.transformer.state_dict()
    assert theirs.keys() == ours.keys()
    assert all(torch.equal(theirs[k], ours[k]) for k in ours)


def test_names_are_the_published_ones_without_a_prefix(exported):
    names = set(load_file(exported[1] / "wan_4_steps.safetensors"))
    assert {
        "head.modulation",
        "head.head.weight",
        "patch_embedding.weight",
        "time_projection.1.weight",
        "blocks.1.modulation",
        "blocks.1.self_attn.q.weight",
        "blocks.1.cross_attn.norm_k.weight",
        "blocks.1.norm3.weight",
        "blocks.1.ffn.2.bias",
    } <= names
    assert not any(n.startswith(("model.", "diffusion_model.")) for n in names)


@pytest.mark.parametrize(
    ("family", "names", "nodes"),
    [
        (
            "wan_image_comfy",
            {"img_emb.proj.1.weight", "blocks.1.cross_attn.k_img.weight"},
            {"WanImageToVideo", "LoadImage", "CLIPVisionEncode"},
        ),
        (
            "wan_vace_comfy",
            {"vace_patch_embedding.weight", "vace_blocks.0.before_proj.weight"},
            {"WanVaceToVideo", "GetVideoComponents"},
        ),
        (
            "ltx_comfy",
            {"patchify_proj.weight", "transformer_blocks.0.attn1.q_norm.weight"},
            {"EmptyLTXVLatentVideo", "ModelSamplingAuraFlow"},
        ),
    ],
)
def test_other_networks_come_back_through_diffusers(student_of, tmp_path, family, names, nodes):
    """Names, the network's output with what it reads beside text, and a graph without loose ends."""
    student, out = load_student(student_of(family), storage="fp32"), tmp_path / "out"
    manifest = export_student(student, target(), out)
    assert manifest["differences"]["network"] < 1e-5
    assert verify(out)["network"] < 1e-5
    written = set(load_file(out / manifest["weights"]))
    assert names <= written and len(written) == len(student.transformer.state_dict())
    graph = json.loads((out / "workflow.json").read_text())
    assert nodes <= {node["class_type"] for node in graph.values()}
    for node in graph.values():
        for value in node["inputs"].values():
            assert not isinstance(value, list) or value[0] in graph


def test_a_branch_of_other_layers_is_refused(student_of, tmp_path):
    student = load_student(student_of("wan_vace_comfy"))
    student.transformer.register_to_config(vace_layers=[0, 3])
    with pytest.raises(UsageError, match="spreads the layers of VACE's branch evenly"):
        export_student(student, target(), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_codec_of_other_strides_is_refused(student_of, tmp_path):
    student = load_student(student_of("ltx_comfy"))
    student.family.strides = (4, 4)
    with pytest.raises(UsageError, match="8 frames and 32 pixels .* has 4 and 4"):
        export_student(student, target(), tmp_path / "out")


@pytest.mark.parametrize("image", [False, True], ids=["text", "image"])
def test_vace_and_image_to_video_have_published_names_too(image):
    """Compared with diffusers' conversion, which takes the published names as they are."""
    from diffusers import WanTransformer3DModel, WanVACETransformer3DModel
    from diffusers.loaders.single_file_utils import convert_wan_transformer_to_diffusers

    if image:
        network = WanTransformer3DModel(**WAN, image_dim=16, added_kv_proj_dim=24)
    else:
        options = {**WAN, "num_layers": 4, "vace_layers": [0, 2], "vace_in_channels": 96}
        network = WanVACETransformer3DModel(**options)
    weights = network.state_dict()
    names = original_names(Wan(), weights)
    assert len(set(names.values())) == len(weights)
    back = convert_wan_transformer_to_diffusers({names[k]: v for k, v in weights.items()})
    assert back.keys() == weights.keys()
    assert all(torch.equal(back[k], weights[k]) for k in weights)


def test_metadata_and_workflow_say_how_to_sample(exported):
    _, folder = exported
    with safe_open(folder / "wan_4_steps.safetensors", "pt") as file:
        metadata = file.metadata()
    assert {k: metadata[k] for k in ("steps", "shift", "guidance", "sampler", "scheduler")} == {
        "steps": "4",
        "shift": "3.0",
        "guidance": "1.0",
        "sampler": "lcm",
        "scheduler": "simple",
    }
    assert json.loads(metadata["vidcm"])["timesteps"] == pytest.approx([1, 0.9, 0.75, 0.5])
    graph = json.loads((folder / "workflow.json").read_text())
    sampler = graph["sampler"]["inputs"]
    assert (sampler["steps"], sampler["cfg"], sampler["sampler_name"]) == (4, 1.0, "lcm")
    assert graph[sampler["model"][0]] == {
        "class_type": "ModelSamplingSD3",
        "inputs": {"model": ["model", 0], "shift": 3.0},
    }
    assert graph["model"]["inputs"]["unet_name"] == "wan_4_steps.safetensors"
    for node in graph.values():  # every link ends at a node
        for value in node["inputs"].values():
            assert not isinstance(value, list) or value[0] in graph


def test_the_shift_gives_the_students_times(student_of):
    """ComfyUI's `simple`: every n-th of a thousand shifted times, from the last on."""
    from vidcm.exports.comfy import comfy_shift

    for steps, facts in ((4, {}), (1, {}), (2, {"lowest_sigma": 4.0})):
        student = load_student(student_of("wan_comfy", **facts), steps)
        shift = comfy_shift(student)
        grid = torch.arange(1, 1001) / 1000
        grid = shift * grid / (1 + (shift - 1) * grid)
        simple = [float(grid[-(1 + int(k * 1000 / steps))]) for k in range(steps)]
        assert simple == pytest.approx(student.times(steps).tolist(), abs=1e-6)


def test_phased_students_are_sampled_without_fresh_noise(student_of, tmp_path):
    times = [1.0, 5 / 6]
    facts = {"sampler": "flow_map", "phases": 2, "timesteps": times}
    student = load_student(student_of("wan_comfy", **facts), 2)
    sampling = export_student(student, target(), tmp_path / "out")["comfy"]
    assert sampling["sampler"] == "euler" and sampling["shift"] == pytest.approx(5.0)


@pytest.mark.parametrize(
    "name, facts, message",
    [
        ("wan", {}, "ComfyUI knows attention heads of width 128 only, and the student has 12"),
        ("ltx", {}, "numbers of attention heads of 32 only, and the student has 4"),
        ("cogvideox", {}, "exports Wan and LTX-Video to ComfyUI, not cogvideox"),
        ("wan_image", {}, "attention heads of width 128"),
        ("wan_comfy", {"lowest_sigma": 9.0}, "times 1, .* are of no shift.*give --shift"),
    ],
)
def test_what_comfyui_would_compute_otherwise_is_refused(
    student_of, tmp_path, name, facts, message
):
    with pytest.raises(UsageError, match=message):
        export_student(load_student(student_of(name, **facts)), target(), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_wrong_map_is_noticed(student_of, tmp_path, monkeypatch):
    """The planted mistake: the second and third norm of a block are left where diffusers has them."""
    rules = tuple(r for r in original.WAN if "norm" not in r[0] or "image" in r[0])
    monkeypatch.setitem(original.RULES, "wan", rules)
    student = load_student(student_of("wan_comfy"))
    with pytest.raises(VidcmError, match="cannot read|lacks|something else"):
        export_student(student, target(), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_verify_notices_a_file_that_was_cut(exported, tmp_path):
    import shutil

    assert verify(exported[1])["network"] < 1e-5
    copy = shutil.copytree(exported[1], tmp_path / "copy")
    file = copy / "wan_4_steps.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(VidcmError, match="truncated or altered"):
        verify(copy)


def test_the_comparison_with_a_real_comfyui_says_that_it_needs_one(exported):
    tool = [sys.executable, "tools/check_comfy.py", "--export", str(exported[1])]
    done = subprocess.run(tool, cwd=REPO, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.startswith("skipped: give --comfyui")
    done = subprocess.run([*tool, "--comfyui", "."], cwd=REPO, capture_output=True, text=True)
    assert done.returncode == 2 and "is no ComfyUI" in done.stderr
