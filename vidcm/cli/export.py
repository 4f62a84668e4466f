"""`tools/export.py`: runs to one pipeline folder that `generate` and `VideoPipeline` load."""

import argparse
from pathlib import Path

from vidcm.cli.common import Parser, number, positive_int, run


def parser() -> argparse.ArgumentParser:
    p = Parser(
        "export.py",
        "Put codec, teacher and student together as a pipeline folder, weights in half precision or less, "
        "and check it by loading it and making a clip.",
        "example:\n"
        "  python tools/export.py --codec runs/lpc/codec/final --teacher runs/lpc/teacher/final \\\n"
        "    --student runs/lpc/student/final --output my-model",
    )
    p.add_argument("--codec", required=True, help="the codec's model folder")
    p.add_argument("--teacher", required=True, help="the teacher's model folder")
    p.add_argument("--student", required=True, help="the student's model folder")
    p.add_argument("--output", required=True, help="the pipeline folder to write")
    p.add_argument(
        "--frames",
        type=positive_int,
        default=9,
        help="frames per clip, 4k+1 (default: %(default)s)",
    )
    p.add_argument("--height", type=positive_int, default=64)
    p.add_argument("--width", type=positive_int, default=64)
    p.add_argument("--fps", type=number(0.1, 240), default=8.0, help="default: %(default)s")
    p.add_argument(
        "--steps",
        type=positive_int,
        default=4,
        help="the student's default steps (default: %(default)s)",
    )
    p.add_argument(
        "--guidance", type=number(0, 100), default=3.0, help="default scale (default: %(default)s)"
    )
    p.add_argument("--teacher-steps", type=positive_int, default=50, help="default: %(default)s")
    p.add_argument(
        "--storage",
        choices=("fp16", "int8"),
        default="fp16",
        help="of the weights; int8 halves teacher and student and leaves the codec in fp16 "
        "(default: %(default)s)",
    )
    p.add_argument(
        "--overwrite",
        action="store_true",
        help="replace the models of an existing folder; other files stay",
    )
    p.add_argument(
        "--allow-still",
        action="store_true",
        help="export a student whose run last logged less than 0.8 of its teacher's motion",
    )
    return p


def main(argv: list[str] | None = None) -> int:
    return run(_export, parser().parse_args(argv))


def _export(args: argparse.Namespace) -> None:
    import json
    import os
    import shutil
    from tempfile import TemporaryDirectory

    import torch

    from vidcm.errors import UsageError
    from vidcm.pipeline import VideoPipeline
    from vidcm.store import read_card, read_weights, save_model
    from vidcm.times import SHIFT

    output = Path(args.output)
    if (output / "pipeline.json").exists() and not args.overwrite:
        raise UsageError(f"{output} holds a pipeline; give another --output, or --overwrite")
    cards = {role: read_card(getattr(args, role)) for role in ("codec", "teacher", "student")}
    for role in ("teacher", "student"):
        told = cards[role]["spec"].get("backbone", {}).get("guided", False)
        if told != (role == "student"):
            raise UsageError(
                f"{getattr(args, role)} is not a {role}: a student takes a guidance scale as an "
                "input (backbone.guided), a teacher does not"
            )
    if not args.allow_still:
        _refuse_still(Path(args.student), cards["student"]["made"].get("step"))
    objective = cards["student"]["made"].get("config", {}).get("objective", {})
    told = objective.get("guidance", [1.0, 5.0])
    own = sampling_of(objective)
    if args.steps != own.get("phases", args.steps):
        raise UsageError(
            f"--steps is {args.steps}, but {args.student} was trained in {own['phases']} phases of "
            f"one step each; give --steps {own['phases']}"
        )
    settings = {
        "frames": args.frames,
        "height": args.height,
        "width": args.width,
        "fps": args.fps,
        "student": {
            "steps": args.steps,
            "guidance": args.guidance,
            "guidance_range": told,
            "max_steps": 8,
            **own,
        },
        "teacher": {"steps": args.teacher_steps, "guidance": args.guidance, "shift": SHIFT},
    }
    output.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=output.parent, prefix=f".{output.name}.") as folder:
        draft = Path(folder)
        for role, card in cards.items():
            weights = read_weights(getattr(args, role))
            eight = args.storage == "int8" and role != "codec"
            dtype = torch.int8 if eight else torch.float16
            save_model(draft / role, card["spec"], weights, made=card["made"], dtype=dtype)
        (draft / "pipeline.json").write_text(json.dumps(settings, indent=1) + "\n", "utf-8")
        pipe = VideoPipeline.from_pretrained(draft, "cpu")
        for role in ("teacher", "student"):
            if pipe.model(role).channels != pipe.codec.channels:
                raise UsageError(
                    f"{getattr(args, role)} makes latents of {pipe.model(role).channels} channels, "
                    f"{args.codec} reads {pipe.codec.channels}; give the codec it was trained with"
                )
        clips = pipe("a test", steps=own.get("phases", 1))
        pipe("a test", steps=1, teacher=True)
        output.mkdir(exist_ok=True)
        for made in draft.iterdir():
            if (output / made.name).is_dir():
                shutil.rmtree(output / made.name)
            os.replace(made, output / made.name)
    size = sum(f.stat().st_size for f in output.rglob("*.safetensors")) / 2**20
    print(
        f"{output}: {size:.1f} MB of weights; a clip of {clips.frames.shape[1]} frames came out of it"
    )


def _refuse_still(student: Path, step: int | None) -> None:
    """Raises UsageError when the run that a student's folder lies in logged too little motion."""
    from vidcm.errors import UsageError
    from vidcm.train.health import LEAST_MOTION, logged_motion

    log = student.resolve().parent / "metrics.jsonl"
    ratios = logged_motion(log, step)
    if ratios and (worst := min(ratios.items(), key=lambda item: item[1]))[1] < LEAST_MOTION:
        raise UsageError(
            f"{student} moves {worst[1]:.4g} times as much as its teacher ({worst[0]} in {log}), "
            f"below {LEAST_MOTION}; train on, or export it all the same with --allow-still"
        )


def sampling_of(objective: dict) -> dict:
    """The settings that say how a student of an objective is sampled."""
    from vidcm.registry import build, lookup
    from vidcm.sampling import student_settings

    special = objective and hasattr(lookup("objective", objective["name"]), "sampling")
    found = student_settings(build("objective", objective, teacher=None) if special else None)
    return found | {"times": {str(k): list(v) for k, v in found["times"].items()}}
