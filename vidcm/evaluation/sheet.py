"""A picture of the quality table: the same prompts by truth, teacher and student."""

from pathlib import Path

from vidcm.evaluation.eval_set import EvalSet
from vidcm.evaluation.row_clips import clip_generator
from vidcm.evaluation.rows import Row
from vidcm.media.contact_sheet import contact_sheet
from vidcm.pipeline import VideoPipeline

SHEET_ROWS = (Row("teacher", 50), Row("student", 4), Row("student", 2), Row("student", 1))


def write_sheet(
    pipe: VideoPipeline, eval_set: EvalSet, path: Path, *, overwrite: bool = False
) -> Path:
    """Write a band of clips for every prompt: the true clip, then `SHEET_ROWS` with its seed.

    Raises as `vidcm.media.write.write_clip` does.
    """
    clips = {"truth": eval_set.frames}
    for row in SHEET_ROWS:
        generate = clip_generator(pipe, row, eval_set.count)
        clips[str(row)] = generate(eval_set.captions, eval_set.frames, eval_set.seeds).frames
    rows, labels = [], []
    for i, caption in enumerate(eval_set.captions):
        for name, frames in clips.items():
            rows.append([frames[i].numpy()])
            labels.append(f"{caption} - {name}" if name == "truth" else name)
    return contact_sheet(rows, labels, path, overwrite=overwrite)
