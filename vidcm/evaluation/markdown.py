"""Tables in markdown, the sentence below them, and the blocks of files that they fill.

Needs neither torch nor numpy.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from vidcm.errors import UsageError
from vidcm.files import write_text

Column = tuple[str, Callable[[Any], str]]  # heading, and the cell of a row


def grid(head: list[str], lines: list[list[str]]) -> str:
    """A table whose first column is text and the others numbers."""
    bars = ["---", *["---:"] * (len(head) - 1)]
    return "\n".join("| " + " | ".join(line) + " |" for line in [head, bars, *lines])


def number(value: float | None, digits: int, factor: float = 1) -> str:
    """`factor * value` to so many decimals, or a dash for None."""
    return "-" if value is None else f"{factor * value:.{digits}f}"


def figure(path: str, digits: int, factor: float = 1) -> Callable[[Any], str]:
    """The cell of a row's `number` at dotted keys; a dash where the row lacks it."""

    def cell(row: Any) -> str:
        for key in path.split("."):
            row = None if row is None else row.get(key)
        return number(row, digits, factor)

    return cell


def table(corner: str, columns: Sequence[Column], rows: Iterable[tuple[str, Any]]) -> str:
    """A table with a line for every named row; corner: the heading above the names."""
    lines = [[name, *(cell(row) for _, cell in columns)] for name, row in rows]
    return grid([corner, *(heading for heading, _ in columns)], lines)


def counted(steps: int) -> str:
    """As "4 steps" or "1 step"."""
    return f"{steps} step{'s' * (steps > 1)}"


def method(results: Mapping[str, Any], note: str = "") -> str:
    """The sentence below a table: protocol, model and environment of a results file.

    Args:
        results: content of a results file.
        note: further facts about the protocol, without a final period.
    """
    protocol, name = results["protocol"], results["model"].get("name")
    environments = ", and ".join(map(measured_on, results["environments"]))
    return (
        f"{protocol['count']} held-out combinations, seed {protocol['seed']}, full captions"
        f"{'; ' if note else ''}{note}. {f'Model {name}, measured' if name else 'Measured'} with "
        f"{environments}."
    )


def measured_on(environment: Mapping[str, Any]) -> str:
    """An `environment.environment` in words: commit, device, threads, torch."""
    commit = (environment["commit"] or "unknown")[:10] + " (changed)" * bool(environment["dirty"])
    device, threads = environment["device"], environment["threads"]
    return (
        f"commit {commit}, {'' if device == 'cpu' else f'{device}, '}{environment['cpu']}, "
        f"{threads} thread{'s' * (threads != 1)}, torch {environment['torch']}"
    )


def block(path: Path, name: str) -> tuple[str, str]:
    """Text before and after the block between `<!-- name:begin -->` and `<!-- name:end -->`.

    Raises:
        UsageError: the file cannot be read, or the two marks are not there once each and in order.
    """
    begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
    try:
        text = path.read_bytes().decode("utf-8")
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UsageError(f"{path} is not UTF-8 text") from None
    start, stop = text.find(begin), text.find(end)
    if text.count(begin) != 1 or text.count(end) != 1 or stop < start:
        raise UsageError(f"{path} needs one line {begin} and, after it, one line {end}")
    return text[: start + len(begin)], text[stop:]


def rewrite(path: Path, name: str, text: str) -> None:
    """Replace the text of a block and nothing else. Raises as `block` and `write_text` do."""
    before, after = block(path, name)
    newline = "\r\n" if "\r\n" in before else "\n"
    write_text(path, before + f"\n{text.strip()}\n".replace("\n", newline) + after)
