from pathlib import Path

import pytest

pytest.importorskip("diffusers", reason="public families need diffusers: pip install -e '.[test]'")

from tiny_public import save


@pytest.fixture(scope="session")
def public(tmp_path_factory):
    """A function from a family's name to the folder of its tiny pipeline."""
    root, made = tmp_path_factory.mktemp("public"), {}

    def folder(name: str) -> Path:
        if name not in made:
            made[name] = save(name, root / name)
        return made[name]

    return folder
