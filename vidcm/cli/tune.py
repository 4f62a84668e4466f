"""`vidcm tune`: the lowest noise level of a student's sampler, found by trial."""

import argparse

from vidcm.cli.argument_types import integer, number, positive_int
from vidcm.cli.common import Parser, run
from vidcm.cli.options import add_art, add_device, add_seed, art_of

LEVELS = (1.5, 3.0, 6.0, 10.0, 15.0, 25.0, 50.0, 100.0)


def parser() -> Parser:
    p = Parser(
        "tune",
        "Choose the lowest noise level of a student's sampler on LPC prompts of the training\n"
        "split, and write it to pipeline.json as student.lowest_sigma. The sampler's other\n"
        "levels are geometric from the highest down to it, for every number of steps. Prints\n"
        "adherence and PSNR of every level; the highest adherence wins, PSNR decides ties.",
        "example:\n  vidcm tune --checkpoint my-model --art layers.tar --steps 2 4 8 --count 64",
    )
    p.add_argument("--checkpoint", required=True, help="a pipeline folder; its settings change")
    add_art(p)
    p.add_argument(
        "--levels",
        nargs="+",
        type=number(0.01, 198),
        default=list(LEVELS),
        metavar="SIGMA",
        help="sigma / alpha to try; a student trained with min_sigma gains nothing below that",
    )
    p.add_argument(
        "--steps",
        nargs="+",
        type=integer(2, 64),
        default=[2, 4],
        help="numbers of steps to average over",
    )
    p.add_argument("--count", type=integer(2, 100_000), default=64, help="prompts tried")
    add_seed(p, "of the prompts and the noise")
    p.add_argument("--batch", type=positive_int, default=32, help="clips at a time")
    add_device(p)
    p.add_argument("--dry-run", action="store_true", help="print the result, change nothing")
    return p


def main(argv: list[str] | None = None) -> int:
    return run(_tune, parser().parse_args(argv))


def _tune(args: argparse.Namespace) -> None:
    art = art_of(args)

    from vidcm.evaluation.level_search import LevelTrial, TuningSet, save_level, search_level
    from vidcm.lpc.dataset import LPC
    from vidcm.pipeline import VideoPipeline

    pipe = VideoPipeline.from_pretrained(args.checkpoint, device=args.device)
    lpc = LPC(art, num_frames=pipe.settings.num_frames)
    tuning_set = TuningSet(pipe, lpc, args.count, args.seed, args.batch)

    def measure(lowest_sigma: float, steps: int) -> LevelTrial:
        trial = tuning_set(lowest_sigma, steps)
        print(
            f"lowest sigma {lowest_sigma:g}, {steps} steps: adherence "
            f"{100 * trial.adherence:.1f} %, {trial.psnr:.2f} dB",
            flush=True,
        )
        return trial

    best = search_level(measure, args.levels, args.steps)
    print(f"best: lowest sigma {best:g}")
    if not args.dry_run:
        save_level(pipe, best)
