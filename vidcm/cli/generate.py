"""`vidcm generate`: prompts to clips."""

import argparse
import time
from pathlib import Path

from vidcm.arguments import seeds
from vidcm.cli.argument_types import existing_file, integer, number, positive_int
from vidcm.cli.clips import note, progress_bar, report, warn
from vidcm.cli.common import Parser, run
from vidcm.cli.control_clip import add_control_clip, control_clip
from vidcm.cli.options import add_output, add_sampling, add_seed, add_size, free_output
from vidcm.conditioning.prompts import check_length, check_prompts
from vidcm.errors import UsageError
from vidcm.limits import check_memory
from vidcm.media.sizes import check_frames, check_size
from vidcm.settings import NEGATIVE_PROMPT_METHODS, find_pipeline

CODEC_STRIDE = 8  # sizes are multiples of it; of which ones, the model says
MAX_NOTES = 8  # captions printed


def parser() -> argparse.ArgumentParser:
    p = Parser(
        "generate",
        "Generate clips from prompts in one to four network evaluations.",
        "examples:\n"
        '  vidcm generate --prompt "a woman with purple hair walks left"\n'
        '  vidcm generate --prompt "an orc slashes" --steps 1 --num-clips 4 --output orcs.gif\n'
        '  vidcm generate --prompt "an orc falls down" --output sheet.png   (a sprite sheet)\n'
        "  vidcm generate --prompts-file prompts.txt --output clips/   (lossless frames)\n"
        '  vidcm generate --prompt "an orc walks left on a blue background" --frames 33 \\\n'
        '    --then "17:an orc casts a spell on a blue background"',
    )
    p.add_argument(
        "--prompt", action="append", default=[], help="content of a clip; may be repeated"
    )
    p.add_argument(
        "--image",
        action="append",
        default=[],
        type=existing_file,
        metavar="PATH",
        help="picture that clips begin with, for models that take one; may be repeated, once for "
        "each prompt",
    )
    add_control_clip(p)
    p.add_argument("--prompts-file", type=existing_file, metavar="FILE", help="one prompt per line")
    p.add_argument(
        "--negative-prompt", default="", metavar="TEXT", help="content to move away from"
    )
    p.add_argument(
        "--negative-prompt-method",
        choices=NEGATIVE_PROMPT_METHODS,
        help="guidance: of predictions, three evaluations a step; nag: of attention, one, students "
        "alone (default: nag where a student has one guidance scale built in)",
    )
    p.add_argument(
        "--nag-scale", type=number(0, 100), help="strength of nag (default: 5, if nag is used)"
    )
    add_sampling(p)
    add_seed(p, "of the first clip; the next ones count up")
    p.add_argument("--num-clips", type=integer(1, 10_000), default=1, help="clips per prompt")
    p.add_argument(
        "--frames",
        type=integer(1, 100_000),
        help="of a clip, 4k+1; more than the model was trained on are generated in windows "
        "(default: the checkpoint's)",
    )
    add_size(
        p,
        "height and width, as 64x128; larger than the model was trained on: as --frames (default: "
        "the checkpoint's)",
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
        "--verbatim",
        action="store_true",
        help="give prompts to the model as they are, instead of drawing first what they leave open",
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
    from vidcm.media.write import check_form, check_output, numbered

    if args.solver and not args.teacher:
        raise UsageError("--solver is the teacher's ODE solver; add --teacher")
    prompts = [*args.prompt, *(_lines(args.prompts_file) if args.prompts_file else [])]
    if not prompts:
        raise UsageError('there is no prompt; give --prompt "..." or --prompts-file')
    every_prompt = [*prompts, *(prompt for _, prompt in args.then)]
    check_prompts(every_prompt)
    check_length("--negative-prompt", args.negative_prompt)
    _, settings = find_pipeline(args.checkpoint)
    height, width = args.size or (None, None)
    frames = check_frames(args.frames or settings.num_frames)
    size = check_size(height or settings.height, width or settings.width, CODEC_STRIDE)
    count = len(prompts) * args.num_clips
    seeds(args.seed, count, "clips")
    check_memory(count, frames, *size)
    args.output = args.output or free_output("clip", count)
    fps = settings.fps if args.fps is None else args.fps
    check_form(args.output, (frames, *size), fps, args.scale)
    for path in numbered(args.output, count):
        check_output(path, args.overwrite)

    from vidcm.inputs import warnings_about
    from vidcm.pipeline import VideoPipeline

    pipe = VideoPipeline.from_pretrained(args.checkpoint, device=args.device)
    for path, scale in args.lora:
        pipe.load_lora_weights(path, scale)
    role = "teacher" if args.teacher else "student"
    negative = args.negative_prompt_method, args.nag_scale
    generation = pipe.generation(role, args.steps, args.guidance, args.solver, *negative)
    size = args.frames, height, width
    generation.latent_shape(*size)  # refused before warnings
    reader = None if args.verbatim else pipe.prompt_reader
    warn(warnings_about(generation, every_prompt, args.negative_prompt, *size, reader))
    loaded = time.perf_counter()

    with progress_bar(args) as progress:
        clips = pipe(
            prompts,
            image=args.image or None,
            **control_clip(args, settings),
            negative_prompt=args.negative_prompt,
            negative_prompt_method=args.negative_prompt_method,
            nag_scale=args.nag_scale,
            num_inference_steps=args.steps,
            guidance_scale=args.guidance,
            num_frames=args.frames,
            height=height,
            width=width,
            num_videos_per_prompt=args.num_clips,
            seed=args.seed,
            prompt_schedule=args.then,
            complete_prompt=not args.verbatim,
            use_teacher=args.teacher,
            solver=args.solver,
            callback_on_step_end=progress,
        )
    generated = time.perf_counter()
    paths = clips.save(args.output, fps=args.fps, overwrite=args.overwrite, scale=args.scale)
    found = [
        {"path": str(path), "prompt": prompt, "caption": caption, "seed": number}
        for path, prompt, caption, number in zip(
            paths, clips.prompts, clips.captions, clips.seeds, strict=True
        )
    ]
    if not args.json:
        for clip in found[:MAX_NOTES]:
            if clip["caption"] != clip["prompt"]:
                note(f"understood as: {clip['caption']}")
    report(args, clips, paths, {"clips": found}, loaded, generated)


def _takeover(text: str) -> tuple[int, str]:
    """An argparse type: the frame at which a prompt takes over, and the prompt."""
    frame, colon, prompt = text.partition(":")
    if not colon:
        raise argparse.ArgumentTypeError(
            f"got {text[:60]!r}, expected FRAME:PROMPT, as '17:an orc casts a spell'"
        )
    return positive_int(frame), prompt


def _lines(path: Path) -> list[str]:
    """The prompts in a file, one a line."""
    try:
        text = path.read_text("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError(
            f"{path} is not UTF-8 text (byte {error.start}); save it as UTF-8"
        ) from None
    lines = [line.strip() for line in text.split("\n") if line.strip()]
    if not lines:
        raise UsageError(f"{path} holds no prompt; write one per line")
    return lines
