"""The settings of a comparison: its rows, their shared settings and the output paths."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vidcm.config import load
from vidcm.diffusion.samplers import SOLVERS
from vidcm.errors import UsageError
from vidcm.schema import from_dict
from vidcm.yaml_file import read_keys


@dataclass
class ComparisonRow:
    """A student to train, or a solver that samples the teacher.

    Attributes:
        config: file of the student's training.
        overrides: of that config.
        solver: of the teacher, where there is no config.
        shift: of the teacher's timesteps (default: `times.SHIFT`).
        guidance: scale (default: the comparison's).
        seeds: of one training each.
    """

    config: str | None = None
    overrides: list[str] = field(default_factory=list)
    solver: str | None = None
    shift: float | None = None
    guidance: float | None = None
    seeds: list[int] = field(default_factory=lambda: [0])


@dataclass
class Comparison:
    """The content of `comparison.yaml`.

    Attributes:
        output: folder for the runs.
        results: JSON file to write.
        codec, teacher: model folders that all rows share.
        rows: `ComparisonRow` by name.
        overrides: of every training, before the row's own.
        budget: seconds of training per row.
        count, seed, batch: of the held-out combinations.
        guidance: scale of rows that set none.
        evaluations: numbers of network evaluations to measure.
    """

    output: str
    results: str
    codec: str
    teacher: str
    rows: dict[str, Any]
    overrides: list[str] = field(default_factory=list)
    budget: float = 600.0
    count: int = 128
    seed: int = 0
    batch: int = 32
    guidance: float = 3.0
    evaluations: list[int] = field(default_factory=lambda: [1, 2, 4, 8])

    def __post_init__(self) -> None:
        if self.budget <= 0 or self.count < 2 or not self.evaluations or not self.rows:
            raise UsageError(
                f"budget {self.budget}, count {self.count}, evaluations {self.evaluations}: a "
                "comparison needs seconds, at least 2 clips, numbers of evaluations and rows"
            )
        if min(self.evaluations) < 1 or self.batch < 1:
            raise UsageError(
                f"evaluations {self.evaluations}, batch {self.batch}: all must be at least 1"
            )
        self.rows = {name: self._row(name, row) for name, row in self.rows.items()}
        folders = [folder_name(key) for key, _, _ in row_entries(self)]
        if twice := {name for name in folders if folders.count(name) > 1}:
            raise UsageError(
                f"two rows would share the folder {twice.pop()!r}; give rows names that differ in "
                "more than spaces and signs, and no seed twice"
            )

    def _row(self, name: Any, settings: Any) -> ComparisonRow:
        where = f"rows.{name}"
        if not isinstance(name, str) or not isinstance(settings or {}, dict):
            raise UsageError(f"{where}: {settings!r} is not a row; write name: {{config: FILE}}")
        row = from_dict(ComparisonRow, settings or {}, where)
        if (row.config is None) == (row.solver is None):
            raise UsageError(f"{where} needs either a config (a student) or a solver (the teacher)")
        if row.solver not in (None, *SOLVERS):
            raise UsageError(f"{where}: solver {row.solver!r}; use {', '.join(SOLVERS)}")
        if row.solver and (row.overrides or row.seeds != [0]):
            raise UsageError(f"{where}: the teacher is not trained; leave out overrides and seeds")
        if row.shift is not None and not (row.solver and row.shift > 0):
            raise UsageError(f"{where}: shift {row.shift:g} is for solvers, and above 0")
        if not row.seeds:
            raise UsageError(f"{where}: seeds is empty; leave it out, or name one")
        row.guidance = self.guidance if row.guidance is None else row.guidance
        if not 0 <= row.guidance <= 100:
            raise UsageError(f"{where}: guidance is {row.guidance}; use 0 to 100 (1 is without)")
        if row.config:
            row.overrides = [*self.overrides, *row.overrides]
        return row


def read_comparison_config(path: Path, only: Sequence[str] | None = None) -> Comparison:
    """Read a comparison and check the configs of all its rows.

    Args:
        path: YAML file.
        only: names or keys of rows that it must have.

    Raises:
        UsageError: for unknown rows, unknown keys and values that do not fit.
    """
    comparison = from_dict(Comparison, read_keys(path), str(path))
    known = {*comparison.rows, *(key for key, _, _ in row_entries(comparison))}
    if unknown := sorted(set(only or ()) - known):
        rows = ", ".join(map(repr, comparison.rows))  # names have commas of their own
        raise UsageError(f"no row {unknown[0]!r} in {path}; it has {rows}")
    for row in comparison.rows.values():
        if row.config is not None:
            load(row.config, row.overrides)  # a fault in a late row is reported at once
    return comparison


def row_entries(comparison: Comparison) -> Iterator[tuple[str, ComparisonRow, int]]:
    """(key, row, seed) of every training or solver; a row of several seeds has several keys."""
    for name, row in comparison.rows.items():
        for seed in row.seeds:
            yield (name if len(row.seeds) == 1 else f"{name}, seed {seed}"), row, seed


def folder_name(key: str) -> str:
    """The folder of a row's key."""
    return re.sub(r"[^\w.]+", "-", key).strip("-.") or "row"
