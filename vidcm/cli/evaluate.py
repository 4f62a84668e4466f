"""`tools/evaluate.py`: quality per step count against the true clips: JSON, markdown, a sheet."""

import argparse
import os
from pathlib import Path

from vidcm.cli.common import Parser, existing_file, positive_int, run, seed, whole_number
from vidcm.errors import UsageError

ROWS = ("codec", "teacher-50", "teacher-8", "student-1", "student-2", "student-4", "student-8")
SHEET_PROMPTS = 4


def parser() -> Parser:
    p = Parser(
        "vidcm evaluate",
        "Measure a model against the true clips of held-out LPC prompts: adherence, fidelity,\n"
        "Fréchet distance, motion and diversity, for each number of steps. An evaluation that\n"
        "was interrupted goes on from its last finished row when the same command is given again.",
        "examples:\n"
        "  vidcm evaluate --output results.json --rows student-1 student-4 --count 64\n"
        "  vidcm evaluate --output docs/results/lpc-64.json --hand-prompts --into README.md\n"
        "  vidcm evaluate --table docs/results/lpc-64.json\n"
        "  vidcm evaluate --sheet sheet.png\n"
        "  vidcm evaluate --editing docs/results/editing.json --count 64 --into docs/editing.md",
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
    what.add_argument(
        "--editing",
        type=Path,
        metavar="JSON",
        help="measure edits instead, beside the teacher's and simple ones; --into then fills "
        "<!-- editing:begin --> to <!-- editing:end -->",
    )
    what.add_argument(
        "--overwrite", action="store_true", help="replace what --output and --sheet name"
    )
    how = p.add_argument_group("how to measure")
    how.add_argument(
        "--checkpoint", default="lpc-64", help="a pipeline folder, or a bundled one (lpc-64)"
    )
    how.add_argument("--art", help="the LPC layers, folder or tar (default: $VIDCM_LPC_ART)")
    how.add_argument(
        "--rows",
        nargs="+",
        choices=ROWS,
        default=ROWS,
        metavar="ROW",
        help=f"some of: {' '.join(ROWS)} (default: all)",
    )
    how.add_argument(
        "--count", type=whole_number(2), default=512, help="held-out combinations (512)"
    )
    how.add_argument("--seed", type=seed, default=0, help="of the combinations and the noise (0)")
    how.add_argument("--batch", type=positive_int, default=16, help="clips made at a time (16)")
    how.add_argument(
        "--hand-prompts", action="store_true", help="also measure 50 prompts written by hand"
    )
    how.add_argument("--device", default="auto", help="auto (a GPU when there is one), cpu, cuda")
    return p


def main(argv: list[str] | None = None) -> int:
    return run(_evaluate, parser().parse_args(argv))


def _evaluate(args: argparse.Namespace) -> None:
    from vidcm.markdown import rewrite
    from vidcm.metrics.report import read_results, table

    if args.editing:
        _evaluate_edits(args)
        return

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
    from vidcm.data.lpc import LPC
    from vidcm.editing.evaluate import evaluate_edits, table, write_edit_sheet
    from vidcm.markdown import block, rewrite
    from vidcm.metrics.protocol import Truth
    from vidcm.pipeline import VideoPipeline
    from vidcm.video import check_output

    if args.table or args.output:
        raise UsageError("--editing keeps its own numbers; leave out --table and --output")
    if args.editing.is_dir():
        raise UsageError(f"--editing {args.editing} is a folder; give the name of a .json file")
    if args.into:
        block(args.into, "editing")
    if args.sheet:
        if args.sheet.suffix.lower() != ".png":
            raise UsageError(f"--sheet writes .png files, not {args.sheet.name!r}")
        check_output(args.sheet, args.overwrite)
    art = args.art or os.environ.get("VIDCM_LPC_ART")
    if not art:
        raise UsageError("the true clips need the LPC art; give --art, or set VIDCM_LPC_ART")
    pipe = VideoPipeline.from_pretrained(args.checkpoint, args.device)
    lpc = LPC(art, num_frames=pipe.settings["frames"])
    if args.sheet:
        write_edit_sheet(pipe, Truth(lpc, 1, args.seed), args.sheet, overwrite=args.overwrite)
    results = evaluate_edits(
        pipe,
        lpc,
        args.editing,
        name=Path(args.checkpoint).name,
        count=args.count,
        seed=args.seed,
        overwrite=args.overwrite,
    )
    if args.into:
        rewrite(args.into, "editing", table(results))
    else:
        print(table(results), end="")


def _measure(args: argparse.Namespace) -> dict | None:
    """Writes the sheet, then the numbers; gives the latter."""
    from vidcm.data.lpc import LPC
    from vidcm.metrics.protocol import Truth, evaluate
    from vidcm.metrics.sheet import write_sheet
    from vidcm.pipeline import VideoPipeline
    from vidcm.video import check_output

    if args.sheet:
        if args.sheet.suffix.lower() != ".png":
            raise UsageError(f"--sheet writes .png files, not {args.sheet.name!r}")
        check_output(args.sheet, args.overwrite)
    if args.output and args.output.is_dir():
        raise UsageError(f"--output {args.output} is a folder; give the name of a .json file")
    art = args.art or os.environ.get("VIDCM_LPC_ART")
    if not art:
        raise UsageError("the true clips need the LPC art; give --art, or set VIDCM_LPC_ART")
    pipe = VideoPipeline.from_pretrained(args.checkpoint, args.device)
    lpc = LPC(art, num_frames=pipe.settings["frames"])
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
        rows=args.rows,
        count=args.count,
        seed=args.seed,
        batch=args.batch,
        hand_prompts=args.hand_prompts,
        overwrite=args.overwrite,
    )
