"""Students of both networks of Wan 2.2 A14B in one export."""

import json

import pytest
import torch
from tiny_public import student as save_student

from vidcm.cli import main
from vidcm.errors import VidcmError
from vidcm.exports import reference as references
from vidcm.exports.run import verify

TIMES = {"phases": 4, "timesteps": [1.0, 0.954, 0.873, 0.697], "sampler": "flow_map"}


def students_of(root, folder, **facts):
    """(pipeline, the two students), each with a scale of its own."""
    return root, [
        save_student(root / part, folder / part, by, guidance_range=[scale, scale], **facts)
        for part, by, scale in (("transformer", 0.02, 4.0), ("transformer_2", 0.03, 3.0))
    ]


@pytest.fixture(scope="module", params=["wan_experts", "wan_image_experts"])
def pair(request, public, tmp_path_factory):
    """Students of phased objectives."""
    return students_of(public(request.param), tmp_path_factory.mktemp("pair"), **TIMES)


def export(pair, output, *words, to: str = "diffusers") -> int:
    _, (high, low) = pair
    both = ["--student", str(high), "--student-2", str(low), "--output", str(output)]
    return main(["export", "--to", to, *both, "--storage", "fp32", *words])


def test_one_folder_has_both_and_samples_as_vidcm(pair, tmp_path):
    from diffusers import DiffusionPipeline

    out = tmp_path / "out"
    assert export(pair, out) == 0
    found = verify(out)
    assert found.keys() == {"4 steps", "decoded", "same seed"} and max(found.values()) < 1e-4
    index = json.loads((out / "model_index.json").read_text())
    before = json.loads((pair[0] / "model_index.json").read_text())
    assert index["boundary_ratio"] == before["boundary_ratio"]
    pipeline = DiffusionPipeline.from_pretrained(out, trust_remote_code=True)
    names = ("transformer", "transformer_2")
    high, low = (getattr(pipeline, name).get_parameter("proj_out.weight") for name in names)
    assert not torch.equal(high, low)
    for name in names:  # the students' weights, not the base's
        old = type(getattr(pipeline, name)).from_pretrained(pair[0] / name)
        new = getattr(pipeline, name)
        assert not torch.equal(old.proj_out.weight, new.proj_out.weight)
    # Either network has a part in the clip.
    pipeline.set_progress_bar_config(disable=True)
    reference = references.load(out)
    for name in names:
        getattr(pipeline, name).proj_out.weight.data.mul_(1.5)
        call = {"num_frames": 9, "height": 64, "width": 64, "guidance_scale": 1.0}
        call |= {"num_inference_steps": 4, "output_type": "latent"}
        call |= {"latents": reference["noise"], "prompt_embeds": reference["tokens"]}
        if "frames" in reference:
            from PIL import Image

            call["image"] = Image.fromarray(reference["frames"][0].numpy())
        other = pipeline(**call).frames
        assert (other - reference["clip.4"]).abs().max() > 1e-3
        getattr(pipeline, name).proj_out.weight.data.div_(1.5)


def test_two_files_for_comfyui(public, tmp_path, capsys):
    pair, out = students_of(public("wan_experts_comfy"), tmp_path / "pair"), tmp_path / "out"
    assert export(pair, out, "--shift", "5", to="comfy") == 0
    files = [f"wan_{level}_noise_4_steps.safetensors" for level in ("high", "low")]
    assert all((out / file).is_file() for file in files)
    found = verify(out)
    assert found.keys() == {"network", "network below"} and max(found.values()) < 1e-5
    graph = json.loads((out / "workflow.json").read_text())
    loaded = [graph[name]["inputs"]["unet_name"] for name in ("model", "model below")]
    above, below = (graph[name]["inputs"] for name in ("sampler above", "sampler"))
    assert loaded == files and above["model"] == ["shift", 0] and below["model"][0] == "shift below"
    # times 1, 0.94, 0.83, 0.63 of shift 5, and the boundary 0.875
    assert (above["start_at_step"], above["end_at_step"], below["start_at_step"]) == (0, 2, 2)
    assert (above["add_noise"], below["add_noise"]) == ("enable", "disable")
    assert below["latent_image"] == ["sampler above", 0]
    for node in graph.values():
        for value in node["inputs"].values():
            assert not isinstance(value, list) or value[0] in graph
    (out / files[1]).write_bytes((out / files[0]).read_bytes())  # the planted mistake
    manifest = json.loads((out / "vidcm.json").read_text())
    manifest["files"][files[1]] = manifest["files"][files[0]]
    (out / "vidcm.json").write_text(json.dumps(manifest))
    with pytest.raises(VidcmError, match="network below differs"):
        verify(out)
    assert export(pair, tmp_path / "one", "--steps", "1", to="comfy") == 2
    assert "one of the two files would have no part" in capsys.readouterr().err


@pytest.mark.parametrize("to", ["lora", "safetensors", "anyflow"])
def test_other_formats_hold_one(pair, tmp_path, capsys, to):
    assert export(pair, tmp_path / "out", "--steps", "4", to=to) == 2
    assert "holds one network" in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_refusals(pair, tmp_path, capsys):
    root, (high, low) = pair
    words = ["export", "--to", "diffusers", "--output", str(tmp_path / "out"), "--student"]
    other = save_student(
        root / "transformer_2", tmp_path / "other", 0.03, guidance_range=[3.0, 3.0]
    )
    for students, message in (
        ([str(high)], "has two networks"),
        ([str(low), "--student-2", str(high)], "must be students of transformer and"),
        ([str(high), "--student-2", str(other)], "same objective"),
        ([str(high), "--student-2", str(low), "--boundary", "0.5"], "--boundary: only for vidcm's"),
    ):
        assert main([*words, *students]) == 2
        assert message in capsys.readouterr().err and not (tmp_path / "out").exists()
