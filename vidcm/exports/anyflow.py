"""A plain pipeline folder for flow maps: diffusers runs it without code of ours."""

import json
from pathlib import Path
from typing import Any

from vidcm.errors import UsageError
from vidcm.exports.base import ExportTarget
from vidcm.exports.diffusers_folder import (
    SCHEDULER,
    base_index,
    compare_pipeline,
    library_version,
    write_pipeline,
)
from vidcm.exports.layout import layout_of
from vidcm.exports.reference import Reference, clips, pipeline_codec
from vidcm.exports.student import PublicStudent

CLASS = "FlowMapEulerDiscreteScheduler"


class AnyFlowFolder(ExportTarget):
    """A folder of `AnyFlowPipeline`, for students of two times (arXiv 2605.13724)."""

    name = "anyflow"

    def check(self, student: PublicStudent) -> None:
        if student.family.name != "anyflow":
            raise UsageError(
                f"AnyFlowPipeline runs AnyFlowTransformer3DModel alone, and the student is "
                f"{student.family.name} of one time; use --to diffusers"
            )
        if student.settings.shift is None:
            raise UsageError("FlowMapEulerDiscreteScheduler knows shifted times only; give --shift")
        if student.settings.sampler != "flow_map":
            raise UsageError(
                f"AnyFlowPipeline samples flow maps, and the student is one of "
                f"{student.settings.sampler}"
            )
        base_index(student)

    def write(self, student: PublicStudent, folder: Path) -> dict[str, Any]:
        config = {
            "_class_name": CLASS,
            "_diffusers_version": library_version(),
            "num_train_timesteps": 1000,
            "shift": student.settings.shift,
        }
        (folder / SCHEDULER).mkdir()
        text = json.dumps(config, indent=1) + "\n"
        (folder / SCHEDULER / "scheduler_config.json").write_text(text, "utf-8")
        return write_pipeline(student, folder, ["diffusers", CLASS])

    def reference(self, student: PublicStudent) -> Reference:
        codec = None if student.base is None else pipeline_codec(student.base.parent)
        return clips(student, layout_of(student.family), codec)

    def compare(
        self, folder: Path, manifest: dict[str, Any], reference: Reference
    ) -> dict[str, float]:
        return compare_pipeline(folder, manifest, reference, remote_code=False)
