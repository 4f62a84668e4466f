"""`tools/benchmark.py`: latency by stage, student beside teacher; tables and comparisons of it."""

import argparse
import json
import os
import re
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from vidcm.cli.common import (
    Parser,
    add_checkpoint,
    add_device,
    add_seed,
    existing_file,
    positive_int,
    run,
)
from vidcm.errors import UsageError, VidcmError
from vidcm.evaluation.markdown import block, commit_of, grid, rewrite

if TYPE_CHECKING:
    from vidcm.evaluation.benchmark import Row

KEYS = {"recipe", "recipe_hash", "repeats", "environment", "rows", "ratios"}
SCHEMA = 1  # of the JSON that is written and read here
COMPARED = ("text", "denoise", "decode", "write", "latent_to_pixels", "end_to_end")
RELATIVE, ABSOLUTE = 0.08, 0.005  # a change counts beyond both: share of the older time, seconds


def parser() -> Parser:
    p = Parser(
        "benchmark",
        "Measure where the time of a clip goes: text, denoise, decode and write apart, the rows in\n"
        "turns so that the machine's noise meets them alike. Or show, or compare, measurements.",
        "examples:\n"
        "  vidcm benchmark --output bench.json --cold\n"
        "  vidcm benchmark --rows teacher-8,student-1 --repeats 20 --threads 1\n"
        "  vidcm benchmark --table bench.json --into README.md\n"
        "  vidcm benchmark --compare old.json new.json   (exit code 1 when slower)",
    )
    how = p.add_argument_group("what to measure")
    add_checkpoint(how)
    rows = "teacher-50,student-4,student-2,student-1"
    how.add_argument(
        "--rows", default=rows, help="role and steps, in commas (default: %(default)s)"
    )
    how.add_argument("--prompt", help="what the clips show (default: the README's)")
    how.add_argument("--batch", type=positive_int, default=1, help="clips per call (1)")
    add_seed(how, "of the first clip")
    how.add_argument("--warmup", type=positive_int, default=2, help="turns kept apart (2)")
    how.add_argument("--repeats", type=positive_int, default=10, help="turns measured (10)")
    cold = "also start N new processes per row, 3 unless told: start to mp4"
    how.add_argument(
        "--cold", type=positive_int, nargs="?", const=3, default=0, metavar="N", help=cold
    )
    add_device(how)
    how.add_argument("--threads", type=positive_int, help="CPU threads (default: torch's choice)")
    out = p.add_argument_group("what to write")
    out.add_argument("--output", type=Path, metavar="JSON", help="keep every number here")
    out.add_argument("--overwrite", action="store_true", help="replace what --output names")
    into = "put the table between the marks <!-- latency:begin --> and <!-- latency:end --> of this file"
    out.add_argument("--into", type=Path, metavar="MD", help=into)
    old = p.add_mutually_exclusive_group()
    shown = "show numbers measured before"
    old.add_argument("--table", type=existing_file, metavar="JSON", help=shown)
    change = "change by stage; refuses measurements of different things"
    old.add_argument("--compare", type=existing_file, nargs=2, metavar=("OLD", "NEW"), help=change)
    return p


def main(argv: list[str] | None = None) -> int:
    return run(_benchmark, parser().parse_args(argv))


def _benchmark(args: argparse.Namespace) -> int:
    if (args.table or args.compare) and args.output:
        raise UsageError("--table and --compare show numbers measured before; leave out --output")
    if args.compare:
        if args.into:
            raise UsageError("--into takes a table; leave out --compare, or --into")
        text, slower = compare(*map(read_bench, args.compare))
        print(text)
        return int(slower)
    if args.into:
        block(args.into, "latency")  # now, not after minutes of measuring
    results = read_bench(args.table) if args.table else _measure(args)
    text = table(results)
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

    from vidcm.evaluation.benchmark import Plan, measure

    cores, load = len(os.sched_getaffinity(0)), os.getloadavg()[0]
    if load > cores / 2:
        print(
            f"warning: the machine is busy (load {load:.1f} on {cores} cores): ratios hold, times "
            "do not",
            file=sys.stderr,
        )
    asked = ("prompt", "batch", "warmup", "repeats", "cold", "seed", "threads")
    plan = Plan(**{k: v for k in asked if (v := getattr(args, k)) is not None})
    with tqdm(
        total=plan.calls(len(rows)), unit="call", leave=False, disable=not sys.stderr.isatty()
    ) as bar:

        def tick(row: str) -> None:
            bar.set_description(row, refresh=False)
            bar.update()

        measured = measure(args.checkpoint, args.device, rows, plan, tick)
    results = {"schema_version": SCHEMA, **measured}
    if args.output:
        write_text(args.output, json.dumps(results, indent=1) + "\n")
    return results


def parse_rows(text: str) -> list["Row"]:
    """The rows of "teacher-50,student-1". Raises UsageError for another form or a row given twice."""
    names = [word.strip() for word in text.split(",")]
    for name in names:
        if not re.fullmatch(r"(teacher|student)-([1-9]\d{0,2}|1000)", name):
            raise UsageError(
                f"got the row {name!r} in --rows, expected teacher-N or student-N, N from 1 to 1000"
            )
        if names.count(name) > 1:
            raise UsageError(f"got {name} twice in --rows, expected each row once")
    from vidcm.evaluation.benchmark import Row

    return [Row(role, int(steps)) for role, steps in (name.split("-") for name in names)]


def read_bench(path: Path) -> dict:
    """What `--output` wrote. Raises UsageError when the file holds something else."""
    try:
        results = json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from None
    except ValueError as error:
        raise UsageError(f"{path} is not JSON ({error}); give a file made with --output") from None
    version = results.get("schema_version") if isinstance(results, dict) else None
    if not isinstance(version, int) or not KEYS <= results.keys():
        raise UsageError(f"{path} holds no benchmark; give a file made with --output")
    if version != SCHEMA:
        raise UsageError(f"{path} has schema version {version}, expected {SCHEMA}: measure again")
    return results


def compare(old: dict, new: dict) -> tuple[str, bool]:
    """Markdown of medians side by side, and whether any time is slower beyond both thresholds.

    Raises UsageError when the two made different things, or on different kinds of device."""
    recipes = old["recipe"], new["recipe"]
    kinds = [r["device"] for r in recipes]
    if kinds[0] != kinds[1]:
        raise UsageError(
            f"got measurements on {kinds[0]} and on {kinds[1]}, expected one kind of device"
        )
    if old["recipe_hash"] != new["recipe_hash"]:
        unlike = "; ".join(_unlike(*recipes))
        raise UsageError(
            f"got measurements of different things ({unlike}); repeat one like the other"
        )
    lines, slower = [], False
    for name, before in old["rows"].items():
        after = new["rows"][name]
        pairs = {k: (before["seconds"][k], after["seconds"][k]) for k in COMPARED}
        if "cold" in before and "cold" in after:
            pairs["cold start"] = before["cold"]["wall"], after["cold"]["wall"]
        for label, (a, b) in pairs.items():
            change = b["p50"] - a["p50"]
            share = change / a["p50"]
            counts = abs(share) > RELATIVE and abs(change) > ABSOLUTE
            slower |= counts and change > 0
            verdict = ("slower" if change > 0 else "faster") if counts else ""
            stage = label.replace("_", " ")
            lines.append([name, stage, _time(a["p50"]), _time(b["p50"]), f"{share:+.1%}", verdict])
    changes = grid(["row", "median of", "old", "new", "change", ""], lines)
    notes = [f"Changes count beyond {RELATIVE:.0%} and {_time(ABSOLUTE)}."]
    here, there = old["environment"], new["environment"]
    told = ("cpu", "device", "threads", "torch", "commit", "dirty", "driver", "sha256")
    if unlike := _unlike(*({k: e.get(k) for k in told} for e in (here, there))):
        notes.append(f"The environments differ: {'; '.join(unlike)}.")
    hashes = [[row["clips_sha256"] for row in x["rows"].values()] for x in (old, new)]
    notes.append("The clips are " + ("the same." if hashes[0] == hashes[1] else "not the same."))
    return "\n\n".join([changes, " ".join(notes)]), slower


def _unlike(a: dict, b: dict) -> list[str]:
    def short(value: object) -> str:
        text = json.dumps(value)
        return text if len(text) <= 40 else text[:37] + "..."

    keys = [k for k in a | b if a.get(k) != b.get(k)]
    return [f"{k}: {short(a.get(k))} and {short(b.get(k))}" for k in keys]


def table(results: dict) -> str:
    """Markdown: medians by stage, and how they were measured."""
    stages = ("text", "denoise", "decode", "write", "end_to_end")
    head = ["", "evaluations", *(s.replace("_", " ") for s in stages)]
    head += ["p95", "x real time", "GFLOP/s", "denoise speed-up"]
    cold = any("cold" in row for row in results["rows"].values())
    lines = []
    for name, row in results["rows"].items():
        ratio = results["ratios"].get(name)
        lines.append(
            [
                name,
                f"{row['evaluations']:g}",
                *(_time(row["seconds"][s]["p50"]) for s in stages),
                _time(row["seconds"]["end_to_end"]["p95"]),
                _three(row["realtime_factor"]),
                _three(row["gflops_per_second"]),
                "{denoise:.1f} ({low:.1f}-{high:.1f})".format(**ratio) if ratio else "-",
                *([_time(row["cold"]["wall"]["p50"])] if cold else []),
            ]
        )
    return grid([*head, *(["cold start"] if cold else [])], lines) + f"\n\n{_method(results)}\n"


def _method(results: dict) -> str:
    recipe, made_on, clip = results["recipe"], results["environment"], results["recipe"]["clip"]
    row = next(iter(results["rows"].values()))
    commit = commit_of(made_on)
    where = (
        made_on["cpu"] if recipe["device"] == "cpu" else f"{made_on['device']}, {made_on['cpu']}"
    )
    text = (
        f"Medians of {results['repeats']} turns through all rows after {recipe['warmup']} to warm up; "
        f"{recipe['batch']} x {clip['frames']} frames of {clip['width']}x{clip['height']} a call, "
        f"{row['tokens']} tokens, {row['dtype']}, attention {' and '.join(row['attention'])}. End to "
        "end is prompt to written mp4, models loaded. "
    )
    for ratio in list(results["ratios"].values())[:1]:
        text += f"The speed-up is over {ratio['of']}, with its range within single turns. "
    if "cold" in row:
        times = len(row["cold"]["wall"]["samples"])
        text += f"A cold start is a new process to its mp4, the median of {times}. "
    return text + (
        f"{where}, {made_on['threads']} threads, load {made_on['load_average'][0][0]:.1f} on "
        f"{made_on['cores']} cores at the start, torch {made_on['torch']}, commit {commit}; "
        f"model {Path(made_on['checkpoint']).name}."
    )


def _check_free(path: Path, overwrite: bool) -> None:
    """Refuse an output before measuring for it."""
    if path.exists() and not path.is_file():
        raise UsageError(f"--output {path} is not a file; give the name of a .json file")
    if path.exists() and not overwrite:
        raise UsageError(f"{path} exists; give another --output, or --overwrite")
    parent = next(p for p in Path(os.path.realpath(path)).parents if p.exists())
    try:
        # permission bits do not tell of read-only mounts
        tempfile.TemporaryFile(dir=parent).close()
    except OSError as error:
        raise VidcmError(f"cannot write {path} into {parent}: {error.strerror}") from None


def _time(seconds: float) -> str:
    return f"{_three(seconds)} s" if seconds >= 0.9995 else f"{_three(seconds * 1000)} ms"


def _three(value: float) -> str:
    """Three digits, or all before the point."""
    return f"{value:.0f}" if value >= 99.95 else f"{value:.3g}"
