"""A codec's run on a small folder of clips: what its end reads, and that the end resumes."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch

from vidcm.codecs.causal_vae import CausalVAE
from vidcm.config import TrainConfig
from vidcm.data.batch import Batch
from vidcm.data.folder import VideoFolder
from vidcm.errors import UsageError
from vidcm.media.write import write_clip
from vidcm.objectives.autoencoding import Autoencoding
from vidcm.rng import SampleRng
from vidcm.store import load_model, read_weights
from vidcm.train import checkpoint
from vidcm.train.launch import launch

COUNT = 3


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clips")
    for i in range(COUNT):
        pixels = np.random.default_rng(i).integers(0, 256, (5, 16, 24, 3), np.uint8)
        write_clip(pixels, folder / f"{i}.mp4", fps=8)
        (folder / f"{i}.txt").write_text("noise")
    return folder


@pytest.fixture
def config(clips: Path, tmp_path: Path) -> TrainConfig:
    data = {"name": "folder", "root": str(clips), "num_frames": 5, "size": [16, 24], "fps": 8}
    keys: dict[str, Any] = dict(steps=2, batch_size=2, num_workers=0, save_every=2, sample_every=2)
    return TrainConfig(
        model=tiny.CODEC,
        objective={"name": "autoencoding"},
        data=data,
        output=str(tmp_path / "run"),
        **keys,
    )


def test_its_end_reads_every_clip_once_with_a_bar(config, monkeypatch, capsys) -> None:
    drawn: list[int] = []
    batch = VideoFolder.batch

    def count(self, seed, positions):
        places = list(positions)
        if seed == 2**31 + 1:
            drawn.extend(places)
        return batch(self, seed, places)

    monkeypatch.setattr(VideoFolder, "batch", count)
    assert launch(config, "cpu") == 0
    assert drawn == [*range(COUNT), *range(COUNT)], "for the principal axes, and at the end"
    output = capsys.readouterr()
    assert "whitening the latents: 100%" in output.err and f"{COUNT}/{COUNT}" in output.err
    assert f"{config.output}/final: the model after step 2" in output.out
    assert "training on cpu in fp32" in output.out


def test_an_interrupted_end_resumes(config, monkeypatch, capsys) -> None:
    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("vidcm.train.codec_task.CausalVAE.whiten", interrupt)
        with pytest.raises(KeyboardInterrupt):
            launch(config, "cpu")
    run = Path(config.output)
    assert "the same command resumes" in capsys.readouterr().err
    assert checkpoint.newest(run) == checkpoint.folder_of(run, 2) and not (run / "final").exists()
    monkeypatch.setattr("vidcm.train.engine.LocalEngine.step", interrupt)  # no step is left
    assert launch(config, "cpu") == 0
    assert load_model(run / "final").channels == tiny.CODEC["channels"]


def test_a_new_decoder_leaves_the_encoder_as_it_was(config, tmp_path) -> None:
    assert launch(config, "cpu") == 0
    first = Path(config.output) / "final"
    second = replace(
        config,
        objective={"name": "autoencoding", "decoder_only": True},
        output=str(tmp_path / "second"),
    )
    with pytest.raises(UsageError, match="decoder_only keeps the encoder of init; set init"):
        launch(second, "cpu")
    second = replace(second, init=str(first))
    assert launch(second, "cpu") == 0
    before, after = read_weights(first), read_weights(tmp_path / "second" / "final")
    encoder = {n for n in before if n.startswith("encoder.")}
    assert encoder and all(torch.equal(after[n], before[n]) for n in encoder)
    assert any(not torch.equal(after[n], v) for n, v in before.items())
    state, _ = checkpoint.read(checkpoint.folder_of(tmp_path / "second", 2))
    assert not encoder & state["model"].keys() and state["frozen"]


def test_the_decoder_gets_latents_with_noise_of_every_level_up_to_the_bound(monkeypatch) -> None:
    codec = CausalVAE(**{k: v for k, v in tiny.CODEC.items() if k != "name"})
    codec.std.copy_(torch.arange(1.0, 1 + codec.channels))
    frames = torch.randint(0, 256, (64, 5, 16, 24, 3), dtype=torch.uint8)
    seen: dict[float, torch.Tensor] = {}
    for bound in (0.0, 0.5):

        def decode(raw: torch.Tensor, bound: float = bound) -> torch.Tensor:
            seen[bound] = raw
            return torch.zeros(len(raw), 3, 5, 16, 24)

        monkeypatch.setattr(codec, "reconstruct", decode)
        rng = SampleRng(1, range(64))
        with torch.no_grad():
            Autoencoding(latent_noise=bound)(codec, Batch([""] * 64, frames=frames), 0.0, rng)
    added = (seen[0.5] - seen[0.0]) / codec.std.view(-1, 1, 1, 1)
    levels = added.flatten(1).std(1)
    assert (
        levels.max() < 0.6
        and levels.min() < 0.1
        and levels.mean().item() == pytest.approx(0.25, abs=0.06)
    )


def test_noise_on_latents_needs_a_codec_that_knows_their_deviation(config, tmp_path) -> None:
    noisy = {"name": "autoencoding", "latent_noise": 0.3, "decoder_only": True}
    with pytest.raises(UsageError, match="latent_noise counts in deviations"):
        launch(replace(config, objective=noisy), "cpu")
    with pytest.raises(UsageError, match="latent_noise is -0.1"):
        Autoencoding(latent_noise=-0.1)
