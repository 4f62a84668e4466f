"""`tools/evaluate.py`: quality per step count against the true clips: JSON, markdown, a sheet."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from vidcm.cli.common import (
    Parser,
    add_art,
    add_checkpoint,
    add_device,
    add_seed,
    art_of,
    did_you_mean,
    existing_file,
    positive_int,
    run,
    whole_number,
)
from vidcm.errors import UsageError

if TYPE_CHECKING:
    from vidcm.lpc.dataset import LPC
    from vidcm.pipeline import VideoPipeline

ROWS = ("codec", "teacher-50", "teacher-8", "student-1", "student-2", "student-4", "student-8")
SHEET_PROMPTS = 4


def parser() -> Parser:
    p = Parser(
        "evaluate",
        "Measure a model against the true clips of held-out LPC prompts: adherence, fidelity,\n"
        "Fréchet distance, motion and diversity, for each number of steps. An evaluation that\n"
        "was interrupted goes on from its last finished row when the same command is given again.",
        "examples:\n"
        "  vidcm evaluate --output results.json --rows student-1 student-4 --count 64\n"
        "  vidcm evaluate --output docs/results/lpc-64.json --hand-prompts --into README.md\n"
        "  vidcm evaluate --table docs/results/lpc-64.json\n"
        "  vidcm evaluate --sheet sheet.png\n"
        "  vidcm evaluate --editing docs/results/editing.json --count 16 --into docs/editing.md\n"
        "  vidcm evaluate --editing docs/results/editing.json --tasks extend loop --examples images/\n"
        "  vidcm evaluate --steering docs/results/steering.json --into docs/experiments.md\n"
        "  vidcm evaluate --long docs/results/long.json --into docs/long-clips.md\n"
        "  vidcm evaluate --long-edits docs/results/long_edits.json --into docs/editing.md",
    )
    what = p.add_argument_group("what to write")
    what.add_argument(
        "--output", type=Path, metavar="JSON", help="measure, and keep the numbers here"
    )
    what.add_argument(
        "--table", type=existing_file, metavar="JSON", help="print numbers measured before"
    )
    what.add_argument(
        "--into",
        type=Path,
        metavar="MD",
        help="put the table between the marks "
        "<!-- results:begin --> and <!-- results:end --> of this file",
    )
    what.add_argument(
        "--sheet", type=Path, metavar="PNG", help=f"clips of {SHEET_PROMPTS} prompts, side by side"
    )
    apart = what.add_mutually_exclusive_group()
    apart.add_argument(
        "--editing",
        type=Path,
        metavar="JSON",
        help="measure edits instead, beside the teacher's and simple ones; --into then fills "
        "<!-- editing:begin --> to <!-- editing:end -->, and --sheet shows edits",
    )
    apart.add_argument(
        "--steering",
        type=Path,
        metavar="JSON",
        help="measure instead what guidance and negative prompts do to student and teacher; --into "
        "then fills <!-- steering:begin --> to <!-- steering:end -->",
    )
    apart.add_argument(
        "--long",
        type=Path,
        metavar="JSON",
        help="measure instead clips beyond the trained length and width, and prompts that change; "
        "--into then fills <!-- long:begin --> to <!-- long:end -->",
    )
    apart.add_argument(
        "--long-edits",
        type=Path,
        metavar="JSON",
        help="measure instead edits of long clips, whole and in pieces; --into then fills "
        "<!-- long-edits:begin --> to <!-- long-edits:end -->",
    )
    what.add_argument(
        "--examples",
        type=Path,
        metavar="FOLDER",
        help="with --editing: also a small animated picture for each task",
    )
    what.add_argument(
        "--overwrite", action="store_true", help="replace what --output, --sheet and so on name"
    )
    how = p.add_argument_group("how to measure")
    add_checkpoint(how)
    add_art(how)
    how.add_argument(
        "--rows",
        nargs="+",
        choices=ROWS,
        metavar="ROW",
        help=f"some of: {' '.join(ROWS)} (default: all)",
    )
    how.add_argument(
        "--tasks", nargs="+", metavar="TASK", help="with --editing: only these (default: all)"
    )
    how.add_argument(
        "--zero-shot",
        action="store_true",
        help="with --editing: a model trained with given frames also without being shown them; "
        "--into then fills <!-- given:begin --> to <!-- given:end -->",
    )
    how.add_argument(
        "--count",
        type=whole_number(2),
        help="held-out combinations (512; 16 with --editing, 32 with --steering, 24 with --long, "
        "3 with --long-edits)",
    )
    add_seed(how, "of the combinations and the noise")
    how.add_argument(
        "--batch", type=positive_int, default=16, help="clips made at a time (16); edits one by one"
    )
    how.add_argument(
        "--hand-prompts", action="store_true", help="also measure 50 prompts written by hand"
    )
    add_device(how)
    return p


def main(argv: list[str] | None = None) -> int:
    return run(_evaluate, parser().parse_args(argv))


def _evaluate(args: argparse.Namespace) -> None:
    from vidcm.evaluation.markdown import rewrite
    from vidcm.evaluation.report import read_results, table

    if args.editing:
        _evaluate_edits(args)
        return
    if args.steering or args.long or args.long_edits:
        _evaluate_apart(args)
        return
    about_edits = {"--examples": args.examples, "--tasks": args.tasks}
    for option, given in (about_edits | {"--zero-shot": args.zero_shot}).items():
        if given:
            raise UsageError(f"{option} is about edits; give --editing too, or leave it out")
    if args.table and (args.output or args.sheet):
        raise UsageError("--table shows numbers measured before; leave out --output and --sheet")
    if not (args.table or args.output or args.sheet):
        raise UsageError("there is nothing to write; give --output, --sheet or --table")
    if args.into and not (args.table or args.output):
        raise UsageError("--into needs numbers; give --table or --output too")
    results = read_results(args.table) if args.table else _measure(args)
    if results is None:
        return
    text = table(results)
    if args.into:
        rewrite(args.into, "results", text)
    else:
        print(text, end="")


def _evaluate_edits(args: argparse.Namespace) -> None:
    from vidcm.diffusion.given_frames import trained_with
    from vidcm.evaluation.edit_cases import NAMES
    from vidcm.evaluation.edit_report import report
    from vidcm.evaluation.edit_sheet import check_examples, write_edit_sheet, write_examples
    from vidcm.evaluation.edits import ROWS as EDIT_ROWS
    from vidcm.evaluation.edits import evaluate_edits
    from vidcm.evaluation.markdown import block, rewrite
    from vidcm.evaluation.protocol import Truth
    from vidcm.store import read_card

    if args.table or args.output:
        raise UsageError("--editing keeps its own numbers; leave out --table and --output")
    if args.editing.is_dir():
        raise UsageError(f"--editing {args.editing} is a folder; give the name of a .json file")
    tasks, rows = args.tasks or NAMES, args.rows or EDIT_ROWS
    for given, known in ((tasks, NAMES), (rows, EDIT_ROWS)):
        if unknown := [name for name in given if name not in known]:
            hint = did_you_mean(unknown[0], known)
            raise UsageError(f"edits have no {unknown[0]!r}{hint} (known: {', '.join(known)})")
    if args.zero_shot:
        rows = (*rows, *(row.replace("-", "-zero-shot-") for row in rows))
    into = "given" if args.zero_shot else "editing"
    if args.into:
        block(args.into, into)
    if args.examples:
        check_examples(args.examples, tasks, args.overwrite)
    pipe, lpc = _model_and_truth(args)
    if args.zero_shot and not trained_with(read_card(pipe.folder / "student")):
        raise UsageError(
            f"--zero-shot is for models trained with given frames, and {args.checkpoint} was not; "
            "leave it out"
        )
    results = evaluate_edits(
        pipe,
        Truth(lpc, args.count or 16, args.seed),
        args.editing,
        name=Path(args.checkpoint).name,
        rows=rows,
        tasks=tasks,
        overwrite=args.overwrite,
    )
    shown = {"truth": Truth(lpc, 2, args.seed), "tasks": tasks, "overwrite": args.overwrite}
    if args.sheet:
        write_edit_sheet(pipe, path=args.sheet, **shown)
    if args.examples:
        write_examples(pipe, folder=args.examples, **shown)
    if args.into:
        rewrite(args.into, into, report(results))
    else:
        print(report(results), end="")


def _evaluate_apart(args: argparse.Namespace) -> None:
    """Steering, long clips or long edits: numbers and rows of their own."""
    from vidcm.evaluation import long, long_edits, steering
    from vidcm.evaluation.markdown import block, rewrite
    from vidcm.evaluation.protocol import Truth

    kinds = {
        "steering": (args.steering, 32, steering.steer, steering.table),
        "long": (args.long, 24, long.measure_long, long.table),
        "long-edits": (args.long_edits, 3, long_edits.measure_long_edits, long_edits.table),
    }
    kind = next(kind for kind, (output, *_) in kinds.items() if output)
    output, count, measure, table = kinds[kind]
    batch = {} if args.long_edits else {"batch": args.batch}
    others = {"--table": args.table, "--output": args.output, "--sheet": args.sheet}
    others |= {"--rows": args.rows, "--examples": args.examples, "--tasks": args.tasks}
    others |= {"--zero-shot": args.zero_shot, "--hand-prompts": args.hand_prompts}
    for option, given in others.items():
        if given:
            raise UsageError(f"--{kind} has numbers and rows of its own; leave out {option}")
    if output.is_dir():
        raise UsageError(f"--{kind} {output} is a folder; give the name of a .json file")
    if args.into:
        block(args.into, kind)
    pipe, lpc = _model_and_truth(args)
    truth = Truth(lpc, args.count or count, args.seed)
    name = Path(args.checkpoint).name
    results = measure(pipe, truth, output, name=name, overwrite=args.overwrite, **batch)
    if args.into:
        rewrite(args.into, kind, table(results))
    else:
        print(table(results), end="")


def _measure(args: argparse.Namespace) -> dict | None:
    """Writes the sheet, then the numbers; gives the latter."""
    from vidcm.evaluation.protocol import Truth, evaluate
    from vidcm.evaluation.sheet import write_sheet

    if args.output and args.output.is_dir():
        raise UsageError(f"--output {args.output} is a folder; give the name of a .json file")
    pipe, lpc = _model_and_truth(args)
    if args.sheet:
        write_sheet(
            pipe, Truth(lpc, SHEET_PROMPTS, args.seed), args.sheet, overwrite=args.overwrite
        )
    if not args.output:
        return None
    return evaluate(
        pipe,
        lpc,
        args.output,
        name=Path(args.checkpoint).name,
        rows=args.rows or ROWS,
        count=args.count or 512,
        seed=args.seed,
        batch=args.batch,
        hand_prompts=args.hand_prompts,
        overwrite=args.overwrite,
    )


def _model_and_truth(args: argparse.Namespace) -> "tuple[VideoPipeline, LPC]":
    """The model and the true clips, after a look at what else would stop the command."""
    from vidcm.lpc.dataset import LPC
    from vidcm.media.write import check_output
    from vidcm.pipeline import VideoPipeline

    if args.sheet:
        if args.sheet.suffix.lower() != ".png":
            raise UsageError(f"--sheet writes .png files, not {args.sheet.name!r}")
        check_output(args.sheet, args.overwrite)
    art = art_of(args)
    pipe = VideoPipeline.from_pretrained(args.checkpoint, args.device)
    return pipe, LPC(art, num_frames=pipe.settings["frames"])
