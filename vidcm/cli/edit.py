"""`vidcm edit`: edit clips without training; their known pixels stay exactly."""

import argparse
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vidcm.cli.clips import note, progress_bar, report, warn
from vidcm.cli.common import run
from vidcm.cli.edit_options import TASK_OPTIONS, parser
from vidcm.cli.options import free_output
from vidcm.conditioning.prompts import check_prompts
from vidcm.errors import UsageError
from vidcm.registry import options_of
from vidcm.settings import find_pipeline

if TYPE_CHECKING:
    from numpy import ndarray

    from vidcm.editing.scene import Task


def main(argv: list[str] | None = None) -> int:
    words = sys.argv[1:] if argv is None else argv
    if words and not words[0].startswith("-"):
        return run(_edit, parser(words[0].split(",")).parse_args(words[1:]))
    if words and words[0] not in ("-h", "--help"):
        parser().error("the first word is the task, as in: vidcm edit extend --input clip.mp4")
    parser().parse_args(words)
    return 2


def _edit(args: argparse.Namespace) -> None:
    from vidcm.editing.inputs import read_inputs, stand_in_tasks
    from vidcm.editing.scene import check, frames_per_input
    from vidcm.media import load
    from vidcm.media.masks import load_mask
    from vidcm.media.write import check_form, check_output

    specs = _specs(args)
    for name, values in (("prompts", args.prompt), ("seeds", args.seed or [])):
        if len(values) > 1 and "interpolate" not in specs:
            raise UsageError(f"got {len(values)} {name}; only interpolate takes two")
    prompts, seeds = args.prompt or [""], args.seed or [0]
    _, settings = find_pipeline(args.checkpoint)
    check_prompts([prompt or "any" for prompt in prompts])  # an empty one leaves all open
    stand_ins = stand_in_tasks(specs)
    check(stand_ins, len(args.input))
    if args.start and not args.input:
        raise UsageError("--start is about an input, and there is none; leave it out")
    targets = [check_output(path, args.overwrite) for path in _outputs(args, stand_ins)]
    if args.preview:
        if Path(args.preview).suffix.lower() != ".png":
            raise UsageError(f"--preview writes .png files, not {args.preview!r}")
        targets.append(check_output(args.preview, args.overwrite))
        if targets[-1] in targets[:-1]:
            raise UsageError(f"--preview and --output are both {args.preview}; name two files")
    shape = (1, *(args.size or settings.size[1:]))
    check_form(args.output, shape, settings.fps, args.scale)
    for path in args.input:
        if path.resolve() in targets:
            raise UsageError(f"{path} is an input and an output; give the result another name")
        load.check_source(path, settings.fps / frames_per_input(stand_ins), args.start)

    from vidcm.editing.edit import output_spec
    from vidcm.inputs import warnings_about
    from vidcm.media.sound import pass_sound
    from vidcm.pipeline import VideoPipeline

    pipe = VideoPipeline.from_pretrained(args.checkpoint, device=args.device)
    for path, scale in args.lora:
        pipe.load_lora_weights(path, scale)
    height, width = args.size or (None, None)
    role = "teacher" if args.teacher else "student"
    generation = pipe.generation(role, args.steps, args.guidance)
    spec = output_spec(generation, height, width)
    warn(warnings_about(generation, prompts))
    inputs = read_inputs(
        specs,
        stand_ins,
        spec,
        settings.fps,
        args.input,
        load,
        lambda film, fps: load_mask(args.mask, film, fps, args.start),
        frames=args.frames,
        start=args.start,
        advice=" (--frames takes more)",
    )
    check_form(args.output, shape, inputs.fps, args.scale)
    loaded = time.perf_counter()
    several = len(seeds) > 1 or "interpolate" in specs
    with progress_bar(args) as progress:
        clips = pipe.edit(
            list(inputs.specs.values()),
            inputs.clips,
            prompts,
            num_inference_steps=args.steps,
            guidance_scale=args.guidance,
            seed=seeds if several else seeds[0],
            num_frames=args.frames,
            height=height,
            width=width,
            use_teacher=args.teacher,
            callback_on_step_end=progress,
        )
    generated = time.perf_counter()
    clips = replace(clips, fps=inputs.fps)
    paths = clips.save(args.output, overwrite=args.overwrite, scale=args.scale)
    in_time = len(args.input) == 1 and clips.frames.shape[1] == inputs.timed
    for text in [*inputs.notes, *pass_sound(args.input, paths[0], in_time, args.start)]:
        note(text)
    sheet = [_preview(args, clips.frames, inputs.preview)] if args.preview else []
    facts: dict[str, Any] = {
        "task": args.tasks,
        "paths": [str(p) for p in paths],
        "prompts": clips.prompts,
        "seeds": clips.seeds,
        "frames": clips.frames.shape[1],
        **({"preview": str(sheet[0])} if sheet else {}),
    }
    report(args, clips, [*paths, *sheet], facts, loaded, generated)


def _specs(args: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Each task with its options."""
    values = {option: getattr(args, option, None) for option in TASK_OPTIONS}
    return {
        name: {"name": name}
        | {o: values[o] for o in options_of("task", name) if values.get(o) is not None}
        for name in args.tasks
    }


def _outputs(args: argparse.Namespace, tasks: dict[str, "Task"]) -> list[str]:
    """The files that will be written; sets `args.output` if it is not."""
    from vidcm.editing.tasks import Interpolate
    from vidcm.media.write import numbered

    counts = [task.count for task in tasks.values() if isinstance(task, Interpolate)]
    count = counts[0] if counts else 1
    if args.output is None:
        args.output = free_output("edited", count)
    return numbered(args.output, count)


def _preview(args: argparse.Namespace, results: "ndarray", inputs: list["ndarray"]) -> Path:
    """Write the sheet of `--preview`: inputs, then results. Returns its full path."""
    from vidcm.media.contact_sheet import contact_sheet

    rows = [[clip] for clip in [*inputs, *results]]
    labels = [f"input: {path.name}" for path in args.input]
    labels += [f"{','.join(args.tasks)}: {' > '.join(args.prompt) or 'no prompt'}"] * len(results)
    return contact_sheet(rows, labels, args.preview, args.scale, overwrite=args.overwrite)
