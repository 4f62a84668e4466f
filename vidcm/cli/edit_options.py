"""The options of `vidcm edit`, and the help that explains its tasks."""

import argparse
import inspect
from pathlib import Path

from vidcm.cli.common import Parser, did_you_mean, number, positive_int, seed, sides, whole_number
from vidcm.registry import TABLE, lookup

SECONDS = 10.0  # of a clip that are edited if nobody says how many frames
OPTIONS = ("mask", "place", "factor", "given", "at", "strength", "noise", "count")


def parser(tasks: list[str] | None = None) -> argparse.ArgumentParser:
    """The command's options; its help explains `tasks`, or all of them."""
    p = Parser(
        "edit",
        "Edit clips without training, in a few network evaluations: say what the rest should show;\n"
        "what is given is kept to the bit (in png output: video codecs change every pixel a little).",
        _lessons(tasks or list(TABLE["task"])),
    )
    p.add_argument(
        "--task",
        required=True,
        metavar="NAME",
        help=f"what to do: {', '.join(TABLE['task'])}; or several at once, as in colorize,extend,loop",
    )
    p.add_argument(
        "--input",
        action="append",
        default=[],
        type=_clip,
        metavar="FILE",
        help="a video, a png picture or a folder of png frames; repeat it for tasks between two",
    )
    p.add_argument(
        "--prompt",
        action="append",
        default=[],
        metavar="TEXT",
        help="what the result shows; without, the model is free. Repeat it for interpolate",
    )
    what = p.add_argument_group("what tasks are told")
    what.add_argument(
        "--mask",
        metavar="MASK",
        help="what to fill: x,y,width,height[,from,to] in the input's pixels and seconds, a key "
        "colour #rrggbb, or a picture, video or folder in the input's size, white where to fill",
    )
    what.add_argument(
        "--place", type=_place, metavar="X,Y,W,H", help="where in the result the input goes"
    )
    what.add_argument(
        "--factor", type=whole_number(2, 64), help="times as large, or as many frames"
    )
    what.add_argument("--given", type=positive_int, metavar="FRAMES", help="frames the model sees")
    what.add_argument("--at", choices=("first", "last"), help="which frame the picture is")
    what.add_argument("--strength", type=float, metavar="0..1", help="how much to change")
    what.add_argument("--noise", type=float, metavar="LEVELS", help="of the input, 0 to 255")
    what.add_argument("--count", type=whole_number(2, 64), help="clips from end to end")
    what.add_argument(
        "--start", type=number(0), default=0.0, metavar="SECONDS", help="skip so much of the input"
    )
    what.add_argument(
        "--frames",
        type=whole_number(1, 100_000),
        metavar="COUNT",
        help="of a clip edited from end to end, at most so many of the result (default: all of the "
        f"first {SECONDS:g} seconds); for other tasks, how many the model makes in one go, the given "
        "ones counted (default: the checkpoint's)",
    )
    what.add_argument(
        "--size",
        type=sides("HEIGHTxWIDTH"),
        metavar="HxW",
        help="height and width of the result, as 64x128 (default: the checkpoint's)",
    )
    how = p.add_argument_group("how")
    how.add_argument("--steps", type=whole_number(1, 1000), help="network evaluations")
    how.add_argument(
        "--guidance",
        type=number(0, 100),
        help="how strictly to follow the prompt (default: the checkpoint's own; 1, which is without, "
        "for a student that is given something of the clip)",
    )
    how.add_argument(
        "--seed",
        action="append",
        type=seed,
        help="of the noise (default: 0); repeat it for interpolate",
    )
    how.add_argument("--teacher", action="store_true", help="the many-step teacher instead")
    how.add_argument("--checkpoint", default="lpc-64", help="a bundled model or a pipeline folder")
    how.add_argument("--device", default="auto", help="auto, cpu, cuda (default: %(default)s)")
    out = p.add_argument_group("what comes out")
    out.add_argument(
        "--output",
        default="edited.mp4",
        metavar="PATH",
        help="mp4, webm, gif, png (a sprite sheet), or a folder with a final / (png frames); "
        "default: %(default)s",
    )
    out.add_argument("--scale", type=whole_number(1, 64), default=4, help="enlarge pixels (4)")
    out.add_argument("--preview", metavar="PNG", help="also a sheet: what was given, what was made")
    out.add_argument("--overwrite", action="store_true", help="replace existing outputs")
    out.add_argument("--json", action="store_true", help="print one JSON object instead of text")
    return p


def _lessons(tasks: list[str]) -> str:
    """What each task does, its options and an example."""
    lines = ["tasks:"]
    for name in tasks:
        kind = lookup("task", name)
        told = [f"--{o}" for o in inspect.signature(kind).parameters if o in OPTIONS]
        options = f" ({', '.join(told)})" if told else ""
        does = (kind.__doc__ or "").splitlines()[0]
        lines += [f"  {name}: {does}{options}", f"      vidcm edit {kind.example}"]
    return "\n".join(lines)


def _clip(text: str) -> Path:
    path = Path(text)
    if not path.exists():
        siblings = [item.name for item in path.parent.iterdir()] if path.parent.is_dir() else []
        hint = did_you_mean(path.name, siblings)
        raise argparse.ArgumentTypeError(f"no such file {text!r}{hint}")
    return path


def _place(text: str) -> tuple[int, int, int, int]:
    try:
        x, y, width, height = (int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"got {text!r}, expected x,y,width,height in whole pixels"
        ) from None
    return x, y, width, height
