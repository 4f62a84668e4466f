"""Captions from `metadata.jsonl`, `metadata.csv` or `.txt` files, every error with its line."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from vidcm.errors import UsageError

METADATA = ("metadata.jsonl", "metadata.csv")


def read_text(file: Path) -> str:
    """UTF-8 text without byte order mark, lines separated by newlines alone. Raises UsageError."""
    try:
        text = file.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        detail = f"{error.reason} at byte {error.start}"
        raise UsageError(f"{file} is not UTF-8 ({detail}); save it as UTF-8") from None
    except OSError as error:
        raise UsageError(f"{file} cannot be read: {error.strerror}") from None
    return text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")


def read_metadata(file: Path) -> dict[str, str]:
    """Captions by file name, in the order of the file.

    Raises:
        UsageError: names file and line.
    """
    rows = _jsonl(file) if file.suffix == ".jsonl" else _csv(file)
    found: dict[str, str] = {}
    lines: dict[str, int] = {}
    for line, row in rows:
        at = f"{file}:{line}"
        column = _caption_column(at, list(row))
        name, text = row["file_name"], row[column]
        for key, value in (("file_name", name), (column, text)):
            if not isinstance(value, str):
                kind = "nothing" if value is None else type(value).__name__
                raise UsageError(f"{at}: {key} is {kind} ({value!r}), expected text")
        assert isinstance(name, str) and isinstance(text, str)
        path = PurePosixPath(name)
        if not name or path.is_absolute() or ".." in path.parts or "\0" in name:
            raise UsageError(f"{at}: file_name {name!r} leaves the folder; name a file inside it")
        name = str(path)
        if name in found:
            raise UsageError(f"{at}: {name!r} is already in line {lines[name]}; keep one")
        found[name], lines[name] = text.strip(), line
    if not found:
        raise UsageError(f"{file} holds no caption; expected file_name and text (or caption)")
    return found


def _caption_column(at: str, columns: list[str]) -> str:
    texts = [name for name in ("text", "caption") if name in columns]
    if len(texts) == 2:
        raise UsageError(f"{at}: it has both 'text' and 'caption'; keep one of them")
    lacking = ([] if "file_name" in columns else ["file_name"]) + ([] if texts else ["text"])
    if lacking:
        has = ", ".join(repr(name) for name in columns[:20]) or "none"
        raise UsageError(
            f"{at}: missing {' and '.join(map(repr, lacking))}, found {has}; "
            "expected file_name and text (or caption)"
        )
    return texts[0]


def _jsonl(file: Path) -> Iterator[tuple[int, dict[str, object]]]:
    for line, text in enumerate(read_text(file).split("\n"), start=1):
        if not text.strip():
            continue
        try:
            row = json.loads(text)
        except RecursionError:
            raise UsageError(f"{file}:{line}: JSON nested too deeply") from None
        except ValueError as error:
            detail = str(error).replace("line 1 column", "column")
            raise UsageError(f"{file}:{line}: not JSON: {detail}") from None
        if not isinstance(row, dict):
            kind = type(row).__name__
            raise UsageError(f'{file}:{line}: a {kind}, expected {{"file_name": ..., "text": ...}}')
        yield line, row


def _csv(file: Path) -> Iterator[tuple[int, dict[str, object]]]:
    reader = csv.reader(io.StringIO(read_text(file)), strict=True)
    columns: list[str] | None = None
    try:
        for cells in reader:
            line = reader.line_num
            if not cells:
                continue
            if columns is None:
                columns = [cell.strip() for cell in cells]
                _caption_column(f"{file}:{line}", columns)
                if len(set(columns)) < len(columns):
                    raise UsageError(f"{file}:{line}: a column name is repeated in {columns}")
                continue
            if len(cells) != len(columns):
                raise UsageError(
                    f"{file}:{line}: {len(cells)} cells, expected {len(columns)} as in the header; "
                    'put text with commas in "quotes"'
                )
            yield line, dict(zip(columns, cells, strict=True))
    except csv.Error as error:
        raise UsageError(f"{file}:{reader.line_num}: not CSV: {error}") from None
