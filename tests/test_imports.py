"""Which module may import which; lazy imports and those for annotations alone count as any other."""

from graphlib import TopologicalSorter
from pathlib import Path

import grimp
from importlinter.cli import EXIT_STATUS_SUCCESS, lint_imports

REPO = Path(__file__).parents[1]


def test_packages_import_downwards_only(monkeypatch, capsys):
    monkeypatch.chdir(REPO)  # the layers are in its pyproject.toml
    assert lint_imports(no_cache=True) == EXIT_STATUS_SUCCESS, capsys.readouterr().out


def test_no_modules_import_each_other():
    graph = grimp.build_graph("vidcm", cache_dir=None)
    imports = {name: graph.find_modules_directly_imported_by(name) for name in graph.modules}
    TopologicalSorter(imports).prepare()  # raises CycleError, which names the circle
