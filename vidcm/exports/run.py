"""Exports a student and compares what its consumer computes; the comparison can be made again."""

import json
from pathlib import Path
from typing import Any

from vidcm.errors import UsageError, VidcmError
from vidcm.exports import reference as references
from vidcm.exports.base import MANIFEST, ExportTarget, facts, file_list, read_manifest
from vidcm.exports.student import PublicStudent
from vidcm.families.base import without_progress_bars
from vidcm.files import replacing
from vidcm.registry import TABLE, build
from vidcm.version import __version__

TOLERANCE = 1e-4  # of the largest number of a reference


def export_student(
    student: PublicStudent, target: ExportTarget, output: Path, *, overwrite: bool = False
) -> dict[str, Any]:
    """Write an export once its consumer has computed what the student does.

    Args:
        student: The student.
        target: The format.
        output: The folder to write.
        overwrite: Replace a folder that holds an export.

    Returns:
        The manifest.

    Raises:
        UsageError: The folder holds files, or the consumer would not run the student as it is.
        VidcmError: The consumer computes something else; nothing is written.
    """
    if student.low is not None and not target.takes_two:
        raise UsageError(
            f"--to {target.name} holds one network; leave out --student-2, and export it by itself"
        )
    target.check(student)
    if output.is_dir() and any(output.iterdir()):
        if not overwrite:
            raise UsageError(f"{output} holds files; give another --output, or --overwrite")
        if not (output / MANIFEST).is_file():
            raise UsageError(
                f"{output} is no export, and --overwrite would replace all of it; give another "
                "--output"
            )
    if target.rounds_weights:
        student.round_weights()
    with without_progress_bars(), replacing(output) as draft:
        draft.mkdir()
        reference = target.reference(student)
        manifest = {"vidcm": __version__, **facts(target.name, student)}
        manifest |= target.write(student, draft)
        references.save(reference, draft)
        manifest["differences"] = _compared(target, draft, manifest, reference)
        manifest["files"] = file_list(draft)
        (draft / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", "utf-8")
    return manifest


def verify(folder: Path) -> dict[str, float]:
    """Compare an export with its reference again.

    Returns:
        The differences, by name.

    Raises:
        UsageError: The folder is no export.
        VidcmError: A file is not as it was written, or the consumer computes something else.
    """
    manifest = read_manifest(folder)
    name = manifest.get("target")
    if name not in TABLE["export_target"]:
        raise VidcmError(f"{folder / MANIFEST} is damaged: {name!r} is no target")
    target: ExportTarget = build("export_target", {"name": name})
    with without_progress_bars():
        return _compared(target, folder, manifest, references.load(folder))


def _compared(
    target: ExportTarget, folder: Path, manifest: dict[str, Any], reference: references.Reference
) -> dict[str, float]:
    found = target.compare(folder, manifest, reference)
    worst = max(found, key=lambda name: found[name])
    if not found[worst] <= TOLERANCE:  # not a number is no agreement either
        raise VidcmError(
            f"the {target.name} export computes something else than the student: {worst} differs "
            f"by {found[worst]:.2g} of the largest number, and {TOLERANCE:g} is allowed"
        )
    return found
