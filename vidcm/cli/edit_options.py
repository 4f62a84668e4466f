"""The options of `vidcm edit`, and the help that explains its tasks."""

import argparse
from collections.abc import Sequence
from typing import Any

from vidcm.cli.argument_types import existing_path, integer, number, positive_int, seed
from vidcm.cli.common import Parser
from vidcm.cli.options import add_output, add_sampling, add_size
from vidcm.registry import TABLE, lookup, options_of
from vidcm.schema import did_you_mean
from vidcm.settings import EDITED_SECONDS


def parser(tasks: Sequence[str] = ()) -> Parser:
    """The parser of `vidcm edit TASK,TASK`, with the options that these tasks take.

    Without tasks it explains all of them and has the options of all.
    """
    p = Parser(
        "edit",
        "Edit clips without training, in a few network evaluations: the prompt describes the\n"
        "rest, known pixels stay to the bit (in png output: video codecs change every pixel a\n"
        "little).",
        _lessons(tasks or list(TABLE["task"])),
    )
    _check(p, tasks)
    if tasks:
        p.prog = f"{p.prog} {','.join(tasks)}"
        p.set_defaults(tasks=list(tasks))
    else:
        p.add_argument("tasks", metavar="TASK", help="or several, as in colorize,extend,loop")
    clip = p.add_argument_group("the clip")
    clip.add_argument(
        "--input",
        action="append",
        default=[],
        type=existing_path,
        metavar="FILE",
        help="a video, a picture (png, jpeg, ...) or a folder of pictures in the order of their "
        "numbers; repeat it for tasks between two",
    )
    clip.add_argument(
        "--prompt",
        action="append",
        default=[],
        metavar="TEXT",
        help="content of the result; without, the model is free. Repeat it for interpolate",
    )
    _add_task_options(p, p.add_argument_group("the task"), tasks)
    clip.add_argument(
        "--start", type=number(0), default=0.0, metavar="SECONDS", help="skip so much of the input"
    )
    clip.add_argument(
        "--frames",
        type=integer(1, 100_000),
        metavar="COUNT",
        help="of a clip edited from end to end, at most so many of the result (default: all of the "
        f"first {EDITED_SECONDS:g} seconds); for other tasks, how many the model generates in one "
        "go, the input's counted (default: the checkpoint's)",
    )
    add_size(clip, "height and width of the result, as 64x128 (default: the checkpoint's)")
    sampling = p.add_argument_group("sampling")
    add_sampling(sampling)
    sampling.add_argument(
        "--seed",
        action="append",
        type=seed,
        help="of the noise (default: 0); repeat it for interpolate",
    )
    out = p.add_argument_group("output")
    add_output(out, "edited")
    out.add_argument("--preview", metavar="PNG", help="also a sheet of inputs and results")
    return p


def _check(p: Parser, tasks: Sequence[str]) -> None:
    """Leave with an error for tasks that are not known, or named twice."""
    for name in tasks:
        if name not in TABLE["task"]:
            hint = did_you_mean(name, TABLE["task"])
            p.error(f"unknown task {name!r}{hint} (known: {', '.join(TABLE['task'])})")
        if tasks.count(name) > 1:
            p.error(f"the task {name} stands twice; name it once")


def _add_task_options(p: Parser, group: argparse._ArgumentGroup, tasks: Sequence[str]) -> None:
    taken = {name: options_of("task", name) for name in TABLE["task"]}
    for option, settings in TASK_OPTIONS.items():
        takers = [name for name, options in taken.items() if option in options]
        own = [taken[name][option] for name in tasks or takers if name in takers]
        if own:
            needed = any(parameter.default is parameter.empty for parameter in own)
            group.add_argument(f"--{option}", required=needed and bool(tasks), **settings)
        else:
            p.foreign[f"--{option}"] = f"is for {', '.join(takers)}, not for {', '.join(tasks)}"


def _lessons(tasks: Sequence[str]) -> str:
    """A line for each task, its options and an example."""
    lines = ["tasks:"]
    for name in tasks:
        if name not in TABLE["task"]:
            continue
        kind = lookup("task", name)
        options = ", ".join(f"--{o}" for o in options_of("task", name) if o in TASK_OPTIONS)
        summary = (kind.__doc__ or "").partition("\n")[0].rstrip(".")
        summary = summary[:1].lower() + summary[1:]
        lines += [
            f"  {name}: {summary}{options and f' ({options})'}",
            f"      vidcm edit {name} {kind.example}",
        ]
    return "\n".join(lines)


def _place(text: str) -> tuple[int, int, int, int]:
    try:
        x, y, width, height = (int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"got {text!r}, expected x,y,width,height in whole pixels"
        ) from None
    return x, y, width, height


TASK_OPTIONS: dict[str, dict[str, Any]] = {
    "mask": {
        "metavar": "MASK",
        "help": "region to fill: x,y,width,height[,from,to] in the input's pixels and seconds, a "
        "key colour #rrggbb, or a picture, video or folder in the input's size, white where to "
        "fill",
    },
    "place": {
        "type": _place,
        "metavar": "X,Y,W,H",
        "help": "where the input goes, in the result's pixels before --scale",
    },
    "factor": {"type": integer(2, 64), "help": "times as large, or as many frames"},
    "given": {"type": positive_int, "metavar": "FRAMES", "help": "input frames the model sees"},
    "at": {"choices": ("first", "last"), "help": "which frame the picture is"},
    "strength": {"type": number(0, 1), "metavar": "0..1", "help": "how much to change"},
    "noise": {"type": number(0, 255), "metavar": "LEVELS", "help": "of the input, 0 to 255"},
    "count": {"type": integer(2, 64), "help": "clips from end to end"},
}
