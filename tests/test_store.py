"""Model folders: whole or refused, never half-written."""

import json
import os
import struct
import subprocess
import sys
from pathlib import Path

import pytest
import tiny
import torch

from vidcm.codecs.causal_vae import CausalVAE
from vidcm.diffusion.denoiser import Denoiser
from vidcm.errors import VidcmError
from vidcm.registry import build
from vidcm.store import FORMAT, load_model, load_weights, read_card, read_weights, save_model

ROOT = Path(__file__).parents[1]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tiny.save(tmp_path / "model", tiny.denoiser())


def edit(folder: Path, **changes) -> None:
    card = json.loads((folder / "model.json").read_text()) | changes
    (folder / "model.json").write_text(json.dumps(card))


def refused(folder: Path, kind: type | None = None) -> VidcmError:
    with pytest.raises(VidcmError) as caught:
        load_model(folder, kind)
    assert "\n" not in str(caught.value)
    return caught.value


# --- round trip -----------------------------------------------------------------------------------


def test_round_trip(folder):
    model = load_model(folder, Denoiser)
    twin = tiny.shaken(build("model", tiny.denoiser()), 0)
    load_weights(twin, read_weights(folder), "here")
    x, t = torch.randn(2, 5, 3, 2, 4), torch.tensor([0.2, 0.9])
    prompts = ["an orc", "a lady"]
    expected = twin.velocity(x, t, twin.encode(prompts))
    torch.testing.assert_close(model.velocity(x, t, model.encode(prompts)), expected)
    assert not model.training and not any(p.requires_grad for p in model.parameters())
    assert sorted(os.listdir(folder)) == ["model.json", "model.safetensors"]


def test_eight_bits_halve_a_folder_and_hardly_move_what_it_says(tmp_path, folder):
    model = load_model(folder, Denoiser)
    model.backbone.embed.weight[3] = 0.0  # a row without a scale of its own
    for name, dtype in (("half", torch.float16), ("eight", torch.int8)):
        save_model(tmp_path / name, tiny.denoiser(), model.state_dict(), dtype=dtype)
    size = {n: (tmp_path / n / "model.safetensors").stat().st_size for n in ("half", "eight")}
    assert size["eight"] < 0.75 * size["half"]
    for name, value in read_weights(tmp_path / "eight").items():
        step = model.state_dict()[name].flatten(1).abs().amax(1) / 127 if value.ndim > 1 else None
        error = (value.float() - model.state_dict()[name]).abs()
        if step is None:
            torch.testing.assert_close(
                value.float(), model.state_dict()[name], atol=1e-3, rtol=1e-3
            )
        else:
            assert (error.flatten(1).amax(1) <= 0.51 * step + 1e-3 * step).all(), name
    x, t = torch.randn(2, 5, 3, 2, 4), torch.tensor([0.2, 0.9])
    coarse = load_model(tmp_path / "eight", Denoiser)
    said, meant = (m.velocity(x, t, m.encode(["an orc", ""])) for m in (coarse, model))
    assert float((said - meant).std() / meant.std()) < 0.05


def test_buffers_and_facts_travel(tmp_path):
    codec = build("model", tiny.CODEC)
    codec.mean.fill_(3.0)
    save_model(tmp_path / "c", tiny.CODEC, codec.state_dict(), metadata={"step": 7})
    assert load_model(tmp_path / "c", CausalVAE).mean.tolist() == [3.0] * 5
    card = read_card(tmp_path / "c")
    assert (
        card["metadata"] == {"step": 7} and card["spec"] == tiny.CODEC and card["format"] == FORMAT
    )


def test_half_precision_is_half_the_file_and_comes_back_as_float32(folder, tmp_path):
    weights = read_weights(folder)
    save_model(tmp_path / "half", tiny.denoiser(), weights, dtype=torch.float16)
    sizes = [(f / "model.safetensors").stat().st_size for f in (tmp_path / "half", folder)]
    assert sizes[0] < 0.6 * sizes[1]
    found = load_model(tmp_path / "half").state_dict()
    for name, tensor in load_model(folder).state_dict().items():
        assert found[name].dtype == torch.float32
        torch.testing.assert_close(found[name], tensor, rtol=1e-3, atol=1e-4)


def test_saving_again_replaces_the_whole_folder(folder):
    (folder / "stray.txt").write_text("x")
    tiny.save(folder, tiny.CODEC)
    assert sorted(os.listdir(folder)) == ["model.json", "model.safetensors"]
    assert isinstance(load_model(folder), CausalVAE)


# --- damage ---------------------------------------------------------------------------------------


def test_a_truncated_file(folder):
    """Cases: P01."""
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    error = refused(folder)
    assert "truncated or altered" in str(error) and error.exit_code == 1


def test_a_flipped_bit(folder):
    """Cases: P03."""
    path = folder / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-7] ^= 1
    path.write_bytes(data)
    assert "truncated or altered" in str(refused(folder))


def test_a_missing_file_and_a_missing_folder(folder, tmp_path):
    """Cases: P02, P19."""
    error = refused(tmp_path / "none")
    assert "is not a model folder (no model.json)" in str(error) and error.exit_code == 2
    (folder / "model.safetensors").unlink()
    error = refused(folder)
    assert "lacks model.safetensors" in str(error) and error.exit_code == 1
    assert "cannot read" in str(refused(folder / "model.json"))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_tensor_that_is_not_finite(folder, value):
    """Cases: P04."""
    weights = read_weights(folder)
    name = "backbone.embed.weight"
    weights[name][0, 0] = value
    save_model(folder, tiny.denoiser(), weights)
    assert f"the tensor {name} holds values that are not finite" in str(refused(folder))


@pytest.mark.parametrize(
    "content, message",
    [
        ("{", "cannot read"),
        ("[]", "is damaged: it has no `spec`"),
        ("{}", "is damaged: it has no `spec`"),
        ('{"spec": 3}', "is damaged: it has no `spec`"),
        ("\xff", "cannot read"),
    ],
)
def test_a_damaged_card(folder, content, message):
    """Cases: P14."""
    (folder / "model.json").write_bytes(content.encode("latin-1"))
    assert message in str(refused(folder))


def test_a_newer_format_asks_to_upgrade(folder):
    """Cases: P16."""
    edit(folder, format=FORMAT + 1, vidcm="99.0")
    assert "written by vidcm 99.0, newer than" in str(refused(folder))
    edit(folder, format="two")
    assert "is damaged: it has no `format`" in str(refused(folder))


def test_another_kind_is_refused(folder):
    """Cases: P13."""
    error = refused(folder, CausalVAE)
    assert "holds a Denoiser; expected a CausalVAE" in str(error) and error.exit_code == 2


def test_weights_that_do_not_fit_are_listed(folder):
    """Cases: P12."""
    edit(folder, spec=tiny.denoiser(num_layers=3))
    message = str(refused(folder))
    assert "do not fit the model" in message and "is missing" in message and "more" in message
    edit(folder, spec=tiny.denoiser(channels=7))
    assert "backbone.embed.weight is (32, 5), not (32, 7)" in str(refused(folder))
    edit(folder, spec=tiny.denoiser(num_layers=1))
    assert "is unknown" in str(refused(folder))


def test_a_file_of_nonsense_with_the_right_hash(folder):
    from vidcm.files import file_hash

    path = folder / "model.safetensors"
    path.write_bytes(struct.pack("<Q", 2**40) + b"{}")
    edit(folder, sha256=file_hash(path))
    assert "cannot read" in str(refused(folder))


def test_a_place_that_cannot_be_written_to(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(VidcmError, match="cannot write .*file/model: "):
        save_model(tmp_path / "file" / "model", tiny.CODEC, {})


def test_a_full_disk_is_one_line_and_leaves_the_old_folder(folder):
    script = f"""
import resource, tiny
from vidcm.errors import VidcmError
from vidcm.registry import build
from vidcm.store import save_model
resource.setrlimit(resource.RLIMIT_FSIZE, (4000, 4000))
try:
    save_model({str(folder)!r}, tiny.CODEC, build("model", tiny.CODEC).state_dict())
except VidcmError as error:
    print(error)
"""
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    env = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, (ROOT, ROOT / "tests")))}
    done = subprocess.run(
        [sys.executable, "-c", script], env=env, capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith(f"cannot write {folder}: ") and done.stdout.count("\n") == 1
    assert "File too large" in done.stdout
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before
    assert os.listdir(folder.parent) == ["model"]
