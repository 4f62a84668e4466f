"""`vidcm evaluate`: quality per number of steps against true clips: JSON, markdown, a sheet."""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from vidcm.cli.common import Parser, run
from vidcm.cli.evaluate_options import MEASURES, add_measures, add_settings
from vidcm.cli.options import art_of, check_writable
from vidcm.errors import UsageError
from vidcm.evaluation.rows import EDIT_ROWS, ROWS, Row
from vidcm.schema import did_you_mean

if TYPE_CHECKING:
    from vidcm.lpc.dataset import LPC
    from vidcm.pipeline import VideoPipeline


def parser() -> Parser:
    p = Parser(
        "evaluate",
        "Score a model on held-out prompts of the LPC task against their true clips: adherence,\n"
        "fidelity, Fréchet distance, motion and diversity, for each number of steps. An\n"
        "evaluation that was interrupted goes on from its last finished row when the same\n"
        "command is given again.",
        "examples:\n"
        "  vidcm evaluate --output results.json --rows student-1 student-4 --count 64\n"
        "  vidcm evaluate --output docs/results/lpc-64.json --hand-prompts --into README.md\n"
        "  vidcm evaluate --table docs/results/lpc-64.json\n"
        "  vidcm evaluate --sheet sheet.png\n"
        "  vidcm evaluate --editing docs/results/editing.json --count 16 --into docs/editing.md\n"
        "  vidcm evaluate --editing docs/results/editing.json --tasks extend --examples images/\n"
        "  vidcm evaluate --steering docs/results/steering.json --into docs/experiments.md\n"
        "  vidcm evaluate --long docs/results/long.json --into docs/long-clips.md\n"
        "  vidcm evaluate --long-edits docs/results/long_edits.json --into docs/editing.md\n"
        "  vidcm evaluate --frechet real/ generated/ --features timm:resnet18",
    )
    add_measures(p)
    add_settings(p.add_argument_group("how to measure"))
    return p


def main(argv: list[str] | None = None) -> int:
    return run(_evaluate, parser().parse_args(argv))


def _evaluate(args: argparse.Namespace) -> None:
    from vidcm.evaluation.markdown import block, rewrite
    from vidcm.evaluation.reports import mark_of, markdown_of
    from vidcm.evaluation.results import read_results, well_formed

    kind = next((k for k in (*MEASURES, "table", "frechet") if getattr(args, k)), None)
    _check_options(args, kind)
    if kind == "frechet":
        _print_distance(args)
        return
    if args.table:
        results = read_results(args.table)
    else:
        if args.into:
            marks = {"output": "results", "editing": "given" if args.zero_shot else "editing"}
            block(args.into, marks.get(str(kind), str(kind).replace("_", "-")))
        results = _measure(args, kind)
    if results is None:
        return
    with well_formed(args.table):
        text, mark = markdown_of(results), mark_of(results)
    if args.into:
        rewrite(args.into, mark, text)
    else:
        print(text, end="")


def _check_options(args: argparse.Namespace, kind: str | None) -> None:
    """Refuse options that do not go together, before anything is loaded."""

    def refuse(options: tuple[str, ...], reason: str) -> None:
        for option in options:
            if getattr(args, option):
                raise UsageError(f"--{option.replace('_', '-')} {reason}")

    if kind is None and not args.sheet:
        raise UsageError("there is nothing to write; give --output, --sheet or --table")
    if kind is None:
        refuse(("into",), "needs numbers; give --table or --output too")
    if kind != "editing":
        refuse(
            ("tasks", "examples", "zero_shot"),
            "is about edits; give --editing too, or leave it out",
        )
    if kind != "output":
        refuse(("diffusers",), "is about --output; give it too, or leave this out")
    if kind in ("steering", "long", "long_edits"):
        name = kind.replace("_", "-")
        refuse(("rows", "sheet", "hand_prompts"), f"has no meaning with --{name}; leave it out")
    if kind in ("table", "frechet"):
        refuse(("sheet", "rows", "hand_prompts"), f"needs a model; leave it out, or --{kind}")
    if kind == "frechet":
        refuse(("into",), "needs a table; leave it out, or --frechet")
    else:
        refuse(("features_checkpoint",), "is about --frechet; give it too, or leave this out")
    if kind in MEASURES and getattr(args, kind).is_dir():
        raise UsageError(
            f"--{kind.replace('_', '-')} {getattr(args, kind)} is a folder; give the name of a "
            ".json file"
        )
    if kind in MEASURES:
        check_writable(getattr(args, kind))
    if kind != "frechet" and args.features != "lpc":
        raise UsageError("--features is about --frechet; give it too, or leave this out")
    if args.sheet and args.sheet.suffix.lower() != ".png":
        raise UsageError(f"--sheet writes .png files, not {args.sheet.name!r}")


def _print_distance(args: argparse.Namespace) -> None:
    network, _, model = args.features.partition(":")
    spec = {"name": network} | ({"model": model} if model else {})
    if args.features_checkpoint:
        spec["checkpoint"] = str(args.features_checkpoint)

    from vidcm.evaluation.folder_distance import folder_distance
    from vidcm.registry import build

    distance, (a, b) = folder_distance(tuple(args.frechet), build("features", spec))
    print(f"Fréchet distance {distance:.4g} between {a} and {b} videos (features {args.features})")


def _measure(args: argparse.Namespace, kind: str | None) -> dict | None:
    """Measure and draw; gives the results, None if only the sheet was wanted."""
    rows = [Row.parse(row) for row in args.rows or ()]
    tasks = _edit_tasks(args, rows) if kind == "editing" else ()
    pipe, lpc = _model_and_truth(args)

    from vidcm.evaluation.eval_set import EvalJob, EvalSet
    from vidcm.evaluation.sheet import write_sheet

    if args.sheet and kind != "editing":
        write_sheet(pipe, EvalSet(lpc, 4, args.seed), args.sheet, overwrite=args.overwrite)
    if kind is None:
        return None
    count, function = MEASURES[kind]
    eval_set, name = EvalSet(lpc, args.count or count, args.seed), Path(args.checkpoint).name
    job = EvalJob(
        pipe, eval_set, getattr(args, kind), name, args.batch, args.overwrite, args.diffusers
    )
    module, _, function = function.partition(":")
    measure = getattr(import_module(f"vidcm.evaluation.{module}"), function)
    if kind == "output":
        return measure(job, rows or ROWS, args.hand_prompts)
    if kind != "editing":
        return measure(job)

    from vidcm.evaluation.edit_sheet import write_edit_sheet, write_examples

    rows = rows or list(EDIT_ROWS)
    results = measure(
        job, rows + [replace(r, zero_shot=True) for r in rows if args.zero_shot], tasks
    )
    pictured = EvalSet(lpc, 2, args.seed)
    if args.sheet:
        write_edit_sheet(pipe, pictured, args.sheet, tasks=tasks, overwrite=args.overwrite)
    if args.examples:
        write_examples(pipe, pictured, args.examples, tasks=tasks, overwrite=args.overwrite)
    return results


def _edit_tasks(args: argparse.Namespace, rows: list[Row]) -> Sequence[str]:
    """The tasks to measure, after checks of the options for edits."""
    from vidcm.evaluation.edit_cases import NAMES
    from vidcm.evaluation.edit_sheet import check_examples

    tasks = args.tasks or NAMES
    if unknown := [task for task in tasks if task not in NAMES]:
        hint = did_you_mean(unknown[0], NAMES)
        raise UsageError(f"edits have no {unknown[0]!r}{hint} (known: {', '.join(NAMES)})")
    if others := [row for row in rows if row.role in ("codec", "diffusers")]:
        raise UsageError(f"edits have no row {others[0]}; give teacher-N or student-N")
    if args.examples:
        check_examples(args.examples, tasks, args.overwrite)
    return tasks


def _model_and_truth(args: argparse.Namespace) -> tuple["VideoPipeline", "LPC"]:
    """The model and the true clips, after checks of everything else that would stop the command."""
    from vidcm.lpc.dataset import CELL, LPC
    from vidcm.media.write import check_output
    from vidcm.pipeline import VideoPipeline

    if args.sheet:
        check_output(args.sheet, args.overwrite)
    art = art_of(args)
    pipe = VideoPipeline.from_pretrained(args.checkpoint, device=args.device)
    frames, height, width = pipe.settings.size
    if (height, width) != (CELL, CELL):
        raise UsageError(
            f"{args.checkpoint} makes clips of {height}x{width}, and evaluate scores on the LPC "
            f"task, whose clips are {CELL}x{CELL}; give a model of that task, or --frechet"
        )
    if args.zero_shot and not pipe.model("student").given_frames:
        raise UsageError(
            f"--zero-shot is for models trained with given frames, and {args.checkpoint} was "
            "not; leave it out"
        )
    print(f"scoring {args.checkpoint} on held-out prompts of the LPC task", file=sys.stderr)
    return pipe, LPC(art, num_frames=frames)
