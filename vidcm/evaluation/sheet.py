"""A picture of the table: the same prompts by truth, teacher and student."""

from pathlib import Path
from typing import TYPE_CHECKING

from vidcm.evaluation.protocol import Truth
from vidcm.evaluation.rows import maker
from vidcm.media.contact_sheet import contact_sheet

if TYPE_CHECKING:
    from vidcm.pipeline import VideoPipeline

SHOWN = ("teacher-50", "student-4", "student-2", "student-1")


def write_sheet(
    pipe: "VideoPipeline", truth: Truth, path: Path, *, overwrite: bool = False
) -> Path:
    """Every prompt of `truth` as a band of clips: the true one, then the rows `SHOWN` with the
    seeds of the evaluation. Errors as `vidcm.media.write.write_clip`."""
    made = [("truth", truth.frames)]
    for row in SHOWN:
        made.append(
            (row, maker(pipe, row, truth.count)(truth.captions, truth.frames, truth.seeds).frames)
        )
    rows, labels = [], []
    for i, caption in enumerate(truth.captions):
        for name, frames in made:
            rows.append([frames[i].numpy()])
            labels.append(f"{caption} - {name}" if name == "truth" else name)
    return contact_sheet(rows, labels, path, overwrite=overwrite)
