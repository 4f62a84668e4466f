"""`tools/tune.py`: where a student's sampler stops between its steps, found by trial."""

import argparse
from collections.abc import Sequence

from vidcm.cli.common import (
    Parser,
    add_art,
    add_device,
    add_seed,
    art_of,
    number,
    positive_int,
    run,
    whole_number,
)


def parser() -> Parser:
    p = Parser(
        "tune",
        "Search the times of a student's sampling steps on LPC prompts of the training split, and\n"
        "write them to its pipeline.json. Times are added one by one, each where it serves best.",
        "example:\n  vidcm tune --checkpoint my-model --art layers.tar --steps 2 4 8 --count 64",
    )
    p.add_argument("--checkpoint", required=True, help="a pipeline folder; its settings change")
    add_art(p)
    p.add_argument(
        "--steps", nargs="+", type=whole_number(2, 8), default=[2, 4], help="numbers of steps (2 4)"
    )
    p.add_argument("--count", type=whole_number(2), default=64, help="prompts tried (64)")
    p.add_argument(
        "--lowest",
        type=number(0.1, 90),
        default=1.5,
        help="the lowest sigma / alpha to stop at (%(default)g); for a student whose steps go "
        "straight to the data below a level, that level: stops below it only add grain",
    )
    add_seed(p, "of the prompts and the noise")
    p.add_argument("--batch", type=positive_int, default=32, help="clips made at a time (32)")
    add_device(p)
    p.add_argument("--dry-run", action="store_true", help="show what is found, change nothing")
    return p


def main(argv: list[str] | None = None) -> int:
    return run(_tune, parser().parse_args(argv))


def _tune(args: argparse.Namespace) -> None:
    from vidcm.evaluation.search import Bench, Trial, keep, search
    from vidcm.lpc.dataset import LPC
    from vidcm.pipeline import VideoPipeline

    art = art_of(args)
    pipe = VideoPipeline.from_pretrained(args.checkpoint, args.device)
    bench = Bench(
        pipe, LPC(art, num_frames=pipe.settings["frames"]), args.count, args.seed, args.batch
    )

    def measure(times: Sequence[float]) -> Trial:
        trial = bench(times)
        shown = " ".join(f"{t:.4f}" for t in times)
        print(f"{shown}: adherence {100 * trial.adherence:.1f} %, {trial.psnr:.2f} dB", flush=True)
        return trial

    found = search(measure, args.steps, args.lowest)
    for trial in found:
        print(f"best of {len(trial.times)}: {' '.join(f'{t:.4f}' for t in trial.times)}")
    if not args.dry_run:
        keep(pipe, found)
