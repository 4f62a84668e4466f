"""Tiny students of public models: their base's weights, moved a little."""

from pathlib import Path

import pytest

pytest.importorskip("diffusers", reason="public families need diffusers: pip install -e '.[test]'")

from tiny_public import save, student


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
def student_of(public, tmp_path_factory):
    """A function from a family's name, and facts of its training, to a student's model folder."""
    root = tmp_path_factory.mktemp("students")

    def folder(name: str, **facts) -> Path:
        key = "-".join([name, *(f"{k}{v}" for k, v in facts.items())]).replace("/", "")
        if not (root / key).exists():
            student(public(name) / "transformer", root / key, **facts)
        return root / key

    return folder
