"""Progress, warnings and the report of a result, as `vidcm generate` and `vidcm edit` print them."""

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from vidcm.conditioning.prompts import unknown_words

if TYPE_CHECKING:
    from vidcm.diffusion.denoiser import Denoiser
    from vidcm.media.clips import Clips


@contextmanager
def progress_bar(args: argparse.Namespace) -> Iterator[Callable[[int, int], None]]:
    """A progress bar over denoising steps, for terminals and more than a few steps."""
    from tqdm import tqdm

    quiet = args.json or not sys.stderr.isatty() or (args.steps or 0) < 8 and not args.teacher
    with tqdm(unit="step", disable=quiet, leave=False) as bar:

        def update(step: int, steps: int) -> None:
            bar.total = steps
            bar.update(step - bar.n)

        yield update


def note(text: str) -> None:
    """A line beside the result, on stderr."""
    print(text, file=sys.stderr)


def warn_about_words(
    settings: Mapping[str, Any], model: "Denoiser", prompts: Sequence[str]
) -> None:
    """Name the words of prompts that the model does not read, or has not met in training."""
    for prompt in prompts:
        if words := model.conditioner.dropped(prompt):
            note(f"warning: too long, the end of a prompt is not read: {' '.join(words[:8])} ...")
    known = set(settings.get("known_words", "").split())
    if known and (words := unknown_words(prompts, known)):
        note(f"warning: the model does not know: {', '.join(words[:8])}{' ...' * (len(words) > 8)}")


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
