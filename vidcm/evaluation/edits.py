"""Edits of held-out LPC clips against their true clips, task by task and row by row."""

import time
from collections.abc import Sequence

import numpy as np
import torch
from tqdm import tqdm

from vidcm.evaluation.edit_cases import NAMES, Case, cases_of
from vidcm.evaluation.edit_scores import questions_on_filled, score_edit, summarize_scores
from vidcm.evaluation.eval_set import EvalJob, EvalSet
from vidcm.evaluation.rows import EDIT_ROWS, Row
from vidcm.lpc import adherence
from vidcm.pipeline import VideoPipeline

VERSION = 2


def evaluate_edits(
    job: EvalJob, rows: Sequence[Row] = EDIT_ROWS, tasks: Sequence[str] = NAMES
) -> dict:
    """Measure tasks, each by its baselines and by rows; returns the content of the results file.

    Args:
        job: model, evaluation set and results file.
        rows: of students and teachers.
        tasks: of `edit_cases.NAMES`.

    Raises:
        UsageError: the file holds results of another protocol or model.
    """
    results, eval_set = job.results("editing", {"version": VERSION}), job.eval_set
    cases = {task: cases_of(task, eval_set.frames.numpy(), eval_set.captions) for task in tasks}
    missing = [
        (task, row)
        for task in tasks
        for row in (*cases[task][0].baselines, *rows)
        if not results.has(task, str(row))
    ]
    for role in sorted({row.role for row in rows}):
        job.pipe.model(role)  # so that no clip's seconds include its loading
    with tqdm(total=len(missing) * eval_set.count, unit="edit", leave=False) as bar:
        for task, row in missing:
            bar.set_description(f"{task}, {row}")
            found = _edit_metrics(job.pipe, eval_set, cases[task], row, bar)
            results.add(task, str(row), row=found)
    return results.content()


def run_edit(
    pipe: VideoPipeline, case: Case, row: Row | str, caption: str, seed: int
) -> np.ndarray:
    """The edit of a row, or of the baseline of that name.

    Returns:
        uint8 `(t h w 3)`; of an interpolation between clips, all clips one after the other.
    """
    if isinstance(row, str):
        return case.baselines[row]
    frames = pipe.edit(
        case.spec,
        case.clips,
        case.prompts or caption,
        seed=seed,
        num_inference_steps=row.num_inference_steps,
        use_teacher=row.role == "teacher",
        zero_shot=row.zero_shot,
    ).frames
    return frames.reshape(-1, *frames.shape[2:])


def _edit_metrics(
    pipe: VideoPipeline, eval_set: EvalSet, cases: list[Case], row: Row | str, bar: tqdm
) -> dict:
    scores, grades, spent = [], [], 0.0
    clips = zip(cases, eval_set.captions, eval_set.seeds, eval_set.questions, strict=True)
    for case, caption, seed, questions in clips:
        start = time.perf_counter()
        frames = run_edit(pipe, case, row, caption, seed)
        spent += time.perf_counter() - start
        scores.append(score_edit(case, frames))
        filled, clip = [questions_on_filled(questions, case)], torch.from_numpy(frames)[None]
        grades.append(adherence.grade(filled, clip, eval_set.lpc.attributes))
        bar.update()
    return summarize_scores(scores) | {
        "adherence": _mean_adherence(np.concatenate(grades)),
        "seconds": spent / len(cases),
    }


def _mean_adherence(grades: np.ndarray) -> float | None:
    """Mean over attributes of the share of correct grades `(clips, attributes)`, nan left out."""
    graded = grades[:, ~np.isnan(grades).all(0)]
    return float(np.nanmean(graded, 0).mean()) if graded.size else None
