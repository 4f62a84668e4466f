"""Types of command-line arguments; a refusal says what came and what is expected.

Imports no torch, so that `--help` answers at once.
"""

import argparse
import math
import re
from collections.abc import Callable
from pathlib import Path

from vidcm.arguments import MAX_SEED
from vidcm.schema import did_you_mean


def integer(low: int, high: int | None = None) -> Callable[[str], int]:
    """An argparse type: an int in [low, high]; no upper end when `high` is None."""
    reach = f", {low} or more" if high is None else f" from {low} to {high}"
    rule = f"a whole number{reach}"

    def convert(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            raise _refusal(text, rule) from None
        if value < low or (high is not None and value > high):
            raise _refusal(text, rule)
        return value

    return convert


def number(low: float, high: float = math.inf) -> Callable[[str], float]:
    """An argparse type: a finite float in [low, high]; nan and infinities are refused."""
    reach = f", {low:g} or more" if high == math.inf else f" from {low:g} to {high:g}"
    rule = f"a number{reach}"

    def convert(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            raise _refusal(text, rule) from None
        if not math.isfinite(value) or not low <= value <= high:
            raise _refusal(text, rule)
        return value

    return convert


positive_int = integer(1)
seed = integer(0, MAX_SEED - 1)


def sides(names: str) -> Callable[[str], tuple[int, ...]]:
    """An argparse type: whole numbers joined by x; names: their meaning, as "HEIGHTxWIDTH"."""
    count = names.count("x") + 1
    example = "x".join(["9", "64", "128"][-count:])
    side = integer(1, 100_000)

    def convert(text: str) -> tuple[int, ...]:
        parts = text.split("x")
        if len(parts) != count or not all(part.isdecimal() for part in parts):
            raise _refusal(text, f"{names}, as {example}")
        return tuple(map(side, parts))

    return convert


def device(text: str) -> str:
    """An argparse type: the name of a device; whether it is there, `pick_device` says."""
    if not re.fullmatch(r"auto|cpu|cuda(:\d{1,3})?", text):
        raise _refusal(text, "auto, cpu, cuda, or one GPU, as cuda:1")
    return text


def existing_file(text: str) -> Path:
    """An argparse type: the path of a file that is there (a pipe such as /dev/stdin will do)."""
    if Path(text).is_dir():
        raise argparse.ArgumentTypeError(f"{quoted(text)} is a folder, expected a file")
    return existing_path(text)


def existing_folder(text: str) -> Path:
    """An argparse type: the path of a folder that is there."""
    path = existing_path(text)
    if not path.is_dir():
        raise argparse.ArgumentTypeError(f"{quoted(text)} is a file, expected a folder")
    return path


def existing_path(text: str) -> Path:
    """An argparse type: the path of a file or folder that is there."""
    path = Path(text)
    if not text.strip():
        raise argparse.ArgumentTypeError("got an empty name, expected that of a file or folder")
    if not path.exists():
        siblings = [item.name for item in path.parent.iterdir()] if path.parent.is_dir() else []
        hint = did_you_mean(path.name, siblings)
        raise argparse.ArgumentTypeError(f"no such file {quoted(text)}{hint}")
    return path


def lora(text: str) -> tuple[Path, float]:
    """An argparse type: the path of a LoRA file, and a scale after a colon (default: 1)."""
    name, colon, scale = text.rpartition(":")
    if not colon or Path(text).exists():
        return existing_file(text), 1.0
    return existing_file(name), number(-100, 100)(scale)


def clip_output(text: str) -> str:
    """An argparse type: a name for clips, with an extension or with a final / for a folder."""
    if not text.endswith("/") and not Path(text).suffix:
        example = "clip.mp4, or clip/ for a folder of png frames"
        raise _refusal(text, f"a file name with an extension, as {example}")
    return text


def output_folder(text: str) -> Path:
    """An argparse type: the path of a folder, which need not exist; no file is in its way."""
    path = Path(text)
    if not text.strip():
        raise argparse.ArgumentTypeError("got an empty name, expected that of a folder")
    if path.exists() and not path.is_dir():
        raise argparse.ArgumentTypeError(f"{quoted(text)} is a file, expected a folder")
    return path


def quoted(text: str) -> str:
    """A text of the user's in a message, cut if it is long."""
    return repr(text if len(text) <= 60 else text[:57] + "...")


def _refusal(text: str, rule: str) -> argparse.ArgumentTypeError:
    return argparse.ArgumentTypeError(f"got {quoted(text)}, expected {rule}")
