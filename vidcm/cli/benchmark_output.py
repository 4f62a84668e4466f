"""What the parts of `vidcm benchmark` have in common: where their numbers go."""

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vidcm.cli.common import Parser
from vidcm.cli.options import check_writable
from vidcm.errors import UsageError
from vidcm.evaluation.markdown import block, rewrite
from vidcm.files import write_text


def output_parser(
    name: str, description: str, example: str, required: bool = False, mark: str | None = None
) -> Parser:
    """A parser with the options of outputs.

    Args:
        name: Of the part.
        description: What it does.
        example: Its arguments, in an example.
        required: Whether --output is needed.
        mark: Of the block that --into fills; None for `name`.
    """
    p = Parser(f"benchmark {name}", description, f"example:\n  vidcm benchmark {name} {example}")
    what = "keep every number here"
    p.add_argument("--output", type=Path, metavar="JSON", required=required, help=what)
    p.add_argument("--overwrite", action="store_true", help="replace what --output names")
    text = f"fill the block {mark or name} of this file"
    p.add_argument("--into", type=Path, metavar="MD", help=text)
    p.set_defaults(block=mark or name)
    return p


def check(args: argparse.Namespace) -> None:
    """Refuse outputs before minutes of measuring."""
    if args.output:
        check_writable(args.output)
    if args.into:
        block(args.into, args.block)


def check_new(args: argparse.Namespace) -> None:
    """`check`, and refuse to replace a file without --overwrite."""
    if args.output and args.output.exists() and not args.overwrite:
        raise UsageError(f"{args.output} exists; give another --output, or --overwrite")
    check(args)


def keep(args: argparse.Namespace, results: Mapping[str, Any]) -> None:
    """Write results where --output says."""
    if args.output:
        write_text(args.output, json.dumps(results, indent=1) + "\n")


def show(args: argparse.Namespace, table: str) -> None:
    """Print a table, or put it where --into says."""
    if args.into:
        rewrite(args.into, args.block, table)
    else:
        print(table, end="")
