"""`tools/edit.py`: edit clips without training; what is known of them is kept exactly."""

import argparse
import inspect
import json
import math
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from vidcm.cli.common import did_you_mean, run
from vidcm.cli.edit_options import OPTIONS, SECONDS, parser
from vidcm.cli.generate import bar
from vidcm.errors import UsageError
from vidcm.registry import TABLE, lookup

if TYPE_CHECKING:
    from numpy import ndarray

    from vidcm.editing.scene import Canvas, Task
    from vidcm.media.load import Film
    from vidcm.pipeline import VideoPipeline

STARTED = time.perf_counter()


def main(argv: list[str] | None = None) -> int:
    words = sys.argv[1:] if argv is None else argv
    named: list[str] = []
    for flag, value in zip(words, [*words[1:], ""], strict=True):
        name = value if flag == "--task" else flag.removeprefix("--task=")
        if name != flag:
            named = [t for t in name.split(",") if t in TABLE["task"]]
    return run(_edit, parser(named).parse_args(argv))


def _edit(args: argparse.Namespace) -> None:
    specs = _specs(args)
    if len(args.prompt) > 1 and "interpolate" not in specs:
        raise UsageError(f"got {len(args.prompt)} prompts; only interpolate takes two")

    from vidcm.editing.edit import canvas_of, check_texts
    from vidcm.editing.scene import check
    from vidcm.media.sound import pass_sound
    from vidcm.media.write import check_output
    from vidcm.pipeline import VideoPipeline
    from vidcm.registry import build

    prompts, seeds = args.prompt or [""], args.seed or [0]
    check_texts(prompts)
    stand_ins = {
        name: build("task", {**spec, **({"mask": [[0]]} if "mask" in spec else {})})
        for name, spec in specs.items()
    }
    check(stand_ins, len(args.input))
    targets = [check_output(path, args.overwrite) for path in _outputs(args, stand_ins)]
    if args.preview:
        if Path(args.preview).suffix.lower() != ".png":
            raise UsageError(f"--preview writes .png files, not {args.preview!r}")
        if check_output(args.preview, args.overwrite) in targets:
            raise UsageError(f"--preview and --output are both {args.preview}; name two files")
    pipe = VideoPipeline.from_pretrained(args.checkpoint, args.device)
    height, width = args.size or (None, None)
    canvas = canvas_of(pipe, "teacher" if args.teacher else "student", height, width)
    read = _read(args, pipe, specs, stand_ins, canvas)
    loaded = time.perf_counter()
    several = len(seeds) > 1 or "interpolate" in specs
    with bar(args) as progress:
        made = pipe.edit(
            list(specs.values()),
            read.clips,
            prompts,
            steps=args.steps,
            guidance=args.guidance,
            seed=seeds if several else seeds[0],
            frames=args.frames,
            height=height,
            width=width,
            teacher=args.teacher,
            progress=progress,
        )
    before = time.perf_counter()
    paths = made.save(args.output, overwrite=args.overwrite, scale=args.scale)
    in_time = len(args.input) == 1 and made.frames.shape[1] == read.timed
    for note in [*read.notes, *pass_sound(args.input, paths[0], in_time, args.start)]:
        print(note, file=sys.stderr)
    if args.preview:
        _preview(args, made.frames, read.shown)
    done = time.perf_counter()
    seconds = {"load": loaded - STARTED, **made.seconds, "write": done - before}
    seconds = {k: round(v, 4) for k, v in (seconds | {"total": done - STARTED}).items()}
    if args.json:
        told: dict[str, Any] = {
            "task": list(specs),
            "paths": [str(p) for p in paths],
            "prompts": made.prompts,
            "seeds": made.seeds,
            "frames": made.frames.shape[1],
            "evaluations": made.evaluations,
            "seconds": seconds,
        }
        if args.preview:
            told["preview"] = args.preview
        print(json.dumps(told))
        return
    for path in [*paths, *([args.preview] if args.preview else [])]:
        print(path)
    noun = "evaluation" if made.evaluations == 1 else "evaluations"
    spent = ", ".join(f"{k} {v:.2f} s" for k, v in seconds.items() if k != "total")
    print(f"{made.evaluations} network {noun} a clip; {seconds['total']:.2f} s in all: {spent}")


def _specs(args: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Each task with the options given for it. Raises UsageError for one that none takes, or that
    one needs."""
    names = [name.strip() for name in args.task.split(",")]
    for name in names:
        if name not in TABLE["task"]:
            hint = did_you_mean(name, TABLE["task"])
            raise UsageError(f"unknown task {name!r}{hint} (known: {', '.join(TABLE['task'])})")
        if names.count(name) > 1:
            raise UsageError(f"the task {name} is asked for twice; name it once")
    given = {o: getattr(args, o) for o in OPTIONS if getattr(args, o) is not None}
    taken = {name: inspect.signature(lookup("task", name)).parameters for name in names}
    for option in given:
        if not any(option in parameters for parameters in taken.values()):
            who = [
                n
                for n in TABLE["task"]
                if option in inspect.signature(lookup("task", n)).parameters
            ]
            raise UsageError(
                f"--{option} says nothing to {', '.join(names)}; it is for {', '.join(who)}"
            )
    specs: dict[str, dict[str, Any]] = {}
    for name, parameters in taken.items():
        needed = [o for o, p in parameters.items() if p.default is p.empty and o not in given]
        if needed:
            raise UsageError(f"{name} needs --{needed[0]} (see edit.py --task {name} --help)")
        specs[name] = {"name": name} | {o: v for o, v in given.items() if o in parameters}
    return specs


def _outputs(args: argparse.Namespace, tasks: dict[str, "Task"]) -> list[str]:
    from vidcm.editing.tasks import Interpolate
    from vidcm.media.write import numbered

    counts = [task.count for task in tasks.values() if isinstance(task, Interpolate)]
    return numbered(args.output, counts[0] if counts else 1)


class _Inputs(NamedTuple):
    """Clips as the tasks take them, and as they are shown; what became of them to fit, in words;
    and how many frames a result has that keeps the timing of the first."""

    clips: list["ndarray"]
    shown: list["ndarray"]
    notes: list[str]
    timed: int


def _read(
    args: argparse.Namespace,
    pipe: "VideoPipeline",
    specs: dict[str, dict[str, Any]],
    tasks: dict[str, "Task"],
    canvas: "Canvas",
) -> _Inputs:
    """The inputs, fitted to the model; puts the mask into `specs`."""
    from dataclasses import replace

    import numpy as np

    from vidcm.editing.scene import grown, grows, input_size, most_frames, pace
    from vidcm.media.load import at_once, describe, fit, fit_mask, read_film, read_mask

    fps, size, held = pipe.settings["fps"] / pace(tasks), input_size(tasks, canvas), math.inf
    if not grows(tasks):
        canvas = grown(tasks, [], canvas, args.frames)
    elif args.frames is not None:
        canvas = replace(canvas, frames=args.frames)
    else:
        seconds = round(SECONDS * pipe.settings["fps"])
        canvas = replace(canvas, frames=max(canvas.frames, min(seconds, canvas.most)))
        held = at_once(args.input[0])
    most = most_frames(tasks, canvas)
    most = most if most is None else int(min(most, held))
    films: list[Film] = [read_film(path, fps, most, args.start) for path in args.input]
    clips = [fit(film.frames, size) for film in films]
    shown = [clip.copy() for clip in clips]
    if args.mask is not None:
        mask = fit_mask(read_mask(args.mask, films[0], fps, args.start), size)
        specs["inpaint"]["mask"] = mask
        shown[0][np.broadcast_to(mask, shown[0].shape[:3])] = 48
    more = "" if args.frames else " (--frames takes more)"
    notes = [
        describe(film, clip, fps, more * grows(tasks))
        for film, clip in zip(films, clips, strict=True)
    ]
    timed = (len(clips[0]) - 1) * pace(tasks) + 1 if clips else 0
    return _Inputs(clips, shown, [note for note in notes if note], timed)


def _preview(args: argparse.Namespace, made: "ndarray", shown: list["ndarray"]) -> None:
    from vidcm.media.contact_sheet import contact_sheet

    rows = [[clip] for clip in [*shown, *made]]
    labels = [f"given: {path.name}" for path in args.input]
    labels += [f"{args.task}: {' > '.join(args.prompt) or 'no prompt'}"] * len(made)
    contact_sheet(rows, labels, args.preview, args.scale, overwrite=args.overwrite)
