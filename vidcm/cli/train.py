"""`vidcm train`: train the model of a config."""

import argparse
import os
from dataclasses import replace

from vidcm.cli.argument_types import integer, sides
from vidcm.cli.common import Parser, run
from vidcm.cli.options import add_device
from vidcm.config import TrainConfig, load
from vidcm.errors import UsageError
from vidcm.train.stop_signal import StopSignal


def parser() -> argparse.ArgumentParser:
    p = Parser(
        "train",
        "Train a codec, a teacher or a student, as the config says. A run that was interrupted\n"
        "goes on from its newest checkpoint when the same command is called again.",
        "examples:\n"
        "  vidcm train --config configs/lpc/codec.yaml\n"
        "  vidcm train --config configs/lpc/teacher.yaml optimizer.lr=5e-4 steps=2000\n"
        "  deepspeed --num_gpus 2 tools/train.py --config configs/lpc/teacher.yaml zero=2\n"
        "  vidcm train --config configs/lpc/teacher.yaml --dry-run --world 8 --clip 33x64x64",
    )
    p.add_argument("--config", required=True, help="a YAML file, see configs/")
    add_device(p)
    dry = p.add_argument_group("memory")
    dry.add_argument(
        "--dry-run",
        action="store_true",
        help="print the memory that a run of a denoiser needs, and train nothing",
    )
    dry.add_argument(
        "--world", type=integer(1, 100_000), default=1, help="ranks of a dry run (default: 1)"
    )
    dry.add_argument(
        "--clip",
        type=sides("FRAMESxHEIGHTxWIDTH"),
        metavar="FxHxW",
        help="clips of a dry run, so that it needs no data (default: the data's)",
    )
    p.add_argument("--local_rank", "--local-rank", type=int, help=argparse.SUPPRESS)
    p.add_argument(
        "overrides", nargs="*", metavar="key=value", help="change keys of the config, dotted"
    )
    return p


def main(argv: list[str] | None = None) -> int:
    return run(_train, parser().parse_args(argv))


def _train(args: argparse.Namespace) -> int:
    if args.dry_run:
        return _dry_run(load(args.config, args.overrides), args)
    if args.world != 1 or args.clip:
        raise UsageError("--world and --clip are of dry runs; add --dry-run")
    with StopSignal() as stop:
        if "RANK" not in os.environ:
            stop.release()  # until there are steps, one process may end at once
        # Before torch: a misspelt key is answered at once.
        config = load(args.config, args.overrides)

        from vidcm.train.launch import launch

        return launch(config, args.device, stop)


def _dry_run(config: TrainConfig, args: argparse.Namespace) -> int:
    from vidcm.train.dry_run import report

    gpu = args.device != "cpu"
    if config.precision == "auto":
        config = replace(config, precision="bf16" if gpu else "fp32")
    for line in report(config, args.world, args.clip, foreach=gpu):
        print(line)
    return 0
