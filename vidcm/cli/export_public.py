"""`vidcm export --to ...` and `--verify`: students of public models for other programs."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vidcm.cli.argument_types import positive_int
from vidcm.cli.common import Parser
from vidcm.cli.options import check_model_folder
from vidcm.errors import UsageError
from vidcm.registry import TABLE

PIPELINE = "vidcm"  # vidcm's own pipeline folder
OF_PIPELINES = (
    "codec",
    "teacher",
    "teacher_2",
    "boundary",
    "features",
    "art",
    "frames",
    "height",
    "width",
    "fps",
    "guidance",
    "bucket",
    "prompt_reader",
    "teacher_steps",
    "teacher_guidance",
)


def add_targets(p: Parser) -> None:
    """The options of exports to other programs."""
    p.add_argument(
        "--to",
        choices=(PIPELINE, *TABLE["export_target"]),
        default=PIPELINE,
        help="what to write: vidcm, a pipeline folder; else a student of a public model, as "
        "diffusers, a pipeline folder with its times; anyflow, the same for students of two times, "
        "without code of ours; comfy, one file and a workflow for ComfyUI; lora, a low-rank update "
        "of its base for both; safetensors, vidcm's model folder. Each is loaded by its consumer "
        "and compared before it is there",
    )
    p.add_argument(
        "--rank", type=positive_int, help="of --to lora (default: that of training, or 32)"
    )
    p.add_argument(
        "--verify",
        type=Path,
        metavar="DIR",
        help="instead of exporting: compare an export with its student's outputs again",
    )


def export_public(args: argparse.Namespace, of_pipelines: Sequence[str]) -> None:
    """Export a student to another program, as `args.to` says.

    Args:
        args: Of the command.
        of_pipelines: Those of `OF_PIPELINES` that were given.

    Raises:
        UsageError: Options do not belong together, or the consumer would not run the student.
    """
    if of_pipelines:
        names = ", ".join(f"--{name.replace('_', '-')}" for name in of_pipelines)
        raise UsageError(f"{names}: only for vidcm's own pipeline folders; leave out with --to")
    if args.student is None:
        raise UsageError("--student is missing; give the model folder of the student to export")
    if args.rank is not None and args.to != "lora":
        raise UsageError("--rank is of low-rank updates; add --to lora")
    storage = args.storage or "bf16"
    if storage == "int8":
        raise UsageError("--storage int8 is vidcm's own; use fp32, bf16 or fp16")
    folders = [folder for folder in (args.student, args.student_2) if folder is not None]
    for folder in folders:
        check_model_folder(folder)

    from vidcm.export import refuse_still
    from vidcm.exports.run import export_student
    from vidcm.exports.student import load_student, with_low
    from vidcm.registry import build

    if not args.allow_still:
        for folder in folders:
            refuse_still(folder)
    options = {} if args.rank is None else {"rank": args.rank}
    target = build("export_target", {"name": args.to, **options})
    students = [load_student(folder, args.steps, args.shift, storage) for folder in folders]
    student = students[0] if len(students) == 1 else with_low(*students)
    manifest = export_student(student, target, args.output, overwrite=args.overwrite)
    for line in _report(manifest):
        print(line)
    print(f"{args.output}: {args.to}, {_differences(manifest['differences'])}")


def verify_export(folder: Path) -> None:
    """Compare an export again and print the differences."""
    from vidcm.exports.run import verify

    print(f"{folder}: {_differences(verify(folder))}")


def _differences(found: dict[str, float]) -> str:
    texts = [f"{name} {value:.1e}" for name, value in found.items()]
    return f"differs from vidcm by, as shares of the largest number: {', '.join(texts)}"


def _report(manifest: dict[str, Any]) -> list[str]:
    """What a user of a low-rank update must know."""
    if "layer_errors" not in manifest:
        return []
    lines = [f"{name}: error {error:.2g}" for name, error in manifest["layer_errors"].items()]
    left = manifest["left_out"]
    lines.append(
        f"rank {manifest['rank']}: outputs differ from the student's by "
        f"{manifest['output_error']:.2g}, and the base's by {manifest['output_change']:.2g}, of "
        "their norm"
    )
    if left:
        worst = max(left, key=lambda name: left[name])
        lines.append(
            f"{len(left)} tensors changed that no low-rank update holds, such as norms, biases and "
            f"tables: by {left[worst]:.2g} of its norm at most ({worst}); without them alone "
            f"outputs differ by {manifest['output_error_left_out']:.2g}"
        )
    return lines
