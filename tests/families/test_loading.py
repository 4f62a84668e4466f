"""What diffusers loads without a word is refused here, in one line, before anything runs."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from vidcm.diffusion.denoiser import Denoiser
from vidcm.errors import UsageError, VidcmError
from vidcm.pipeline import VideoPipeline
from vidcm.registry import TABLE
from vidcm.store import load_model, read_card, weights_hash

WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture
def copy(public, tmp_path):
    return shutil.copytree(public("wan"), tmp_path / "copy")


def change(path, edit):
    data = json.loads(path.read_text())
    edit(data)
    path.write_text(json.dumps(data))


def refused(kind, match, action):
    with pytest.raises(kind, match=match) as caught:
        action()
    assert "\n" not in str(caught.value)


def load(folder, part="transformer"):
    return load_model(folder / part)


def test_a_missing_tensor(copy):
    path = copy / "transformer" / WEIGHTS
    weights = load_file(path)
    del weights["blocks.1.attn2.to_q.weight"]
    save_file(weights, path)
    refused(VidcmError, "blocks.1.attn2.to_q.weight is missing", lambda: load(copy))


def test_an_unknown_tensor_and_one_of_another_shape(copy):
    path = copy / "vae" / WEIGHTS
    weights = load_file(path)
    save_file(weights | {"more": torch.zeros(2)}, path)
    refused(VidcmError, "more is unknown", lambda: load(copy, "vae"))
    save_file(weights | {"quant_conv.bias": torch.zeros(2)}, path)
    refused(VidcmError, "quant_conv.bias is", lambda: load(copy, "vae"))


def test_a_text_tower_in_part(copy):
    path = copy / "text_encoder" / "model.safetensors"
    weights = load_file(path)
    gone = next(k for k in weights if k.endswith("layer.0.SelfAttention.q.weight"))
    del weights[gone]
    save_file(weights, path)
    model = load(copy)
    refused(VidcmError, "lacks", lambda: model.encode(["a robot"]))


def test_shards(copy):
    path = copy / "transformer" / WEIGHTS
    weights = load_file(path)
    names = sorted(weights)
    parts = {"a.safetensors": names[:5], "b.safetensors": names[5:]}
    for name, part in parts.items():
        save_file({k: weights[k] for k in part}, path.with_name(name))
    path.unlink()
    refused(VidcmError, "2 safetensors files and no index", lambda: load(copy))
    index = {"weight_map": {k: name for name, part in parts.items() for k in part}}
    (path.parent / f"{WEIGHTS}.index.json").write_text(json.dumps(index))
    found = load(copy).backbone.transformer.state_dict()
    assert all(torch.equal(found[k], v) for k, v in weights.items())
    (path.parent / "b.safetensors").unlink()
    refused(VidcmError, "lacks b.safetensors", lambda: load(copy))


def test_pickles_are_not_opened(copy):
    path = copy / "transformer" / WEIGHTS
    path.rename(path.with_name("diffusion_pytorch_model.bin"))
    refused(UsageError, "pickled weights.*can execute code", lambda: load(copy))
    path.with_name("diffusion_pytorch_model.bin").unlink()
    refused(VidcmError, "has no weights", lambda: load(copy))


def test_truncated_weights(copy):
    path = copy / "transformer" / WEIGHTS
    path.write_bytes(path.read_bytes()[:-100])
    refused(VidcmError, "cannot read", lambda: load(copy))


@pytest.mark.parametrize(
    ("part", "edit", "message"),
    [
        ("transformer", lambda c: c.update(_class_name="WanTransformer3DModle"), "did you mean"),
        ("transformer", lambda c: c.update(_class_name="HunyuanVideoTransformer3DModel"), "family"),
        ("transformer", lambda c: c.update(num_layers=3), "blocks.2.* is missing"),
        ("transformer", lambda c: c.update(num_layers="many"), "cannot be built"),
    ],
)
def test_configs_that_do_not_fit(copy, part, edit, message):
    change(copy / part / "config.json", edit)
    refused((UsageError, VidcmError), message, lambda: load(copy, part))


def test_folders_that_are_something_else(copy, tmp_path):
    refused(UsageError, "give its folder transformer or vae", lambda: load_model(copy))
    refused(UsageError, "not a model folder", lambda: load_model(tmp_path / "none"))
    refused(UsageError, "expected a VideoCodec", lambda: VideoPipeline.from_pretrained(swap(copy)))


def swap(copy):
    shutil.rmtree(copy / "vae")
    shutil.copytree(copy / "transformer", copy / "vae")
    return copy


def test_the_hub_offline(monkeypatch):
    import time

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    import huggingface_hub  # noqa: F401

    start = time.monotonic()
    refused(
        UsageError,
        "cannot get hf://nobody/nothing/vae",
        lambda: read_card("hf://nobody/nothing/vae"),
    )
    assert time.monotonic() - start < 1
    refused(UsageError, "no name of the hub", lambda: read_card("hf://nobody"))


def test_an_older_diffusers(copy, monkeypatch):
    monkeypatch.setitem(TABLE["family"], "WanTransformer4DModel", "vidcm.families.wan:Wan")
    config = copy / "transformer" / "config.json"
    change(config, lambda c: c.update(_class_name="WanTransformer4DModel"))
    refused(UsageError, "has no usable WanTransformer4DModel.*upgrade", lambda: load(copy))


def test_the_hash_is_of_weights_and_config(copy):
    before = weights_hash(copy / "vae")
    assert before == weights_hash(copy / "vae")
    change(copy / "vae" / "config.json", lambda c: c["latents_mean"].__setitem__(0, 0.7))
    assert weights_hash(copy / "vae") != before


def test_a_folder_of_diffusers_is_a_pipeline_without_a_student(copy):
    pipe = VideoPipeline.from_pretrained(copy)
    assert pipe.settings.size == (81, 480, 832) and pipe.settings.teacher.shift == 3.0
    refused(UsageError, "has no student.*use the teacher", lambda: pipe("a robot"))
    options = {"num_frames": 5, "height": 32, "width": 48, "use_teacher": True, "seed": 5}
    clips = pipe("a robot dances .", num_inference_steps=2, **options)
    assert clips.frames.shape == (1, 5, 32, 48, 3)
    again = pipe("a robot dances .", num_inference_steps=2, **options)
    assert (clips.frames == again.frames).all()


def test_processors_of_other_networks_stay(public):
    from diffusers import WanTransformer3DModel
    from diffusers.models.attention_dispatch import _AttentionBackendRegistry

    before = _AttentionBackendRegistry._active_backend
    stock = WanTransformer3DModel.from_pretrained(public("wan") / "transformer")
    ours: Denoiser = load_model(public("wan") / "transformer")
    assert type(stock.blocks[0].attn1.processor) is not type(
        ours.backbone.transformer.blocks[0].attn1.processor
    )
    assert _AttentionBackendRegistry._active_backend is before
