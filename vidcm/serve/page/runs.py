"""The tab that looks into training folders while they grow: curves and sample sheets."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gradio as gr
import pandas as pd

from vidcm.serve.page import cards
from vidcm.serve.page.mask import data_uri
from vidcm.serve.page.panel import EVENT

SECONDS = 5.0  # between two looks
DEPTH = 3  # folders below those that were named
MAX_RUNS = 200
MAX_POINTS = 400  # of a curve
MAX_LOG, MAX_SHEET = 32 * 2**20, 8 * 2**20  # bytes that are read
LOG = "metrics.jsonl"
NO_SAMPLES = '<div class="blank">No samples yet.</div>'


class RunFolders:
    """Training folders below those that the command named; nothing else is ever read.

    Args:
        roots: Folders.
    """

    def __init__(self, roots: Sequence[Path]):
        self._roots = [root.resolve() for root in roots]

    def names(self) -> dict[str, Path]:
        """Runs by name, the newest first."""
        found: dict[str, Path] = {}
        for root in self._roots:
            for folder in _folders_with_log(root, DEPTH):
                below = folder.relative_to(root)
                found[str(Path(root.name, below))] = folder
        changed = {name: _changed(folder / LOG) for name, folder in found.items()}
        newest = sorted(found, key=lambda name: -changed[name])[:MAX_RUNS]
        return {name: found[name] for name in newest}

    def curves(self, name: str) -> dict[str, list[tuple[int, float]]]:
        """Steps and values of each number in a run's log, thinned; none for an unknown run."""
        folder = self.names().get(name)
        return {} if folder is None else read_log(folder / LOG)

    def sheets(self, name: str) -> dict[str, Path]:
        """Sample sheets of a run by the step in their name, the newest first."""
        folder = self.names().get(name)
        found = sorted((folder / "samples").glob("step-*.png")) if folder else []
        own = [path for path in found if path.is_file() and not path.is_symlink()]
        return {f"step {int(path.stem[5:])}": path for path in own[::-1] if path.stem[5:].isdigit()}


def read_log(path: Path) -> dict[str, list[tuple[int, float]]]:
    """Steps and values of each number in a `metrics.jsonl`; torn lines are left out."""
    found: dict[str, list[tuple[int, float]]] = {}
    with path.open("rb") as file:
        file.seek(max(path.stat().st_size - MAX_LOG, 0))
        for line in file.read(MAX_LOG).splitlines():
            try:
                numbers = dict(json.loads(line))
                step = int(numbers.pop("step"))
                values = {name: float(value) for name, value in numbers.items()}
            except (ValueError, KeyError, TypeError):
                continue
            for name, value in values.items():
                found.setdefault(name, []).append((step, value))
    return {name: points[:: len(points) // MAX_POINTS + 1] for name, points in found.items()}


class RunsTab:
    """See the module.

    Args:
        folders: That may be looked into.
        tabs: All tabs; looks are taken while this one is chosen.
        tab: This one.
    """

    def __init__(self, folders: RunFolders, tabs: gr.Tabs, tab: gr.Tab):
        self._folders = folders
        names = list(folders.names())
        first = names[0] if names else None
        with gr.Row():
            with gr.Column(scale=2, min_width=300):
                run = gr.Dropdown(names, value=first, label="Run", elem_id="runs-run")
                curve = gr.Dropdown([], label="Curve")
                sheet = gr.Dropdown([], label="Sample sheet")
            with gr.Column(scale=3, min_width=300):
                plot = gr.LinePlot(
                    x="step", y="value", height=280, label="Curve", elem_id="runs-plot"
                )
                picture = gr.HTML("", elem_id="runs-sheet")
        timer = gr.Timer(SECONDS, active=False)
        inputs, outputs = [run, curve, sheet], [run, curve, sheet, plot, picture]
        for event in (timer.tick, tab.select, run.input, curve.input, sheet.input):
            event(self._look, inputs, outputs, trigger_mode="always_last", **EVENT)
        tabs.select(_active, None, timer, **EVENT)

    def _look(self, run: str | None, curve: str | None, sheet: str | None) -> list[Any]:
        names = list(self._folders.names())
        run = run if run in names else next(iter(names), None)
        curves = self._folders.curves(run) if run else {}
        sheets = self._folders.sheets(run) if run else {}
        curve = curve if curve in curves else next(iter(curves), None)
        newest = next(iter(sheets), None)
        latest = "the newest"
        chosen = sheet if sheet in sheets else latest
        points = curves.get(curve or "", [])
        table = pd.DataFrame(points, columns=pd.Index(["step", "value"]))
        current = newest if chosen == latest else chosen
        return [
            gr.Dropdown(choices=names, value=run),
            gr.Dropdown(choices=list(curves), value=curve),
            gr.Dropdown(choices=[latest, *sheets], value=chosen),
            gr.LinePlot(table, label=curve or "no curve yet"),
            _sheet(sheets[current], current) if current else NO_SAMPLES,
        ]


def _active(event: gr.SelectData) -> Any:
    return gr.Timer(active=event.value == "Runs")


def _sheet(path: Path, title: str) -> str:
    if path.stat().st_size > MAX_SHEET:
        return cards.problem(f"the sheet of {title} is larger than {MAX_SHEET} bytes")
    return cards.grid([cards.picture(data_uri(path.read_bytes(), "image/png"), title, "samples")])


def _folders_with_log(folder: Path, depth: int) -> list[Path]:
    """Folders that have a log, without following links."""
    try:
        entries = list(os.scandir(folder))
    except OSError:
        return []
    found = (
        [folder] if any(e.name == LOG and e.is_file(follow_symlinks=False) for e in entries) else []
    )
    if depth:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                found += _folders_with_log(Path(entry.path), depth - 1)
    return found


def _changed(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0
