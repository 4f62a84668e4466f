"""`vidcm train`: train the model of a config."""

import argparse

from vidcm.cli.common import Parser, run
from vidcm.cli.options import add_device
from vidcm.config import load


def parser() -> argparse.ArgumentParser:
    p = Parser(
        "train",
        "Train a codec, a teacher or a student, as the config says. A run that was interrupted\n"
        "goes on from its newest checkpoint when the same command is called again.",
        "examples:\n"
        "  vidcm train --config configs/lpc/codec.yaml\n"
        "  vidcm train --config configs/lpc/teacher.yaml optimizer.lr=5e-4 steps=2000\n"
        "  deepspeed --num_gpus 2 tools/train.py --config configs/lpc/teacher.yaml zero=2",
    )
    p.add_argument("--config", required=True, help="a YAML file, see configs/")
    add_device(p)
    p.add_argument("--local_rank", "--local-rank", type=int, help=argparse.SUPPRESS)
    p.add_argument(
        "overrides", nargs="*", metavar="key=value", help="change keys of the config, dotted"
    )
    return p


def main(argv: list[str] | None = None) -> int:
    return run(_train, parser().parse_args(argv))


def _train(args: argparse.Namespace) -> int:
    config = load(args.config, args.overrides)  # before torch: a misspelt key is answered at once

    from vidcm.train.launch import launch

    return launch(config, args.device)
