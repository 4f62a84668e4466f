"""Features of anybody's videos: folders with a known order of distances, and refusals."""

from pathlib import Path

import numpy as np
import pytest
import torch

from vidcm.cli import evaluate as command
from vidcm.media.write import write_clip
from vidcm.registry import build

FRAMES, HEIGHT, WIDTH = 7, 48, 80


def clip(seed: int, speed: int, noise: int = 0) -> np.ndarray:
    """A bright square on a dark ground that moves `speed` pixels a frame."""
    rng = np.random.default_rng(seed)
    y, x = rng.integers(0, 24, 2)
    ground, colour = rng.integers(0, 80, 3), rng.integers(120, 256, 3)
    frames = np.broadcast_to(ground, (FRAMES, HEIGHT, WIDTH, 3)).astype(np.int64)
    for t in range(FRAMES):
        left = x + speed * t
        frames[t, y : y + 16, left : left + 16] = colour
    frames += rng.integers(-noise, noise + 1, frames.shape)
    return frames.clip(0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> Path:
    """Videos that move, the same with light and with heavy noise, and the same frozen."""
    root = tmp_path_factory.mktemp("videos")
    kinds = {"a": (4, 0), "light": (4, 12), "heavy": (4, 90), "still": (0, 0)}
    for kind, (speed, noise) in kinds.items():
        for i in range(5):
            path = root / kind / f"{i}.mp4"
            path.parent.mkdir(exist_ok=True)
            write_clip(clip(i, speed, noise), path, fps=8, scale=1)
    return root


def distance(capsys, *words: str) -> float:
    assert command.main(["--frechet", *words]) == 0
    out = capsys.readouterr().out
    assert "between 5 and 5 videos" in out
    return float(out.split()[2])


def check_order(folders: Path, capsys, *words: str) -> None:
    """More noise is further away; frozen clips are further than the clips from themselves."""
    a = str(folders / "a")
    kinds = ("a", "light", "heavy", "still")
    same, light, heavy, still = (distance(capsys, a, str(folders / k), *words) for k in kinds)
    assert abs(same) < 1e-3 * min(light, still) and light < heavy


def test_distances_of_folders_by_the_lpc_network(folders, capsys):
    check_order(folders, capsys)


@pytest.mark.parametrize(
    "words, message",
    [
        (["a", "nowhere"], "is not a folder, expected a folder of videos"),
        (["a", "one"], "one holds 1 video; a distance needs 2 or more"),
        (["a", "still", "--features", "inception"], "unknown features 'inception'"),
        (["a", "still", "--features", "timm"], "'timm' needs the option 'model'"),
        (["a", "still", "--features", "lpc:x"], "'lpc' has no option 'model'"),
        (["a", "still", "--rows", "codec"], "--rows needs a model; leave it out"),
        (["a", "still", "--into", "x.md"], "--into needs a table"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_refusals(folders, tmp_path, monkeypatch, capsys, words, message):
    monkeypatch.chdir(folders)
    (folders / "one").mkdir(exist_ok=True)
    write_clip(clip(0, 1), folders / "one" / "x.mp4", fps=8, scale=1, overwrite=True)
    assert command.main(["--frechet", *words]) == 2
    out, err = capsys.readouterr()
    assert out == "" and message in err and err.count("\n") == 1


def test_weights_are_about_folders(capsys):
    assert command.main(["--features-checkpoint", __file__, "--sheet", "x.png"]) == 2
    assert "--features-checkpoint is about --frechet" in capsys.readouterr().err


def test_without_timm_the_install_line_is_given(folders, capsys, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "timm", None)
    words = [str(folders / "a"), str(folders / "still"), "--features", "timm:resnet18"]
    assert command.main(["--frechet", *words]) == 1
    assert "pip install -e '.[timm]'" in capsys.readouterr().err


# --- timm -----------------------------------------------------------------------------------------


@pytest.fixture
def checkpoint(tmp_path) -> Path:
    """Weights of a small network, its classifier of 7 classes among them."""
    import timm

    torch.manual_seed(0)
    path = tmp_path / "weights.pth"
    torch.save(timm.create_model("resnet10t", num_classes=7).state_dict(), path)
    return path


@pytest.mark.timm
def test_distances_of_folders_by_a_network_of_timm(folders, checkpoint, capsys):
    check_order(
        folders, capsys, "--features", "timm:resnet10t", "--features-checkpoint", str(checkpoint)
    )


@pytest.mark.timm
def test_features_are_those_of_the_frames_and_their_changes(checkpoint):
    import timm

    spec = {"name": "timm", "model": "resnet10t", "checkpoint": str(checkpoint)}
    extract = build("features", spec)
    clips = torch.from_numpy(np.stack([clip(0, 4), clip(1, 0)]))
    found = extract(clips)
    assert found.shape == (2, 2 * 512) and np.isfinite(found).all()
    np.testing.assert_allclose(extract(clips[1:])[0], found[1])
    assert found[0, 512:].sum() > 0 == found[1, 512:].sum()  # the second stands still
    net = timm.create_model("resnet10t", num_classes=7).eval()
    net.load_state_dict(torch.load(checkpoint))
    image = torch.nn.functional.interpolate(
        clips[1, :1].permute(0, 3, 1, 2) / 255, extract.size, mode="bilinear", antialias=True
    )
    with torch.no_grad():
        features = net.forward_features((image - extract.mean) / extract.std)
        expected = net.forward_head(features, pre_logits=True)
    np.testing.assert_allclose(found[1, :512], expected[0], rtol=1e-4, atol=1e-5)


@pytest.mark.timm
def test_unfit_networks_of_timm_are_refused(checkpoint, folders, capsys):
    for words, code, message in (
        (["timm:resnet81"], 2, "timm has no model 'resnet81'; did you mean 'resnet"),
        (["timm:resnet18", "--features-checkpoint", str(checkpoint)], 2, "no weights of resnet18"),
        (["timm:resnet10t"], 1, "cannot load weights of resnet10t"),  # the tests are offline
    ):
        argv = ["--frechet", str(folders / "a"), str(folders / "still"), "--features", *words]
        assert command.main(argv) == code
        out, err = capsys.readouterr()
        assert out == "" and message in err and err.count("\n") == 1
