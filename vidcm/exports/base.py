"""What every target of an export does, and the folder with which it arrives."""

import json
from abc import ABC, abstractmethod
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar

from vidcm.errors import UsageError, VidcmError
from vidcm.exports.reference import Reference
from vidcm.exports.student import PublicStudent
from vidcm.files import file_hash

MANIFEST = "vidcm.json"


class ExportTarget(ABC):
    """A format that other programs read.

    Attributes:
        name: As in the registry.
        takes_two: Whether it has a place for the two students of a pipeline with two networks.
        rounds_weights: Whether it stores the student's own weights in its storage precision.
    """

    name: ClassVar[str]
    takes_two: ClassVar[bool] = False
    rounds_weights: ClassVar[bool] = True

    @abstractmethod
    def check(self, student: PublicStudent) -> None:
        """Raise UsageError for a student that the consumer would not run as it is."""

    @abstractmethod
    def write(self, student: PublicStudent, folder: Path) -> dict[str, Any]:
        """Write the files, and return what the manifest says of them beside `facts`."""

    @abstractmethod
    def reference(self, student: PublicStudent) -> Reference:
        """What vidcm computes with the student, for `compare`."""

    @abstractmethod
    def compare(
        self, folder: Path, manifest: dict[str, Any], reference: Reference
    ) -> dict[str, float]:
        """Load the files in their consumer.

        Returns:
            Its differences from the reference, each as a share of the largest number, by name.
        """


def facts(target: str, student: PublicStudent) -> dict[str, Any]:
    """What a consumer must know of a student, for its manifest."""
    own = student.settings
    steps = own.num_inference_steps
    return {
        "target": target,
        "family": student.family.name,
        "student": {k: v for k, v in asdict(own).items() if v not in (None, [])},
        "base": None if student.base is None else str(student.base),
        "guidance_scale": 1.0,  # of a consumer's call: the student's own is built in
        "timesteps": student.times(steps).tolist(),
        "storage": str(student.dtype).removeprefix("torch."),
    }


def file_list(folder: Path) -> dict[str, str]:
    """sha256 of every file but the manifest, by its path in the folder."""
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.name != MANIFEST)
    return {str(p.relative_to(folder)): file_hash(p) for p in files}


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of an export, whose files must be those that it lists.

    Raises:
        UsageError: The folder is no export.
        VidcmError: A file is missing or altered, or the manifest damaged.
    """
    path = folder / MANIFEST
    try:
        manifest = json.loads(path.read_text("utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise UsageError(f"{folder} is no export of vidcm (no {MANIFEST})") from None
    except (OSError, ValueError, RecursionError) as error:
        raise VidcmError(f"cannot read {path}: {error}") from None
    if not isinstance(manifest, dict) or not isinstance(manifest.get("files"), dict):
        raise VidcmError(f"{path} is damaged: it has no list of files")
    for name, expected in manifest["files"].items():
        file = folder / name
        if folder.resolve() not in file.resolve().parents:
            raise VidcmError(f"{path} names {name}, which lies outside the folder")
        if not file.is_file():
            raise VidcmError(f"{folder} lacks {name}; copy the whole folder")
        if file_hash(file) != expected:
            raise VidcmError(
                f"{file} is truncated or altered (its sha256 is not that in {MANIFEST}); copy it "
                "again"
            )
    return manifest
