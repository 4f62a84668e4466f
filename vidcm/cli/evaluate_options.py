"""The options of `vidcm evaluate`. Needs neither torch nor numpy."""

import argparse
from pathlib import Path

from vidcm.cli.argument_types import existing_file, integer, positive_int
from vidcm.cli.options import add_art, add_checkpoint, add_device, add_seed
from vidcm.evaluation.rows import ROWS

# Option of the results file: default count, module and function that measures.
MEASURES = {
    "output": (512, "quality:evaluate_rows"),
    "editing": (16, "edits:evaluate_edits"),
    "steering": (32, "steering:measure_steering"),
    "long": (24, "long:measure_long"),
    "long_edits": (3, "long_edits:measure_long_edits"),
}


def add_measures(p: argparse.ArgumentParser) -> None:
    """What to measure and where to write it."""
    what = p.add_argument_group("what to measure, into a file of results that is kept")
    measure = what.add_mutually_exclusive_group()
    for option, help_text in (
        ("--output", "quality"),
        ("--editing", "edits, beside the teacher's and baselines; --sheet then shows edits"),
        ("--steering", "what guidance and negative prompts do to student and teacher"),
        ("--long", "clips beyond the trained length and width, and prompts that change"),
        ("--long-edits", "edits of long clips, in windows and in pieces"),
    ):
        measure.add_argument(option, type=Path, metavar="JSON", help=help_text)
    measure.add_argument(
        "--frechet",
        type=Path,
        nargs=2,
        metavar="FOLDER",
        help="nothing of a model: print the Fréchet distance between the videos of two folders",
    )
    measure.add_argument(
        "--table", type=existing_file, metavar="JSON", help="nothing: print a file of any kind"
    )
    out = p.add_argument_group("what else to write")
    out.add_argument(
        "--into",
        type=Path,
        metavar="MD",
        help="put the tables between the marks of their kind in this file instead of printing "
        "them, as <!-- results:begin --> and <!-- results:end --> (or editing, given with "
        "--zero-shot, steering, long, long-edits)",
    )
    out.add_argument("--sheet", type=Path, metavar="PNG", help="clips of 4 prompts, side by side")
    out.add_argument(
        "--examples",
        type=Path,
        metavar="FOLDER",
        help="with --editing: also a small animated picture of each task",
    )
    out.add_argument("--overwrite", action="store_true", help="replace existing files")


def add_settings(how: argparse._ActionsContainer) -> None:
    """How to measure."""
    add_checkpoint(how)
    add_art(how)
    how.add_argument(
        "--rows",
        nargs="+",
        metavar="ROW",
        help="codec, teacher-N or student-N, N steps, with --diffusers also diffusers-N; of edits "
        "codec and diffusers are left out (default: "
        f"{' '.join(map(str, ROWS))})",
    )
    how.add_argument(
        "--diffusers",
        type=Path,
        metavar="FOLDER",
        help="the student as `vidcm export --to diffusers --storage fp32` wrote it: rows "
        "diffusers-N are made by diffusers",
    )
    how.add_argument(
        "--tasks", nargs="+", metavar="TASK", help="with --editing: only these (default: all)"
    )
    how.add_argument(
        "--zero-shot",
        action="store_true",
        help="with --editing: also measure a model trained with given frames without feeding them",
    )
    counts = ", ".join(f"{n} with --{k.replace('_', '-')}" for k, (n, _) in MEASURES.items())
    how.add_argument("--count", type=integer(2, 100_000), help=f"held-out combinations ({counts})")
    add_seed(how, "of the combinations and the noise")
    how.add_argument(
        "--batch", type=positive_int, default=16, help="clips at a time; edits one by one"
    )
    how.add_argument(
        "--hand-prompts", action="store_true", help="also measure 50 prompts written by hand"
    )
    how.add_argument(
        "--features",
        default="lpc",
        metavar="NET",
        help="with --frechet: lpc, for clips of that task, or timm:MODEL, as timm:resnet18",
    )
    how.add_argument(
        "--features-checkpoint",
        type=existing_file,
        metavar="FILE",
        help="with --features timm:MODEL: its weights (default: timm downloads its own)",
    )
    add_device(how)
