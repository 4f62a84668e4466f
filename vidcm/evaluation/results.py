"""Result files: facts about a measurement, and rows that are written as they are finished.

Reading needs neither torch nor numpy.
"""

import json
import math
import numbers
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vidcm.errors import UsageError
from vidcm.files import write_text

KEYS = {"kind", "protocol", "model", "environments", "rows"}


class Results:
    """A results file that grows row by row; an interrupted measurement goes on from its last row.

    The file holds the facts, `rows` (nested by one name or more), and `environments`; "environment"
    of a row is an index into these. Numbers are kept to six digits.

    Args:
        path: JSON file, complete after every row.
        facts: plain data under `kind`, `protocol`, `model` and further keys. The rows of an
            existing file are kept if its facts are the same.
        environment: in which new rows are measured (`evaluation.environment`).
        overwrite: start anew where the file exists.
        sort_key: order of the rows' names in the file (default: as added).

    Raises:
        UsageError: the file holds something else, or results with other facts.
    """

    def __init__(
        self,
        path: Path,
        facts: Mapping[str, Any],
        environment: Mapping[str, Any],
        *,
        overwrite: bool = False,
        sort_key: Callable[[str], Any] | None = None,
    ):
        self.path, self.sort_key = path, sort_key
        self.facts, self._environment = to_plain(facts), to_plain(environment)
        self.rows: dict[str, Any] = {}
        self._environments: list[dict] = []
        if path.exists() and not overwrite:
            before = read_results(path, self.facts["kind"])
            self.rows, self._environments = before.pop("rows"), before.pop("environments")
            if other := first_difference(before, self.facts):
                raise UsageError(
                    f"{path} holds results of another {other}; give another file, or remove "
                    "this one"
                )

    def has(self, *names: str) -> bool:
        """Whether a row is finished."""
        found: Any = self.rows
        for name in names:
            found = found.get(name, {})
        return bool(found)

    def add(self, *names: str, row: Mapping[str, Any]) -> None:
        """Put a finished row under its names and write the file."""
        if self._environment not in self._environments:
            self._environments.append(self._environment)
        index = self._environments.index(self._environment)
        group = self.rows
        for name in names[:-1]:
            group = group.setdefault(name, {})
        group[names[-1]] = to_plain(row) | {"environment": index}
        if self.sort_key:
            self.rows = {name: self.rows[name] for name in sorted(self.rows, key=self.sort_key)}
        write_text(self.path, json.dumps(self.content(), indent=1) + "\n")

    def content(self) -> dict:
        """The file's content, as `read_results` gives it."""
        return self.facts | {"environments": self._environments, "rows": self.rows}


def read_json(path: Path, wanted: str) -> Any:
    """The content of a JSON file; wanted: what to give instead, for the error.

    Raises:
        UsageError: the file cannot be read.
    """
    try:
        return json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path} is not JSON ({error}); give {wanted}") from None


def read_results(path: Path, *kinds: str) -> dict:
    """The content of a results file.

    Args:
        path: JSON file.
        *kinds: those to accept (default: any).

    Raises:
        UsageError: the file cannot be read, or holds something else.
    """
    results = read_json(path, "a file of results")
    if not isinstance(results, dict) or not KEYS <= results.keys():
        raise UsageError(
            f"{path} holds no results that this version reads; expected the keys "
            f"{', '.join(sorted(KEYS))}"
        )
    if kinds and results["kind"] not in kinds:
        raise UsageError(
            f"{path} holds results of kind {results['kind']!r}, expected {' or '.join(kinds)}"
        )
    return results


@contextmanager
def well_formed(path: Path | None) -> Iterator[None]:
    """Turn failures of the block into UsageError: its numbers come from a file that was edited.

    Args:
        path: the file; None for numbers measured now, whose failures are left as they are.
    """
    try:
        yield
    except (KeyError, TypeError, AttributeError, IndexError, ValueError) as error:
        if path is None:
            raise
        what = f"{type(error).__name__}: {error}"
        raise UsageError(f"{path} lacks numbers or was edited ({what}); measure again") from None


def first_difference(before: Mapping[str, Any], now: Mapping[str, Any]) -> str | None:
    """The first leaf in which two trees differ, as "protocol.count: 16, not 8"."""
    was, wanted = _leaves(before), _leaves(now)
    for key in was | wanted:
        if was.get(key) != wanted.get(key):
            return f"{key}: {_short(was.get(key))}, not {_short(wanted.get(key))}"
    return None


def to_plain(value: Any) -> Any:
    """Data as JSON gives it back: floats to six digits, tuples as lists, nan and inf as None."""
    if isinstance(value, Mapping):
        return {k: to_plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [to_plain(v) for v in value]
    if isinstance(value, numbers.Real) and not isinstance(value, int):
        return float(f"{float(value):.6g}") if math.isfinite(value) else None
    return value


def _leaves(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Leaves by dotted keys."""
    leaves: dict[str, Any] = {}
    for key, value in tree.items():
        name = f"{prefix}{key}"
        leaves |= _leaves(value, f"{name}.") if isinstance(value, Mapping) else {name: value}
    return leaves


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:14]}...{text[-1]}"
