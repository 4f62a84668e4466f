"""Which module may import which; lazy imports and those for annotations alone count as any other."""

import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import grimp
from importlinter.cli import EXIT_STATUS_SUCCESS

REPO = Path(__file__).parents[1]


def test_packages_import_downwards_only():
    # The layers are in the repository's pyproject.toml. In a process of its own: the linter configures
    # logging, which would silence the loggers of the tests after it.
    code = "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports(no_cache=True))"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=REPO, capture_output=True, text=True)
    assert done.returncode == EXIT_STATUS_SUCCESS, done.stdout + done.stderr


def test_no_modules_import_each_other():
    graph = grimp.build_graph("vidcm", cache_dir=None)
    imports = {name: graph.find_modules_directly_imported_by(name) for name in graph.modules}
    TopologicalSorter(imports).prepare()  # raises CycleError, which names the circle
