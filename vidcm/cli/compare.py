"""`tools/compare.py`: every objective with the same teacher, budget and protocol."""

import argparse
from pathlib import Path

from vidcm.cli.argument_types import existing_file
from vidcm.cli.common import Parser, run
from vidcm.cli.options import add_art, art_of, check_writable
from vidcm.errors import UsageError, VidcmError


def parser() -> Parser:
    p = Parser(
        "compare",
        "Train every row of a comparison from the same teacher for the same seconds, measure it\n"
        "at 1, 2, 4, 8 evaluations beside the teacher's own solvers, and write numbers, a table\n"
        "and a plot. A comparison that was interrupted goes on where it stopped. A row that\n"
        "fails is recorded with its reason; the others go on, and the exit code is 1.",
        "examples:\n"
        "  vidcm compare --config configs/lpc/comparison.yaml\n"
        '  vidcm compare --config configs/lpc/comparison.yaml --rows "flow map" teacher-dpm\n'
        "  vidcm compare --table docs/results/comparison.json --into docs/comparison.md "
        "--plot docs/images/comparison.png",
    )
    p.add_argument("--config", type=existing_file, metavar="YAML", help="train and measure these")
    p.add_argument(
        "--rows",
        nargs="+",
        metavar="ROW",
        help="some of its rows (default: all); one of several seeds: 'NAME, seed 1'",
    )
    add_art(p)
    p.add_argument("--table", type=existing_file, metavar="JSON", help="numbers measured before")
    p.add_argument(
        "--into",
        type=Path,
        metavar="MD",
        help="put the table between <!-- comparison:begin --> and <!-- comparison:end -->",
    )
    p.add_argument("--plot", type=Path, metavar="PNG", help="quality against evaluations")
    return p


def main(argv: list[str] | None = None) -> int:
    return run(_compare, parser().parse_args(argv))


def _compare(args: argparse.Namespace) -> None:
    from vidcm.evaluation.comparison_report import (
        check_matplotlib,
        comparison_table,
        plot_comparison,
    )
    from vidcm.evaluation.markdown import block, rewrite
    from vidcm.evaluation.results import read_results, well_formed

    if (args.config is None) == (args.table is None):
        raise UsageError("give either --config (to measure) or --table (to show a measurement)")
    # What would fail at the end is refused before hours of work.
    if args.plot and args.plot.suffix.lower() != ".png":
        raise UsageError(f"--plot writes .png files, not {args.plot.name!r}")
    if args.plot:
        check_writable(args.plot)
        check_matplotlib()
    if args.into:
        block(args.into, "comparison")
    results, failed = (
        (read_results(args.table, "comparison"), None) if args.table else _measure(args)
    )
    with well_formed(args.table):
        text = comparison_table(results)
    if args.into:
        rewrite(args.into, "comparison", text)
    else:
        print(text, end="")
    if args.plot:
        plot_comparison(results, args.plot)
    if failed:
        raise failed


def _measure(args: argparse.Namespace) -> tuple[dict, VidcmError | None]:
    """The results, and the error to end with when some rows failed."""
    from vidcm.evaluation.comparison_config import read_comparison_config

    comparison = read_comparison_config(args.config, args.rows)
    art = art_of(args)

    from vidcm.evaluation.comparison import RowsFailed, run_comparison
    from vidcm.lpc.dataset import LPC

    try:
        return run_comparison(comparison, LPC(art), args.rows), None
    except RowsFailed as failed:
        return failed.results, failed
