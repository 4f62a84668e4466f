"""What `vidcm generate` and `vidcm edit` share: progress, warnings and the report of a result."""

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vidcm.media.clips import Clips


@contextmanager
def progress_bar(args: argparse.Namespace) -> Iterator[Callable[[int, int], None]]:
    """A progress bar over denoising steps, for terminals and more than a few steps."""
    from tqdm import tqdm

    quiet = args.json or not sys.stderr.isatty() or (args.steps or 0) < 8 and not args.teacher
    with tqdm(unit="step", disable=quiet, leave=False) as bar:

        def report(step: int, steps: int) -> None:
            bar.total = steps
            bar.update(step - bar.n)

        yield report


def note(text: str) -> None:
    """A line beside the result, on stderr."""
    print(text, file=sys.stderr)


def report(
    args: argparse.Namespace,
    clips: "Clips",
    paths: Sequence[object],
    facts: Mapping[str, Any],
    seconds: dict[str, float],
) -> None:
    """Print the paths and where the time went; with --json, `facts`, evaluations and seconds."""
    seconds = {stage: round(value, 4) for stage, value in seconds.items()}
    if args.json:
        print(json.dumps({**facts, "evaluations": clips.evaluations, "seconds": seconds}))
        return
    for path in paths:
        print(path)
    spent = ", ".join(f"{k} {v:.2f} s" for k, v in seconds.items() if k != "total")
    noun = "evaluation" if clips.evaluations == 1 else "evaluations"
    print(f"{clips.evaluations} network {noun} a clip; {seconds['total']:.2f} s in all: {spent}")
