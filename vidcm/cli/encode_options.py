"""The command line of `vidcm encode`."""

import argparse
import os
from typing import Any

from vidcm.cli.argument_types import integer, number, output_folder, positive_int
from vidcm.cli.common import Parser
from vidcm.cli.encode_control import add_control
from vidcm.cli.options import add_art, add_bucket, add_device, add_seed, add_size
from vidcm.errors import UsageError
from vidcm.registry import TABLE, check_name


def parser() -> argparse.ArgumentParser:
    p = Parser(
        "encode",
        "Encode clips once, so that training reads latents instead of running the codec. The\n"
        "cache names the codec that made it; training with another one is refused. A run that was\n"
        "interrupted goes on where it stopped when the same command is called again.",
        "examples:\n"
        "  vidcm encode --codec runs/lpc/codec/final --data lpc --art layers.tar \\\n"
        "    --count 30000 --output runs/lpc/latents\n"
        "  vidcm encode --codec runs/mine/codec/final --data folder --root my_clips \\\n"
        "    --frames 17 --size 128x128 --windows all --output latents\n"
        "  vidcm encode --codec hf://owner/name/vae --text hf://owner/name/text_encoder ...\n"
        "  vidcm encode --data folder --root my_clips --scan\n"
        "  vidcm encode --verify latents\n"
        "  deepspeed --num_gpus 2 tools/encode.py --codec runs/mine/codec/final --data folder ...",
    )
    p.add_argument("--codec", help="a codec's model folder (the `final` of its run)")
    add_control(p)
    p.add_argument("--data", choices=["lpc", "folder"], help="what to encode")
    p.add_argument("--output", type=output_folder, help="a new folder for the cache")
    p.add_argument(
        "--text",
        metavar="PIPELINE",
        help="a public pipeline's folder, or its `text_encoder`, local or on the hub: keep the "
        "tokens of every caption beside the latents, and training does not load this text tower",
    )
    p.add_argument(
        "--prompt",
        action="append",
        default=[],
        help="with --text: a further prompt, as those of previews; may be repeated",
    )
    p.add_argument(
        "--verify",
        metavar="DIR",
        help="instead of encoding: compare every shard of a finished cache with its index; the "
        "exit code is 1 if one differs",
    )
    p.add_argument("--batch", type=positive_int, default=32, help="clips at a time")
    add_device(p)
    p.add_argument("--overwrite", action="store_true", help="replace an existing cache")
    p.add_argument(
        "--shard-size", type=positive_int, default=1024, help="clips of a file of the cache"
    )
    p.add_argument(
        "--rank",
        type=integer(0, 100_000),
        default=os.environ.get("RANK", "0"),
        help="of this process among --world ones that share the work, on one file system (default: "
        "what a launcher says, or 0)",
    )
    p.add_argument(
        "--world",
        type=positive_int,
        default=os.environ.get("WORLD_SIZE", "1"),
        help="number of processes (default: what a launcher says, or 1)",
    )
    p.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)  # of the launcher
    for data, add in (("lpc", _add_lpc), ("folder", _add_folder)):
        add(p.add_argument_group(f"with --data {data}"))
    return p


def refuse_foreign(args: argparse.Namespace) -> None:
    """Refuse options that are for the other kind of data."""
    for data, add in (("lpc", _add_lpc), ("folder", _add_folder)):
        if data == args.data:
            continue
        own = argparse.ArgumentParser(add_help=False)
        add(own)
        for name, default in vars(own.parse_args([])).items():
            if getattr(args, name) != default:
                option = name.replace("_", "-")
                raise UsageError(f"--{option} is for --data {data}; leave it out")


def _add_lpc(group: argparse._ActionsContainer) -> None:
    add_art(group)
    group.add_argument("--count", type=positive_int, default=30000, help="clips to compose")
    group.add_argument(
        "--captions-per-clip", type=positive_int, default=8, help="drawn for each clip"
    )
    add_seed(group, "of the clips")


def _add_folder(group: argparse._ActionsContainer) -> None:
    group.add_argument(
        "--root",
        help="videos and captions: a folder, which may hold .tar files of WebDataset, one such "
        ".tar, or a URL, as s3://bucket/folder",
    )
    group.add_argument("--frames", type=positive_int, default=17, help="frames per clip, 4k+1")
    add_size(group, "multiples of 8 (default: 64x64)", (64, 64))
    add_bucket(group, "for videos nearer to it, or as 1x64x64 for pictures; may be repeated")
    group.add_argument("--fps", type=number(0.1, 240), default=8.0, help="frames per second")
    group.add_argument(
        "--scan",
        action="store_true",
        help="read every clip and report what would be left out and why, without --codec and "
        "--output; the exit code is 1 beyond --max-bad-fraction",
    )
    group.add_argument("--json", action="store_true", help="with --scan: print JSON")
    group.add_argument(
        "--windows",
        type=_windows,
        default=1,
        help="clips of a video that do not overlap, spread over it; all for as many as fit",
    )
    group.add_argument(
        "--filter",
        type=_filter,
        action="append",
        default=[],
        metavar="NAME[=THRESHOLD]",
        help=f"leave clips out: {', '.join(TABLE['filter'])}; may be repeated",
    )
    group.add_argument(
        "--deadline", type=number(0.1, 86400), default=30.0, help="seconds to decode one clip"
    )
    group.add_argument(
        "--follow-symlinks", action="store_true", help="take links that lead out of --root"
    )
    group.add_argument(
        "--cache-gb",
        type=number(0.001),
        default=20.0,
        help="bound of the local copies of files from a URL, in GB",
    )
    group.add_argument(
        "--missing-captions",
        choices=["error", "empty", "skip"],
        default="error",
        help="for videos without a caption: refuse the folder, encode them with an empty caption, "
        "or leave them out",
    )
    group.add_argument(
        "--max-bad-fraction",
        type=number(0, 1),
        default=0.01,
        help="share of videos that may be unreadable or too short; beyond it the command fails",
    )


def _filter(text: str) -> dict[str, Any]:
    """An argparse type: name or name=threshold of a filter, as its spec."""
    name, given, threshold = text.partition("=")
    try:
        check_name("filter", {"name": name})
    except UsageError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return {"name": name} | ({"threshold": number(0)(threshold)} if given else {})


def _windows(text: str) -> "int | str":
    """An argparse type: a number above 0, or all."""
    return text if text == "all" else positive_int(text)
