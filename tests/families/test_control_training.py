"""Students of networks that read a picture: encode, train, export, generate."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from public_runs import CAPTION, run

from vidcm.cli import encode, export, generate
from vidcm.codecs.base import VideoCodec
from vidcm.config import TrainConfig
from vidcm.data.latents import LatentShards
from vidcm.diffusion.denoiser import Denoiser
from vidcm.store import load_model
from vidcm.train.memory import estimate

SIZE = ["--frames", "9", "--size", "32x32", "--fps", "8"]


@pytest.mark.parametrize("family", ["wan_image", "wan_5b"])
def test_shards_keep_what_the_network_reads(public, controlled, family):
    network = load_model(public(family) / "transformer", Denoiser)
    codec = load_model(public(family) / "vae", VideoCodec)
    batch = LatentShards(controlled(family), 2).batch(0, [0, 1])
    frames = ((codec.decode(batch.latents) + 1) * 127.5).byte().permute(0, 2, 3, 4, 1)
    sizes = {k: (2, *size) for k, size in network.control.sizes(batch.latents.shape[1:]).items()}
    assert {k: tuple(x.shape) for k, x in batch.control.tensors().items()} == sizes
    assert network.control.of_clips(codec, frames).tensors().keys() == sizes.keys()
    if family == "wan_5b":  # the codec encodes the first frame alone
        assert torch.allclose(batch.control.given, batch.latents[:, :, :1], atol=1e-2)
    else:
        masks = batch.control.channels[:, :4]
        assert (masks[:, :, 0] == 1).all() and (masks[:, :, 1:] == 0).all()


@pytest.mark.parametrize("family", ["wan_image", "wan_5b"])
def test_the_whole_road(tmp_path, public, controlled, family):
    code, folder = run(tmp_path, public, controlled, family)
    assert code == 0
    root, pipe, picture = public(family), tmp_path / "pipe", tmp_path / "picture.png"
    models = [f"--codec={root}/vae", f"--teacher={root}/transformer", f"--student={folder}/final"]
    shape = ["--frames", "9", "--height", "32", "--width", "32", "--allow-still"]
    assert export.main([*models, *shape, "--output", str(pipe)]) == 0
    pixels = np.random.default_rng(0).integers(0, 256, (40, 32, 3), np.uint8)
    Image.fromarray(pixels).save(picture)
    words = ["--checkpoint", str(pipe), "--prompt", CAPTION, "--image", str(picture)]
    output = tmp_path / "clip.mp4"
    assert generate.main([*words, "--steps", "2", "--output", str(output)]) == 0
    assert output.is_file()


OBJECTIVES = {
    "flow_matching": {},
    "continuous_consistency": {"guidance_range": [4, 4]},
    "phased_consistency": {"guidance_range": [4, 4]},
    "progressive_distillation": {"guidance_range": [4, 4]},
    "distribution_matching": {"guidance_range": [4, 4], "student_update_freq": 2},
    "adversarial": {"guidance_range": [4, 4], "student_update_freq": 2, "blocks": [0, 1]},
}


@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize("family", ["wan_image", "wan_5b"])
def test_objectives(tmp_path, public, controlled, family, name):
    more = {}
    if name == "flow_matching":
        base = f"{public(family)}/transformer"
        more = {"teacher": None, "model": {"name": "public_denoiser", "base": base}}
    objective = {"name": name, **OBJECTIVES[name]}
    code, folder = run(tmp_path, public, controlled, family, objective, **more)
    assert code == 0
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert all(np.isfinite(line["loss"]) for line in lines if "loss" in line)


def test_frames_on_the_fly_get_their_control(tmp_path, public, clips):
    data = {"name": "folder", "root": str(clips), "num_frames": 9, "size": [32, 32], "fps": 8}
    code, _ = run(tmp_path, public, lambda family: "", "wan_image", data=data)
    assert code == 0


def test_a_network_that_needs_a_picture_gets_no_latents_without(tmp_path, public, latents, capsys):
    code, _ = run(tmp_path, public, latents, "wan_image")
    assert code == 2 and "encode with --control" in capsys.readouterr().err


def test_a_network_of_text_gets_no_latents_with_pictures(tmp_path, public, controlled, capsys):
    codec, cached = f"{public('wan_image')}/vae", controlled("wan_image")
    capsys.readouterr()
    code, _ = run(tmp_path, public, lambda family: cached, "wan", codec=codec)
    error = capsys.readouterr().err
    assert code == 2 and "what another network reads" in error and error.count("error:") == 1


def test_encoding_for_a_network_of_text_alone_is_refused(tmp_path, public, clips, capsys):
    models = ["--codec", f"{public('wan')}/vae", "--control", f"{public('wan')}/transformer"]
    words = ["--data", "folder", "--root", str(clips), *SIZE, *models]
    assert encode.main([*words, "--output", str(tmp_path / "out")]) == 2
    assert "reads captions alone" in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_the_estimate_counts_it(public):
    def step(family: str) -> int:
        base = str(public(family) / "transformer")
        config = TrainConfig(
            model={"name": "public_denoiser", "base": base},
            objective={"name": "flow_matching"},
            data={"name": "latents", "path": "none"},
            output="none",
            steps=10,
            batch_size=4,
            codec=str(public(family) / "vae"),
        )
        return estimate(config, 1, (9, 64, 64)).work

    read = 4 * 4 * (20 * 3 * 8 * 8 + 5 * 24)  # bytes of four clips' masks, latents and tokens
    assert step("wan_image") > step("wan") + read
