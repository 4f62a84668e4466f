"""Names in the code are the field's: none is a stand-in that only this project would understand."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "vidcm"
STAND_INS = frozenset("told held shown asked walk said calm straight tilt".split())
ALLOWED = frozenset({"held_out"})  # the statistician's


def names(path: Path) -> Iterator[str]:
    """A file's own name and every name that it binds or uses, but for those of `os.walk`."""
    yield path.stem
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Attribute) and ast.unparse(node) == "os.walk":
            continue
        for field in ("id", "arg", "attr", "name", "asname"):
            if isinstance(name := getattr(node, field, None), str):
                yield name


def words(name: str) -> set[str]:
    """The words of a snake_case or CamelCase name."""
    return set(re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower().split("_"))


def stand_ins(path: Path) -> set[str]:
    return {n for n in names(path) if words(n) & STAND_INS and n.lower() not in ALLOWED}


@pytest.mark.parametrize(
    "path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: str(p.relative_to(PACKAGE))
)
def test_names_are_those_of_the_field(path):
    assert not stand_ins(path)
