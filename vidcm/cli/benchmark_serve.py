"""`vidcm benchmark serve`: a server under load, beside the bare pipeline."""

import argparse

from vidcm.cli.argument_types import integer
from vidcm.cli.benchmark_output import check_new, keep, output_parser, show
from vidcm.cli.common import Parser, run
from vidcm.cli.options import add_checkpoint, add_device
from vidcm.evaluation.results import to_plain


def parser() -> Parser:
    p = output_parser(
        "serve",
        "Measure vidcm serve under load: its throughput with requests in one forward, one by one,\n"
        "and that of the bare pipeline, in turns, so that other load on the machine affects them\n"
        "alike.",
        "--seconds 3 --output serve.json --overwrite --into docs/serving.md",
        mark="serving",
    )
    add_checkpoint(p)
    add_device(p)
    p.add_argument("--clients", type=integer(1, 256), default=32, help="that ask at once")
    p.add_argument("--seconds", type=integer(1, 600), default=4, help="of a turn of each row")
    p.add_argument("--turns", type=integer(1, 100), default=3, help="of each row")
    return p


def serve(argv: list[str]) -> int:
    """Run `benchmark serve`."""
    return run(_serve, parser().parse_args(argv))


def _serve(args: argparse.Namespace) -> int:
    check_new(args)
    from vidcm.evaluation.reports import serving_table
    from vidcm.evaluation.serving import ServingPlan, measure_serving

    plan = ServingPlan(clients=args.clients, seconds=args.seconds, turns=args.turns)
    results = to_plain(measure_serving(args.checkpoint, args.device, plan))
    keep(args, results)
    show(args, serving_table(results))
    return 0
