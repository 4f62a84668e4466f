"""`vidcm benchmark data` and `vidcm benchmark media`: reading videos, measured and refereed."""

import argparse
import sys

from vidcm.cli.argument_types import existing_path, integer, number, positive_int
from vidcm.cli.benchmark_output import check, check_new, keep, output_parser, show
from vidcm.cli.common import Parser, run
from vidcm.evaluation.results import to_plain


def data_parser() -> Parser:
    p = output_parser(
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
    p = output_parser(
        "media",
        "Compare the frames of every file with those of the program ffmpeg. The exit code is 1\n"
        "for a wrong frame, a hang or a crash. A run that was stopped goes on when it is repeated.",
        "my_clips other_clips --output media.json",
        required=True,
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

    check_new(args)
    results = to_plain(measure_data(str(args.root), args.workers, args.repeats, args.clips))
    keep(args, results)
    show(args, data_table(results))
    return 0


def _media(args: argparse.Namespace) -> int:
    from tqdm import tqdm

    from vidcm.evaluation.media_referee import judge_media, media_table

    check(args)
    paths = sorted(path for folder in args.folders for path in folder.iterdir() if path.is_file())
    with tqdm(total=len(paths), unit="file", disable=not sys.stderr.isatty()) as bar:
        results = judge_media(
            paths, args.deadline, args.output, lambda name: bar.update(), args.overwrite
        )
    show(args, media_table(results))
    return int(any(row["verdict"] in ("wrong", "hang") for row in results["rows"].values()))
