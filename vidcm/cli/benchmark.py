"""`vidcm benchmark`: latency by stage, student beside teacher; tables and comparisons of it."""

import argparse
import json
import os
import sys
from pathlib import Path

from vidcm.cli import benchmark_data, benchmark_serve
from vidcm.cli.argument_types import existing_file, integer, positive_int
from vidcm.cli.common import Parser, run
from vidcm.cli.options import add_checkpoint, add_device, add_seed, check_writable
from vidcm.errors import UsageError
from vidcm.evaluation.latency_report import SCHEMA, compare_latency, latency_table, read_latency
from vidcm.evaluation.markdown import block, rewrite
from vidcm.evaluation.results import well_formed
from vidcm.evaluation.rows import Row

PARTS = {"data": benchmark_data.data, "media": benchmark_data.media, "serve": benchmark_serve.serve}


def parser() -> Parser:
    p = Parser(
        "benchmark",
        "Measure the time of a clip by stage: text, denoise, decode and write. Rows take turns,\n"
        "so that other load on the machine affects them alike. Or show, or compare, measurements.",
        "examples:\n"
        "  vidcm benchmark --output bench.json --cold\n"
        "  vidcm benchmark --rows teacher-8,student-1 --repeats 20 --threads 1\n"
        "  vidcm benchmark --table bench.json --into README.md\n"
        "  vidcm benchmark --compare old.json new.json   (exit code 1 when slower)\n"
        "  vidcm benchmark data --help    (decoding, loader threads and shards)\n"
        "  vidcm benchmark media --help   (frames against those of ffmpeg)\n"
        "  vidcm benchmark serve --help   (vidcm serve under load)",
    )
    how = p.add_argument_group("what to measure")
    add_checkpoint(how)
    rows = "teacher-50,student-4,student-2,student-1"
    how.add_argument("--rows", default=rows, help="role and steps, in commas")
    how.add_argument("--prompt", help="what the clips show (default: the README's)")
    how.add_argument("--batch", type=positive_int, default=1, help="clips per call")
    add_seed(how, "of the first clip")
    how.add_argument("--warmup", type=positive_int, default=2, help="turns kept apart")
    how.add_argument("--repeats", type=positive_int, default=10, help="turns measured")
    cold = "also start N new processes per row, 3 unless told: start to mp4"
    how.add_argument(
        "--cold", type=positive_int, nargs="?", const=3, default=0, metavar="N", help=cold
    )
    add_device(how)
    how.add_argument(
        "--threads", type=integer(1, 1024), help="CPU threads (default: torch's choice)"
    )
    out = p.add_argument_group("what to write")
    out.add_argument("--output", type=Path, metavar="JSON", help="keep every number here")
    out.add_argument("--overwrite", action="store_true", help="replace what --output names")
    into = "put the table between <!-- latency:begin --> and <!-- latency:end --> in this file"
    out.add_argument("--into", type=Path, metavar="MD", help=into)
    old = p.add_mutually_exclusive_group()
    table = "show numbers measured before"
    old.add_argument("--table", type=existing_file, metavar="JSON", help=table)
    change = "change by stage; refuses measurements of different things"
    old.add_argument("--compare", type=existing_file, nargs=2, metavar=("OLD", "NEW"), help=change)
    return p


def main(argv: list[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    if argv[:1] and argv[0] in PARTS:
        return PARTS[argv[0]](argv[1:])
    return run(_benchmark, parser().parse_args(argv))


def _benchmark(args: argparse.Namespace) -> int:
    if (args.table or args.compare) and args.output:
        raise UsageError("--table and --compare show numbers measured before; leave out --output")
    if args.compare:
        if args.into:
            raise UsageError("--into takes a table; leave out --compare, or --into")
        old, new = map(read_latency, args.compare)
        with well_formed(args.compare[1]):
            text, slower = compare_latency(old, new)
        print(text)
        return int(slower)
    if args.into:
        block(args.into, "latency")  # now, not after minutes of measuring
    results = read_latency(args.table) if args.table else _measure(args)
    with well_formed(args.table):
        text = latency_table(results)
    if args.into:
        rewrite(args.into, "latency", text)
    else:
        print(text, end="")
    return 0


def _measure(args: argparse.Namespace) -> dict:
    from vidcm.files import write_text

    if args.output:
        _check_free(args.output, args.overwrite)
    rows = parse_rows(args.rows)
    from tqdm import tqdm

    from vidcm.evaluation.latency import LatencyPlan, measure_latency

    cores, load = len(os.sched_getaffinity(0)), os.getloadavg()[0]
    if load > cores / 2:
        print(
            f"warning: the machine is busy (load {load:.1f} on {cores} cores): ratios hold, times "
            "do not",
            file=sys.stderr,
        )
    options = ("prompt", "batch", "warmup", "repeats", "cold", "seed", "threads")
    plan = LatencyPlan(**{k: v for k in options if (v := getattr(args, k)) is not None})
    with tqdm(
        total=plan.calls(len(rows)), unit="call", leave=False, disable=not sys.stderr.isatty()
    ) as bar:

        def tick(row: str) -> None:
            bar.set_description(row, refresh=False)
            bar.update()

        measured = measure_latency(args.checkpoint, args.device, rows, plan, tick)
    results = {"schema_version": SCHEMA, **measured}
    if args.output:
        write_text(args.output, json.dumps(results, indent=1) + "\n")
    return results


def parse_rows(text: str) -> list[Row]:
    """The rows of "teacher-50,student-1".

    Raises:
        UsageError: a name of another form, or given twice.
    """
    rows = [Row.parse(word.strip()) for word in text.split(",")]
    for row in rows:
        if row.role == "codec" or row.zero_shot:
            raise UsageError(f"got the row {row} in --rows, expected teacher-N or student-N")
        if rows.count(row) > 1:
            raise UsageError(f"got {row} twice in --rows, expected each row once")
    return rows


def _check_free(path: Path, overwrite: bool) -> None:
    """Refuse an output before measuring for it."""
    if path.exists() and not path.is_file():
        raise UsageError(f"--output {path} is not a file; give the name of a .json file")
    if path.exists() and not overwrite:
        raise UsageError(f"{path} exists; give another --output, or --overwrite")
    check_writable(path)
