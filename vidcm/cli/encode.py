"""`tools/encode.py`: videos and captions to a latent cache for training."""

import argparse

from vidcm.cli.common import (
    Parser,
    add_art,
    add_device,
    add_seed,
    art_of,
    number,
    output_folder,
    positive_int,
    run,
    sides,
)


def parser() -> argparse.ArgumentParser:
    p = Parser(
        "encode",
        "Encode clips once, so that training reads latents instead of running the codec. The cache\n"
        "names the codec that made it; training with another one is refused.",
        "examples:\n"
        "  vidcm encode --codec runs/lpc/codec/final --data lpc --art layers.tar --count 30000 --output runs/lpc/latents\n"
        "  vidcm encode --codec runs/mine/codec/final --data folder --root my_clips --frames 17 --size 128x128 --output latents",
    )
    p.add_argument("--codec", required=True, help="a codec's model folder (the `final` of its run)")
    p.add_argument("--data", required=True, choices=["lpc", "folder"], help="what to encode")
    p.add_argument("--output", required=True, type=output_folder, help="a new folder for the cache")
    add_art(p)
    p.add_argument(
        "--count",
        type=positive_int,
        default=30000,
        help="lpc: clips to compose (default: %(default)s)",
    )
    p.add_argument(
        "--captions",
        type=positive_int,
        default=8,
        help="lpc: captions per clip (default: %(default)s)",
    )
    p.add_argument("--root", help="folder: where the videos and captions are")
    p.add_argument(
        "--frames",
        type=positive_int,
        default=17,
        help="folder: frames per clip, 4k+1 (default: %(default)s)",
    )
    p.add_argument("--size", default="64x64", help="folder: HEIGHTxWIDTH (default: %(default)s)")
    p.add_argument(
        "--bucket",
        type=sides("FRAMESxHEIGHTxWIDTH"),
        action="append",
        default=[],
        metavar="FxHxW",
        help="folder: a further shape, as 33x64x112, for videos nearer to it; may be repeated",
    )
    p.add_argument(
        "--fps",
        type=number(0.1, 240),
        default=8.0,
        help="folder: frames per second (default: %(default)s)",
    )
    add_seed(p, "lpc: which clips")
    p.add_argument(
        "--batch", type=positive_int, default=32, help="clips at a time (default: %(default)s)"
    )
    add_device(p)
    p.add_argument("--overwrite", action="store_true", help="replace an existing cache")
    return p


def main(argv: list[str] | None = None) -> int:
    return run(_encode, parser().parse_args(argv))


def _encode(args: argparse.Namespace) -> None:
    from vidcm.errors import UsageError

    if args.output.exists() and not args.overwrite:
        raise UsageError(f"{args.output} exists; give another --output, or --overwrite")
    if args.output.exists() and not (args.output / "index.json").is_file():
        raise UsageError(
            f"{args.output} is no latent cache, and --overwrite would replace it whole; give another "
            "--output"
        )
    if args.data == "lpc":
        args.art = art_of(args)
    elif not args.root:
        raise UsageError("--data folder needs --root: where the videos and captions are")

    import torch

    from vidcm.codecs.causal_vae import CausalVAE
    from vidcm.codecs.chunked import encode_chunked
    from vidcm.data.latents import write_shards
    from vidcm.media.pixels import to_video
    from vidcm.runtime import fast_cpu, pick_device
    from vidcm.store import load_model, read_card

    fast_cpu()
    device = pick_device(args.device)
    codec = load_model(args.codec, CausalVAE, device)
    source, about, total = (_lpc if args.data == "lpc" else _folder)(args, device)

    @torch.no_grad()
    def clips():
        for frames, captions in _shown(source, total, args.batch):
            yield encode_chunked(codec, to_video(frames.to(device))), captions

    count = write_shards(args.output, clips(), codec=read_card(args.codec)["sha256"], about=about)
    print(f"{args.output}: {count} clips")


def _shown(source, total: int, batch: int):
    from tqdm import tqdm

    with tqdm(total=total, unit="clip", mininterval=2) as bar:
        for frames, captions in source:
            yield frames, captions
            bar.update(len(captions))


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
                [data.caption(c, rng) for _ in range(args.captions)]
                for c, rng in zip(combinations, rngs, strict=True)
            ]
            yield data.render(combinations), captions

    about = {"data": "lpc", "seed": args.seed, "attributes": data.attributes, "split": data.split}
    return source(), about, args.count


def _folder(args: argparse.Namespace, device):
    from vidcm.data.folder import VideoFolder
    from vidcm.errors import UsageError
    from vidcm.media.sizes import check_frames, check_size

    height, cross, width = args.size.partition("x")
    if not (cross and height.isdecimal() and width.isdecimal()):
        raise UsageError(f"cannot read --size {args.size!r}; write HEIGHTxWIDTH, as 64x64")
    size = check_size(int(height), int(width), 8)
    for frames, high, wide in args.bucket:
        check_frames(frames)
        check_size(high, wide, 8)
    data = VideoFolder(
        args.root,
        num_frames=check_frames(args.frames),
        size=size,
        buckets=args.bucket,
        fps=args.fps,
    )

    def source():
        for _, clips in data.buckets:
            for start in range(0, len(clips), args.batch):
                frames, captions, kept = data.clips(clips[start : start + args.batch])
                if kept:
                    yield frames, [[c] for c in captions]

    return source(), {"data": "folder", "fps": args.fps}, len(data)
