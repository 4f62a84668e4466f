"""`vidcm encode`: videos and captions to a latent cache for training."""

import argparse
import os
from typing import TYPE_CHECKING, Any

from vidcm.cli.argument_types import integer, number, output_folder, positive_int
from vidcm.cli.common import Parser, run
from vidcm.cli.options import add_art, add_bucket, add_device, add_seed, add_size, art_of
from vidcm.cli.scan_report import scan_json, scan_text
from vidcm.errors import UsageError, VidcmError
from vidcm.limits import check_memory
from vidcm.media.sizes import check_frames, check_size
from vidcm.registry import TABLE, build, check_name

if TYPE_CHECKING:
    import torch

    from vidcm.data.encoding import Source
    from vidcm.data.filters import Filter
    from vidcm.data.folder_source import FolderSource


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
        "  vidcm encode --data folder --root my_clips --scan\n"
        "  deepspeed --num_gpus 2 tools/encode.py --codec runs/mine/codec/final --data folder ...",
    )
    p.add_argument("--codec", help="a codec's model folder (the `final` of its run)")
    p.add_argument("--data", required=True, choices=["lpc", "folder"], help="what to encode")
    p.add_argument("--output", type=output_folder, help="a new folder for the cache")
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


def _refuse_foreign(args: argparse.Namespace) -> None:
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


def main(argv: list[str] | None = None) -> int:
    return run(_encode, parser().parse_args(argv))


def _encode(args: argparse.Namespace) -> None:
    _refuse_foreign(args)
    if args.json and not args.scan:
        raise UsageError("--json is the form of a --scan; add --scan")
    if args.scan and (args.codec or args.output):
        raise UsageError("--scan encodes nothing; leave --codec and --output out")
    missing = [f"--{name}" for name in ("codec", "output") if getattr(args, name) is None]
    if missing and not args.scan:
        raise UsageError(f"{', '.join(missing)} missing; vidcm encode --help shows examples")
    if args.rank >= args.world:
        raise UsageError(f"--rank is {args.rank}; use 0 to {args.world - 1}, below --world")
    alone = args.world == 1  # another process may just have made the cache
    if alone and args.output and args.output.exists() and not args.overwrite:
        raise UsageError(f"{args.output} exists; give another --output, or --overwrite")
    if args.output and args.output.exists() and not (args.output / "index.json").is_file():
        raise UsageError(
            f"{args.output} is no latent cache, and --overwrite would replace all of it; give "
            "another --output"
        )
    if args.data == "lpc":
        args.art = art_of(args)
    elif not args.root:
        raise UsageError("--data folder needs --root, the folder of videos and captions")
    for frames, height, width in [(args.frames, *args.size), *args.bucket]:
        check_frames(frames)
        check_size(height, width, 8)
        check_memory(args.batch, frames, height, width)

    if args.scan:
        _scan(args)
        return
    import torch
    from tqdm import tqdm

    from vidcm.codecs.base import VideoCodec
    from vidcm.codecs.chunked import encode_chunked
    from vidcm.data.encoding import encode_cache
    from vidcm.media.pixels import to_video
    from vidcm.runtime import fast_cpu, pick_device
    from vidcm.store import load_model, weights_hash

    fast_cpu()
    device = pick_device(args.device)
    codec = load_model(args.codec, VideoCodec, device)
    source = _lpc(args, device) if args.data == "lpc" else _folder(args, args.max_bad_fraction)

    @torch.no_grad()
    def encode(frames: torch.Tensor) -> torch.Tensor:
        return encode_chunked(codec, to_video(frames.to(device)))

    share = sum(source.counts) // args.world
    with tqdm(total=share, unit="clip", mininterval=2) as bar:
        found = encode_cache(
            source,
            encode,
            args.output,
            codec=weights_hash(args.codec),
            batch_size=args.batch,
            shard_size=args.shard_size,
            rank=args.rank,
            world=args.world,
            overwrite=args.overwrite,
            progress=bar.update,
        )
    if found is None:
        print(f"rank {args.rank} is done; the last of {args.world} makes {args.output}")
        return
    count = found.pop("clips")
    reasons = ", ".join(f"{number} {reason}" for reason, number in found.items())
    print(f"{args.output}: {count} clips{reasons and '; left out: '}{reasons}")


def _lpc(args: argparse.Namespace, device: "torch.device") -> "Source":
    from vidcm.lpc.dataset import LPC
    from vidcm.lpc.latents import LPCSource

    return LPCSource(LPC(args.art).to(device), args.count, args.seed, args.captions_per_clip)


def _scan(args: argparse.Namespace) -> None:
    """Read every clip of a folder and report on them."""
    from tqdm import tqdm

    from vidcm.data.scan import scan

    source = _folder(args, max_bad_fraction=1.0)
    with tqdm(total=sum(source.counts), unit="clip", mininterval=2) as bar:
        found = scan(source, args.batch, bar.update)
    print(scan_json(found) if args.json else scan_text(found, args.fps))
    total = found.clips + len(found.left_out)
    if found.bad > args.max_bad_fraction * total:
        raise VidcmError(
            f"{found.bad} of {total} clips cannot be used, more than --max-bad-fraction "
            f"{args.max_bad_fraction:g} allows"
        )


def _folder(args: argparse.Namespace, max_bad_fraction: float) -> "FolderSource":
    from tqdm import tqdm

    from vidcm.data.folder import VideoFolder
    from vidcm.data.folder_source import FolderSource

    data = VideoFolder(
        args.root,
        num_frames=args.frames,
        size=args.size,
        buckets=args.bucket,
        fps=args.fps,
        missing_captions=args.missing_captions,
        max_bad_fraction=max_bad_fraction,
        deadline=args.deadline,
        follow_symlinks=args.follow_symlinks,
        cache_gb=args.cache_gb,
    )
    windows = None if args.windows == "all" else args.windows
    filters: list[Filter] = [build("filter", spec) for spec in args.filter]
    with tqdm(total=len(data), unit="video", desc="plan", mininterval=2, leave=False) as bar:
        return FolderSource(data, windows, filters, args.rank, args.world, bar.update)


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
