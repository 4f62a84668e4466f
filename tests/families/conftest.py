from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("diffusers", reason="public families need diffusers: pip install -e '.[test]'")

from public_runs import CAPTION
from tiny_public import save

from vidcm.cli import encode
from vidcm.media.write import write_clip


@pytest.fixture(scope="session")
def public(tmp_path_factory):
    """A function from a family's name to the folder of its tiny pipeline."""
    root, made = tmp_path_factory.mktemp("public"), {}

    def folder(name: str) -> Path:
        if name not in made:
            made[name] = save(name, root / name)
        return made[name]

    return folder


@pytest.fixture(scope="session")
def clips(tmp_path_factory):
    """A folder of four clips with captions."""
    folder = tmp_path_factory.mktemp("clips")
    for i in range(4):
        frames = np.full((9, 32, 32, 3), 50 * i, np.uint8)
        for t in range(9):
            frames[t, 8:16, 2 * t : 2 * t + 8] = 255
        write_clip(frames, folder / f"{i}.mp4", fps=8)
        (folder / f"{i}.txt").write_text(CAPTION)
    return folder


@pytest.fixture(scope="session")
def latents(public, clips, tmp_path_factory):
    """A function from a family to latents by its codec."""
    return _latents(public, clips, tmp_path_factory.mktemp("latents"), control=False)


@pytest.fixture(scope="session")
def controlled(public, clips, tmp_path_factory):
    """A function from a family to latents with what its network reads beside captions."""
    return _latents(public, clips, tmp_path_factory.mktemp("controlled"), control=True)


def _latents(public, clips, root, *, control):
    made = {}

    def folder(name):
        if name not in made:
            made[name] = root / name
            size = ["--frames", "9", "--size", "32x32", "--fps", "8"]
            models = ["--codec", str(public(name) / "vae"), "--output", str(made[name])]
            models += ["--control", str(public(name) / "transformer")] if control else []
            assert encode.main(["--data", "folder", "--root", str(clips), *size, *models]) == 0
        return made[name]

    return folder
