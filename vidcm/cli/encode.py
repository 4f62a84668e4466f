"""`vidcm encode`: videos and captions to a latent cache for training."""

import argparse
from collections import Counter

from vidcm.cli.common import Parser, number, output_folder, positive_int, run
from vidcm.cli.options import add_art, add_bucket, add_device, add_seed, add_size, art_of
from vidcm.errors import UsageError
from vidcm.limits import check_memory
from vidcm.media.sizes import check_frames, check_size


def parser() -> argparse.ArgumentParser:
    p = Parser(
        "encode",
        "Encode clips once, so that training reads latents instead of running the codec. The\n"
        "cache names the codec that made it; training with another one is refused.",
        "examples:\n"
        "  vidcm encode --codec runs/lpc/codec/final --data lpc --art layers.tar \\\n"
        "    --count 30000 --output runs/lpc/latents\n"
        "  vidcm encode --codec runs/mine/codec/final --data folder --root my_clips \\\n"
        "    --frames 17 --size 128x128 --output latents",
    )
    p.add_argument("--codec", required=True, help="a codec's model folder (the `final` of its run)")
    p.add_argument("--data", required=True, choices=["lpc", "folder"], help="what to encode")
    p.add_argument("--output", required=True, type=output_folder, help="a new folder for the cache")
    p.add_argument("--batch", type=positive_int, default=32, help="clips at a time")
    add_device(p)
    p.add_argument("--overwrite", action="store_true", help="replace an existing cache")
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
    group.add_argument("--root", help="the folder of videos and captions")
    group.add_argument("--frames", type=positive_int, default=17, help="frames per clip, 4k+1")
    add_size(group, "multiples of 8 (default: 64x64)", (64, 64))
    add_bucket(group, "for videos nearer to it; may be repeated")
    group.add_argument("--fps", type=number(0.1, 240), default=8.0, help="frames per second")
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
    if args.output.exists() and not args.overwrite:
        raise UsageError(f"{args.output} exists; give another --output, or --overwrite")
    if args.output.exists() and not (args.output / "index.json").is_file():
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

    import torch
    from tqdm import tqdm

    from vidcm.codecs.causal_vae import CausalVAE
    from vidcm.codecs.chunked import encode_chunked
    from vidcm.data.latents import write_shards
    from vidcm.media.pixels import to_video
    from vidcm.runtime import fast_cpu, pick_device
    from vidcm.store import load_model, read_card

    fast_cpu()
    device = pick_device(args.device)
    codec = load_model(args.codec, CausalVAE, device)
    source, about, total, quarantine = (_lpc if args.data == "lpc" else _folder)(args, device)

    @torch.no_grad()
    def clips():
        with tqdm(total=total, unit="clip", mininterval=2) as bar:
            for frames, captions in source:
                yield encode_chunked(codec, to_video(frames.to(device))), captions
                bar.update(len(captions))

    count = write_shards(args.output, clips(), codec=read_card(args.codec)["sha256"], about=about)
    reasons = [f"{number} {reason}" for reason, number in Counter(quarantine.values()).items()]
    left_out = f"; left out: {', '.join(reasons)}" if reasons else ""
    print(f"{args.output}: {count} clips{left_out}")


def _lpc(args: argparse.Namespace, device):
    import numpy as np

    from vidcm.lpc.dataset import LPC

    data = LPC(args.art).to(device)

    def source():
        for start in range(0, args.count, args.batch):
            rngs = [
                np.random.default_rng([args.seed, i])
                for i in range(start, min(start + args.batch, args.count))
            ]
            combinations = [data.sample(rng) for rng in rngs]
            captions = [
                [data.caption(c, rng) for _ in range(args.captions_per_clip)]
                for c, rng in zip(combinations, rngs, strict=True)
            ]
            yield data.render(combinations), captions

    about = {"data": "lpc", "seed": args.seed, "attributes": data.attributes, "split": data.split}
    return source(), about, args.count, {}


def _folder(args: argparse.Namespace, device):
    from vidcm.data.folder import VideoFolder

    data = VideoFolder(
        args.root,
        num_frames=args.frames,
        size=args.size,
        buckets=args.bucket,
        fps=args.fps,
        missing_captions=args.missing_captions,
        max_bad_fraction=args.max_bad_fraction,
    )

    def source():
        for _, clips in data.buckets:
            for start in range(0, len(clips), args.batch):
                frames, captions, kept = data.clips(clips[start : start + args.batch])
                if kept:
                    yield frames, [[c] for c in captions]

    return source(), {"data": "folder", "fps": args.fps}, len(data), data.quarantine
