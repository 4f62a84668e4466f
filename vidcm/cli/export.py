"""`vidcm export`: runs to a pipeline folder that `generate` loads, or to what others load."""

import argparse
from pathlib import Path

from vidcm.cli.argument_types import integer, number, output_folder, positive_int
from vidcm.cli.common import Parser, run
from vidcm.cli.export_public import (
    OF_PIPELINES,
    PIPELINE,
    add_targets,
    export_public,
    verify_export,
)
from vidcm.cli.options import add_art, add_bucket, art_of, check_model_folder
from vidcm.errors import UsageError
from vidcm.limits import check_memory
from vidcm.media.sizes import check_frames, check_size
from vidcm.settings import PipelineSettings, StudentSettings, TeacherSettings

MODELS = ("codec", "teacher", "student")
EXPERTS = ("teacher_2", "student_2")

GUIDANCE = 3.0


def parser() -> argparse.ArgumentParser:
    p = Parser(
        "export",
        "Put codec, teacher and student together as a pipeline folder, weights in half precision\n"
        "or less, and check it by loading it and generating a clip; or write a student of a\n"
        "public model for another program.",
        "examples:\n"
        "  vidcm export --codec runs/lpc/codec/final --teacher runs/lpc/teacher/final \\\n"
        "    --student runs/lpc/student/final --output my-model\n"
        "  vidcm export --features runs/lpc/features/final --art layers.tar \\\n"
        "    --output my-features\n"
        "  vidcm export --to diffusers --student runs/wan/student/final --output my-wan\n"
        "  vidcm export --verify my-wan",
    )
    for model in MODELS:
        p.add_argument(f"--{model}", help=f"the {model}'s model folder")
    for model in EXPERTS:
        p.add_argument(
            f"--{model.replace('_', '-')}",
            help=f"the {model.removesuffix('_2')}'s network below --boundary, where it has two",
        )
    p.add_argument(
        "--boundary",
        type=number(0, 1),
        help="rectified-flow time that divides the work of two networks, as 0.875 of Wan 2.2 A14B",
    )
    p.add_argument(
        "--features",
        help="instead of these: the model folder of configs/lpc/features.yaml; --output is then "
        "the network that the Fréchet distance sees clips with, its accuracy in its card",
    )
    add_art(p)
    add_targets(p)
    p.add_argument("--output", type=output_folder, help="the folder to write")
    p.add_argument("--frames", type=positive_int, default=9, help="frames per clip, 4k+1")
    p.add_argument("--height", type=positive_int, default=64)
    p.add_argument("--width", type=positive_int, default=64)
    add_bucket(
        p,
        "that the models were trained on; may be repeated. Clips beyond the largest are generated "
        "in windows",
    )
    p.add_argument(
        "--prompt-reader",
        choices=("lpc",),
        help="complete prompts before the model reads them: lpc for models of --data lpc",
    )
    p.add_argument("--fps", type=number(0.1, 240), default=8.0, help="frames per second")
    p.add_argument("--steps", type=integer(1, 1000), default=4, help="steps of the student")
    p.add_argument(
        "--guidance",
        type=number(0, 100),
        help=f"guidance scale of the student (default: {GUIDANCE:g}, or the nearest of its range)",
    )
    p.add_argument(
        "--teacher-steps", type=integer(1, 1000), default=50, help="steps of the teacher"
    )
    p.add_argument(
        "--teacher-guidance",
        type=number(0, 100),
        help="guidance scale of the teacher (default: --guidance)",
    )
    p.add_argument(
        "--shift",
        type=number(0.01, 1e4),
        help="factor on sigma / alpha of the teacher's grid of times (default: 32); the larger, "
        "the earlier its last step begins. With --to, of the student's (default: its own, or that "
        "of its pipeline)",
    )
    p.add_argument(
        "--storage",
        choices=("fp32", "bf16", "fp16", "int8"),
        help="of the weights (default: fp16, with --to bf16); int8 halves teacher and student and "
        "leaves the codec in fp16. A pipeline folder is fp16 or int8",
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
    if args.verify:
        verify_export(args.verify)
        return
    if args.output is None:
        raise UsageError("--output is missing; give the folder to write")
    if args.to != PIPELINE:
        default = parser().get_default
        export_public(args, [n for n in OF_PIPELINES if getattr(args, n) != default(n)])
        return
    output: Path = args.output
    if args.features:
        _export_features(args, output)
        return
    if output.is_dir() and any(output.iterdir()) and not args.overwrite:
        raise UsageError(f"{output} holds files; give another --output, or --overwrite")
    if missing := [f"--{role}" for role in MODELS if getattr(args, role) is None]:
        raise UsageError(f"{', '.join(missing)} missing; give the model folders to put together")
    storage = args.storage or "fp16"
    if storage not in ("fp16", "int8"):
        raise UsageError(f"--storage is {storage}; a pipeline folder is fp16 or int8")
    experts = [getattr(args, name) is not None for name in (*EXPERTS, "boundary")]
    if any(experts) and not all(experts):
        raise UsageError("--teacher-2, --student-2 and --boundary go together; give all three")
    roles = MODELS + (EXPERTS if all(experts) else ())
    for role in roles:
        check_model_folder(getattr(args, role))
        if Path(getattr(args, role)).resolve() == (output / role).resolve():
            raise UsageError(
                f"{getattr(args, role)} is in --output {output}, which would replace it by half "
                "precision; give another --output"
            )
    for frames, height, width in [(args.frames, args.height, args.width), *args.bucket]:
        check_frames(frames)
        check_size(height, width, 8)
        check_memory(1, frames, height, width)

    from vidcm.diffusion.times import SHIFT
    from vidcm.export import export, known_words, refuse_still, student_facts

    if not args.allow_still:
        refuse_still(args.student)
    facts = student_facts(args.student)
    low, high = facts["guidance_range"]
    guidance = min(max(GUIDANCE, low), high) if args.guidance is None else args.guidance
    own = guidance if args.teacher_guidance is None else args.teacher_guidance
    shift = facts.get("shift", SHIFT) if args.shift is None else args.shift
    settings = PipelineSettings(
        args.frames,
        args.height,
        args.width,
        args.fps,
        StudentSettings(args.steps, guidance, **facts),
        TeacherSettings(args.teacher_steps, own, shift),
    )
    if args.bucket:
        settings.trained_shapes = [settings.size, *map(tuple, args.bucket)]
    settings.prompt_reader = args.prompt_reader or ""
    settings.known_words = known_words(args.student)
    phases = settings.student.phases or args.steps
    if args.steps != phases:
        raise UsageError(
            f"--steps is {args.steps}, but {args.student} was trained in {phases} phases of one "
            f"step each; give --steps {phases}"
        )
    settings.boundary_ratio = args.boundary
    models = {role: getattr(args, role) for role in roles}
    settings.check()
    export(models, output, settings, storage=storage, overwrite=args.overwrite)
    size = sum(f.stat().st_size for f in output.rglob("*.safetensors")) / 2**20
    print(f"{output}: {size:.1f} MB of weights; it generated a test clip of {args.frames} frames")


def _export_features(args: argparse.Namespace, output: Path) -> None:
    if args.codec or args.teacher or args.student:
        raise UsageError("--features is a folder of its own; leave out codec, teacher and student")
    if output.exists() and not args.overwrite:
        raise UsageError(f"{output} exists; give another --output, or --overwrite")
    if output.exists() and not (output / "model.json").is_file():
        raise UsageError(
            f"{output} is no model folder, and --overwrite would replace all of it; give another "
            "--output"
        )
    check_model_folder(args.features)

    from vidcm.lpc.features import release_features

    found = release_features(args.features, output, art_of(args))
    print(f"{output}: names {', '.join(f'{k} {100 * v:.1f} %' for k, v in found.items())}")
