"""`tools/generate.py`: prompts to clips."""

import argparse
import sys
import time

from vidcm.cli.clips import progress_bar, report
from vidcm.cli.common import (
    Parser,
    add_output,
    add_sampling,
    add_seed,
    existing_file,
    free_output,
    number,
    positive_int,
    run,
    sides,
    whole_number,
)

STARTED = time.perf_counter()


def parser() -> argparse.ArgumentParser:
    p = Parser(
        "generate",
        "Make clips from prompts in one to four network evaluations.",
        "examples:\n"
        '  vidcm generate --prompt "a woman with purple hair walks left"\n'
        '  vidcm generate --prompt "an orc slashes" --steps 1 --seed 7 --num-clips 4 --output orcs.gif\n'
        '  vidcm generate --prompt "a knight falls" --output sheet.png --scale 4   (a sprite sheet)\n'
        "  vidcm generate --prompts-file prompts.txt --output clips/   (lossless frames)\n"
        '  vidcm generate --prompt "an orc walks left" --frames 33 --then "17:an orc casts a spell"',
    )
    p.add_argument("--prompt", action="append", default=[], help="what to show; may be repeated")
    p.add_argument("--prompts-file", type=existing_file, metavar="FILE", help="one prompt per line")
    p.add_argument("--negative-prompt", default="", metavar="TEXT", help="what to move away from")
    add_sampling(p)
    add_seed(p, "of the first clip; the next ones count up")
    p.add_argument(
        "--num-clips", type=positive_int, default=1, help="clips per prompt (default: %(default)s)"
    )
    p.add_argument(
        "--frames",
        type=whole_number(1, 100_000),
        help="of a clip, 4k+1; more than the model was trained on are made in windows (default: the "
        "checkpoint's)",
    )
    p.add_argument(
        "--size",
        type=sides("HEIGHTxWIDTH"),
        metavar="HxW",
        help="height and width, as 64x128; larger than the "
        "model was trained on: as --frames (default: the checkpoint's)",
    )
    p.add_argument(
        "--then",
        type=_takeover,
        action="append",
        default=[],
        metavar="FRAME:PROMPT",
        help="a prompt that takes over at a frame of a long clip; may be repeated",
    )
    p.add_argument(
        "--solver",
        choices=("euler", "heun", "dpm"),
        help="the teacher's ODE solver, with --teacher (default: the checkpoint's)",
    )
    add_output(p, "clip")
    p.add_argument(
        "--fps", type=number(0.1, 240), help="frames per second (default: the checkpoint's)"
    )
    return p


def main(argv: list[str] | None = None) -> int:
    return run(_generate, parser().parse_args(argv))


def _generate(args: argparse.Namespace) -> None:
    from vidcm.errors import UsageError

    if args.solver and not args.teacher:
        raise UsageError("--solver is the teacher's; a student jumps; add --teacher")
    prompts = [*args.prompt, *(_lines(args.prompts_file) if args.prompts_file else [])]
    if not prompts:
        raise UsageError('there is no prompt; give --prompt "..." or --prompts-file')

    from vidcm.conditioning.prompts import check_prompts
    from vidcm.media.write import check_output, numbered
    from vidcm.pipeline import VideoPipeline

    check_prompts([*prompts, *(prompt for _, prompt in args.then)])
    count = len(prompts) * args.num_clips
    args.output = args.output or free_output("clip", count)
    for path in numbered(args.output, count):
        check_output(path, args.overwrite)
    pipe = VideoPipeline.from_pretrained(args.checkpoint, args.device)
    model = pipe.model("teacher" if args.teacher else "student")
    said = [*prompts, *(prompt for _, prompt in args.then)]
    _warn(args, pipe, model, said)
    loaded = time.perf_counter()

    with progress_bar(args) as progress:
        clips = pipe(
            prompts,
            steps=args.steps,
            guidance=args.guidance,
            negative_prompt=args.negative_prompt,
            seed=args.seed,
            num_clips=args.num_clips,
            frames=args.frames,
            height=args.size and args.size[0],
            width=args.size and args.size[1],
            then=args.then,
            teacher=args.teacher,
            solver=args.solver,
            progress=progress,
        )
    before = time.perf_counter()
    paths = clips.save(args.output, fps=args.fps, overwrite=args.overwrite, scale=args.scale)
    done = time.perf_counter()
    seconds = {
        "load": loaded - STARTED,
        **clips.seconds,
        "write": done - before,
        "total": done - STARTED,
    }
    found = [
        {"path": str(path), "prompt": prompt, "seed": number}
        for path, prompt, number in zip(paths, clips.prompts, clips.seeds, strict=True)
    ]
    report(args, clips, paths, {"clips": found}, seconds)


def _takeover(text: str) -> tuple[int, str]:
    """An argparse type: the frame at which a prompt takes over, and the prompt."""
    frame, colon, prompt = text.partition(":")
    if not colon:
        raise argparse.ArgumentTypeError(
            f"got {text[:60]!r}, expected FRAME:PROMPT, as '17:an orc casts a spell'"
        )
    return positive_int(frame), prompt


def _lines(path) -> list[str]:
    from vidcm.errors import UsageError

    try:
        text = path.read_text("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError(
            f"{path} is not UTF-8 text (byte {error.start}); save it as UTF-8"
        ) from None
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if not lines:
        raise UsageError(f"{path} holds no prompt; write one per line")
    return lines


def _warn(args: argparse.Namespace, pipe, model, prompts: list[str]) -> None:
    """Say what differs from how the checkpoint was tuned, and what of a prompt is not read."""
    own = pipe.settings["teacher" if args.teacher else "student"]
    asked = args.frames, *(args.size or (None, None))
    least = [min(axis) for axis in zip(*pipe.trained, strict=True)]
    for name, value, low in zip(("frames", "height", "width"), asked, least, strict=True):
        if value is not None and value < low:
            print(
                f"warning: the model was trained on {name} of {low} or more, not {value}",
                file=sys.stderr,
            )
    low, high = own.get("guidance_range", (0, 100))
    if args.guidance is not None and not low <= args.guidance <= high:
        print(
            f"warning: the model was trained with guidance {low:g} to {high:g}, not {args.guidance:g}",
            file=sys.stderr,
        )
    most = own.get("max_steps")
    if args.steps is not None and most and args.steps > most:
        print(
            f"warning: the model was tuned for 1 to {most} steps, not {args.steps}", file=sys.stderr
        )
    for prompt in prompts:
        if left := model.conditioner.dropped(prompt):
            print(
                f"warning: {len(left)} words at the end of a prompt are not read: {' '.join(left[:8])} ...",
                file=sys.stderr,
            )
