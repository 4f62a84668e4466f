"""vidcm's own model folder of a student, with everything a program must know to sample it."""

from pathlib import Path
from typing import Any

from vidcm.exports.base import ExportTarget
from vidcm.exports.reference import Reference, difference, network_outputs, outputs
from vidcm.exports.student import PREFIX, PublicStudent
from vidcm.families.denoiser import PublicDenoiser
from vidcm.store import load_model, save_model

MODEL = "student"


class NativeFolder(ExportTarget):
    """A folder `student` that vidcm loads, in the precision of the export.

    Its `model.json` names the base, whose text tower it goes on using.
    """

    name = "safetensors"

    def check(self, student: PublicStudent) -> None:
        """Every student may be written so."""

    def write(self, student: PublicStudent, folder: Path) -> dict[str, Any]:
        weights = student.denoiser.state_dict() | {
            PREFIX + name: tensor for name, tensor in student.weights().items()
        }
        metadata = student.card["metadata"]
        save_model(folder / MODEL, student.card["spec"], weights, metadata=metadata)
        return {}

    def reference(self, student: PublicStudent) -> Reference:
        return outputs(student)

    def compare(
        self, folder: Path, manifest: dict[str, Any], reference: Reference
    ) -> dict[str, float]:
        backbone = load_model(folder / MODEL, PublicDenoiser).backbone
        found = network_outputs(backbone.family, backbone.transformer, reference)
        return {"network": difference(found, reference["outputs"])}
