"""`vidcm encode`: videos and captions to a latent cache for training."""

import argparse
from typing import TYPE_CHECKING

from vidcm.cli.common import run
from vidcm.cli.encode_control import control_of
from vidcm.cli.encode_options import parser, refuse_foreign
from vidcm.cli.options import art_of
from vidcm.cli.scan_report import scan_json, scan_text
from vidcm.data.partial_cache import tidy
from vidcm.errors import UsageError, VidcmError
from vidcm.limits import check_memory
from vidcm.media.sizes import check_frames, check_size
from vidcm.registry import build

if TYPE_CHECKING:
    import torch

    from vidcm.data.caption_tokens import CaptionTokens
    from vidcm.data.filters import Filter
    from vidcm.data.folder_source import FolderSource
    from vidcm.data.source import Source


def main(argv: list[str] | None = None) -> int:
    return run(_encode, parser().parse_args(argv))


def _encode(args: argparse.Namespace) -> None:
    if args.verify:
        _verify(args)
        return
    if args.data is None:
        raise UsageError("--data missing; vidcm encode --help shows examples")
    refuse_foreign(args)
    if args.json and not args.scan:
        raise UsageError("--json is the form of a --scan; add --scan")
    if args.scan and (args.codec or args.output or args.control or args.text):
        raise UsageError(
            "--scan encodes nothing; leave --codec and --output out, and --control and --text"
        )
    if args.prompt and not args.text:
        raise UsageError("--prompt is for the text tower that --text names; add --text")
    missing = [f"--{name}" for name in ("codec", "output") if getattr(args, name) is None]
    if missing and not args.scan:
        raise UsageError(f"{', '.join(missing)} missing; vidcm encode --help shows examples")
    if args.rank >= args.world:
        raise UsageError(f"--rank is {args.rank}; use 0 to {args.world - 1}, below --world")
    if args.output and args.output.exists():
        _check_output(args)
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
    control = control_of(args, codec, device)
    text = _text(args, device) if args.text else None
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
            text=text,
            progress=bar.update,
            control=control,
        )
    if found is None:
        print(f"rank {args.rank} is done; the last of {args.world} makes {args.output}")
        return
    count = found.pop("clips")
    reasons = ", ".join(f"{number} {reason}" for reason, number in found.items())
    print(f"{args.output}: {count} clips{reasons and '; left out: '}{reasons}")


def _verify(args: argparse.Namespace) -> None:
    """Compare a finished cache with its index."""
    from tqdm import tqdm

    from vidcm.data.verify import verify_cache

    usual = vars(parser().parse_args(["--verify", args.verify]))
    given = [name.replace("_", "-") for name, value in vars(args).items() if value != usual[name]]
    if given:
        raise UsageError(f"--verify encodes nothing; leave --{', --'.join(given)} out")
    with tqdm(unit="shard", mininterval=2, delay=1) as bar:
        found = verify_cache(args.verify, bar.update)
    for name, reason in found.bad.items():
        print(f"{name} {reason}")
    if found.bad:
        raise VidcmError(
            f"{len(found.bad)} files of {args.verify} are bad; {found.mend}  # then call the "
            "command again that encoded it"
        )
    print(f"{args.verify}: {found.clips} clips in {found.shards} shards, all as the index says")


def _check_output(args: argparse.Namespace) -> None:
    """Refuse an output that is there and may not be replaced."""
    if (args.output / "index.json").is_file():
        tidy(args.output)
    if args.world == 1 and not args.overwrite:  # otherwise another process may just have made it
        raise UsageError(f"{args.output} exists; give another --output, or --overwrite")
    if not (args.output / "index.json").is_file():
        raise UsageError(
            f"{args.output} is no latent cache, and --overwrite would replace all of it; give "
            "another --output"
        )


def _lpc(args: argparse.Namespace, device: "torch.device") -> "Source":
    from vidcm.lpc.dataset import LPC
    from vidcm.lpc.latents import LPCSource

    return LPCSource(LPC(args.art).to(device), args.count, args.seed, args.captions_per_clip)


def _text(args: argparse.Namespace, device: "torch.device") -> "CaptionTokens":
    from vidcm.data.caption_tokens import CaptionTokens
    from vidcm.families.text import text_tower

    return CaptionTokens(text_tower(args.text), device, args.prompt)


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
