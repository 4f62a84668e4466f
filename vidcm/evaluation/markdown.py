"""Tables in markdown, and the blocks of files that show them. Needs neither torch nor numpy."""

from pathlib import Path

from vidcm.errors import UsageError
from vidcm.files import write_text


def commit_of(environment: dict) -> str:
    """The commit that an `environment` of results names, as the line below a table has it."""
    return (environment["commit"] or "unknown")[:10] + (", changed" if environment["dirty"] else "")


def grid(head: list[str], lines: list[list[str]]) -> str:
    """A table whose first column is text and the others numbers."""
    bars = ["---", *["---:"] * (len(head) - 1)]
    return "\n".join("| " + " | ".join(line) + " |" for line in [head, bars, *lines])


def block(path: Path, name: str) -> tuple[str, str]:
    """What stands before and after the block between `<!-- name:begin -->` and `<!-- name:end -->`.

    Raises UsageError when the file or its marks are not there, once each and in order."""
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
    """Replace what stands in a block, nothing else. Raises as `block` and `write_text` do."""
    before, after = block(path, name)
    newline = "\r\n" if "\r\n" in before else "\n"
    write_text(path, before + f"\n{text.strip()}\n".replace("\n", newline) + after)
