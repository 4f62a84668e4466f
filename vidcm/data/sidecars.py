"""Captions from `metadata.jsonl`, `.csv`, `.parquet` or `.txt` files, errors with their lines."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from vidcm.errors import UsageError

METADATA = ("metadata.jsonl", "metadata.csv", "metadata.parquet")
CAPTION_COLUMN = re.compile(r"(text|caption)s?([-_ ]?\d+)?")


def read_text(file: Path) -> str:
    """UTF-8 text without byte order mark, lines separated by newlines alone. Raises UsageError."""
    try:
        return decoded(str(file), file.read_bytes())
    except OSError as error:
        raise UsageError(f"{file} cannot be read: {error.strerror}") from None


def decoded(where: str, blob: bytes) -> str:
    """The text of a file, as `read_text`; where: its name, for the error."""
    try:
        text = blob.decode("utf-8")
    except UnicodeDecodeError as error:
        detail = f"{error.reason} at byte {error.start}"
        raise UsageError(f"{where} is not UTF-8 ({detail}); save it as UTF-8") from None
    return text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")


def json_captions(where: str, blob: bytes) -> list[str] | None:
    """The captions in a JSON file beside a video, None if it is about something else.

    Raises:
        UsageError: it is not JSON, or a caption is not text.
    """
    row = _parsed(where, decoded(where, blob))
    if not isinstance(row, dict):
        return None
    columns = [name for name in row if CAPTION_COLUMN.fullmatch(name)]
    return _captions(where, row, columns) if columns else None


def read_metadata(file: Path) -> dict[str, list[str]]:
    """Captions by file name, in the order of the file; a name in several lines has those of all.

    Captions are in the columns `text` and `caption`, or any number of them (`caption_1`,
    `caption_2`); a column may also hold lists (not in CSV). Blank ones count where a name has no
    other.

    Raises:
        UsageError: names file and line.
    """
    rows = {".jsonl": _jsonl, ".csv": _csv, ".parquet": _parquet}[file.suffix](file)
    found: dict[str, list[str]] = {}
    for line, row in rows:
        at = f"{file}:{line}"
        columns = _caption_columns(at, list(row))
        name = row["file_name"]
        if not isinstance(name, str):
            raise UsageError(f"{at}: file_name is {_kind(name)} ({name!r}), expected text")
        path = PurePosixPath(name.replace("\\", "/"))
        if not name or path.is_absolute() or ".." in path.parts or "\0" in name:
            raise UsageError(f"{at}: file_name {name!r} leaves the folder; name a file inside it")
        found.setdefault(name, []).extend(_captions(at, row, columns))
    if not found:
        raise UsageError(f"{file} holds no caption; expected file_name and text (or caption)")
    return found


def without_blanks(captions: list[str]) -> list[str]:
    """The captions that are not empty, or one empty one."""
    return [caption for caption in captions if caption] or [""]


def _captions(at: str, row: dict[str, object], columns: list[str]) -> list[str]:
    """The captions of a line; nothing in one of several columns is no caption."""
    found: list[str] = []
    for column in columns:
        value = row[column]
        if value is None and len(columns) > 1:
            continue
        texts = value if isinstance(value, list) and value else [value]
        for text in texts:
            if not isinstance(text, str):
                raise UsageError(
                    f"{at}: {column} is {_kind(value)} ({value!r}), expected text, or texts"
                )
            found.append(text.strip())
    if not found:
        raise UsageError(f"{at}: {' and '.join(columns)} are nothing, expected text")
    return found


def _kind(value: object) -> str:
    return "nothing" if value is None else type(value).__name__


def _caption_columns(at: str, columns: list[str]) -> list[str]:
    texts = [name for name in columns if CAPTION_COLUMN.fullmatch(name)]
    lacking = ([] if "file_name" in columns else ["file_name"]) + ([] if texts else ["text"])
    if lacking:
        has = ", ".join(repr(name) for name in columns[:20]) or "none"
        raise UsageError(
            f"{at}: missing {' and '.join(map(repr, lacking))}, found {has}; "
            "expected file_name and text (or caption)"
        )
    return texts


def _jsonl(file: Path) -> Iterator[tuple[int, dict[str, object]]]:
    for line, text in enumerate(read_text(file).split("\n"), start=1):
        if text.strip():
            yield line, _json_row(f"{file}:{line}", text)


def _json_row(at: str, text: str) -> dict[str, object]:
    row = _parsed(at, text)
    if not isinstance(row, dict):
        kind = type(row).__name__
        raise UsageError(f'{at}: a {kind}, expected {{"file_name": ..., "text": ...}}')
    return row


def _parsed(at: str, text: str) -> object:
    try:
        return json.loads(text)
    except RecursionError:
        raise UsageError(f"{at}: JSON nested too deeply") from None
    except ValueError as error:
        detail = str(error).replace("line 1 column", "column")
        raise UsageError(f"{at}: not JSON: {detail}") from None


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
                _caption_columns(f"{file}:{line}", columns)
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


def _parquet(file: Path) -> Iterator[tuple[int, dict[str, object]]]:
    try:
        from pyarrow import parquet
    except ImportError:
        fix = "pip install -e '.[parquet]', or write metadata.jsonl"
        raise UsageError(f"{file} needs the package pyarrow, not installed; {fix}") from None
    row = 0
    try:
        with parquet.ParquetFile(file) as table:
            columns = _caption_columns(str(file), table.schema_arrow.names)
            for batch in table.iter_batches(columns=["file_name", *columns]):
                for cells in batch.to_pylist():
                    row += 1
                    yield row, cells
    except (OSError, ValueError) as error:  # pyarrow's own are among these
        detail = (str(error).splitlines() or ["damaged"])[0]
        raise UsageError(f"{file} is not read as parquet after row {row}: {detail}") from None
