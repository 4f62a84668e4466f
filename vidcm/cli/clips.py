"""Progress, warnings and the report of a result, as `generate` and `edit` print them."""

import argparse
import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vidcm.media.clips import Clips
    from vidcm.pipeline import StepCallback, VideoPipeline

STARTED = time.perf_counter()


@contextmanager
def progress_bar(args: argparse.Namespace) -> Iterator["StepCallback"]:
    """A progress bar over denoising steps, for terminals and more than a few steps."""
    from tqdm import tqdm

    quiet = args.json or not sys.stderr.isatty() or (args.steps or 0) < 8 and not args.teacher
    with tqdm(unit="step", disable=quiet, leave=False) as bar:

        def update(pipe: "VideoPipeline", step: int, time: float, state: dict) -> dict:
            if step == 0:
                own = pipe.settings.of("teacher" if args.teacher else "student")
                bar.reset(args.steps or own.num_inference_steps)
            bar.update()
            return {}

        yield update


def note(text: str) -> None:
    """A line beside the result, on stderr."""
    print(text, file=sys.stderr)


def warn(sentences: Sequence[str]) -> None:
    """Warnings on stderr, one a line."""
    for sentence in sentences:
        note(f"warning: {sentence}")


def report(
    args: argparse.Namespace,
    clips: "Clips",
    paths: Sequence[object],
    facts: Mapping[str, Any],
    loaded: float,
    generated: float,
) -> None:
    """Print the paths and where the time went; with --json, `facts`, evaluations and seconds.

    Args:
        args: of the command.
        clips: the result.
        paths: written files.
        facts: about them.
        loaded: `time.perf_counter()` when the models were in place.
        generated: when there were clips; from then on they were written.
    """
    written = time.perf_counter()
    spans = {"load": loaded - STARTED, **clips.seconds, "write": written - generated}
    spans["total"] = written - STARTED
    seconds = {stage: round(value, 4) for stage, value in spans.items()}
    if args.json:
        print(json.dumps({**facts, "evaluations": clips.evaluations, "seconds": seconds}))
        return
    for path in paths:
        print(path)
    spent = ", ".join(f"{k} {v:.2f} s" for k, v in seconds.items() if k != "total")
    noun = "evaluation" if clips.evaluations == 1 else "evaluations"
    print(f"{clips.evaluations} network {noun} a clip; {seconds['total']:.2f} s in all: {spent}")
