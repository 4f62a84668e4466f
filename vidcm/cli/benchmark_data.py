"""`vidcm benchmark data` and `vidcm benchmark media`: reading videos, measured and refereed."""

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vidcm.cli.argument_types import existing_path, integer, number, positive_int
from vidcm.cli.common import Parser, run
from vidcm.cli.options import check_writable
from vidcm.errors import UsageError


def _parser(name: str, description: str, example: str) -> Parser:
    p = Parser(f"benchmark {name}", description, f"example:\n  vidcm benchmark {name} {example}")
    p.add_argument("--output", type=Path, metavar="JSON", help="keep every number here")
    p.add_argument("--overwrite", action="store_true", help="replace what --output names")
    p.add_argument("--into", type=Path, metavar="MD", help=f"fill the block {name} of this file")
    p.set_defaults(block=name)
    return p


def data_parser() -> Parser:
    p = _parser(
        "data",
        "Measure decoding against bare PyAV, loader threads, and shards of latents against plain\n"
        "reading of the same files. decord and webdataset take part where they are installed.",
        "--root my_clips --output data.json",
    )
    p.add_argument("--root", type=existing_path, required=True, help="a folder of videos")
    p.add_argument("--workers", type=integer(1, 64), nargs="+", default=[1, 2], help="threads")
    p.add_argument("--repeats", type=positive_int, default=3, help="turns")
    p.add_argument("--clips", type=integer(16), default=1024, help="cached latents to read")
    return p


def media_parser() -> Parser:
    p = _parser(
        "media",
        "Compare the frames of every file with those of the program ffmpeg. The exit code is 1\n"
        "for a wrong frame, a hang or a crash.",
        "my_clips other_clips --output media.json",
    )
    p.add_argument("folders", type=existing_path, nargs="+", help="of videos")
    p.add_argument("--deadline", type=number(0.1, 3600), default=60.0, help="seconds for a file")
    return p


def data(argv: list[str]) -> int:
    """Run `benchmark data`."""
    return run(_data, data_parser().parse_args(argv))


def media(argv: list[str]) -> int:
    """Run `benchmark media`."""
    return run(_media, media_parser().parse_args(argv))


def _data(args: argparse.Namespace) -> int:
    from vidcm.evaluation.data_speed import data_table, measure_data

    _check(args)
    results = measure_data(str(args.root), args.workers, args.repeats, args.clips)
    _write(args, results, data_table)
    return 0


def _media(args: argparse.Namespace) -> int:
    from tqdm import tqdm

    from vidcm.evaluation.media_referee import judge_media, media_table

    _check(args)
    paths = sorted(path for folder in args.folders for path in folder.iterdir() if path.is_file())
    with tqdm(total=len(paths), unit="file", disable=not sys.stderr.isatty()) as bar:
        results = judge_media(paths, args.deadline, lambda name: bar.update())
    _write(args, results, media_table)
    return int(any(row["verdict"] in ("wrong", "hang") for row in results["rows"].values()))


def _check(args: argparse.Namespace) -> None:
    """Refuse outputs before minutes of measuring."""
    from vidcm.evaluation.markdown import block

    if args.output:
        if args.output.exists() and not args.overwrite:
            raise UsageError(f"{args.output} exists; give another --output, or --overwrite")
        check_writable(args.output)
    if args.into:
        block(args.into, args.block)


def _write(args: argparse.Namespace, results: dict, table: Callable[[dict[str, Any]], str]) -> None:
    from vidcm.evaluation.markdown import rewrite
    from vidcm.evaluation.results import to_plain
    from vidcm.files import write_text

    plain = to_plain(results)
    if args.output:
        write_text(args.output, json.dumps(plain, indent=1) + "\n")
    if args.into:
        rewrite(args.into, args.block, table(plain))
    else:
        print(table(plain), end="")
