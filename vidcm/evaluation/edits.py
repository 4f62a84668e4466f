"""Edits of held-out LPC clips against their truth, task by task and row by row."""

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from tqdm import tqdm

from vidcm.errors import UsageError
from vidcm.evaluation.edit_cases import NAMES, Case, cases_of
from vidcm.evaluation.edit_scores import about_filled, score, summary
from vidcm.evaluation.environment import environment
from vidcm.evaluation.protocol import Truth, describe_model
from vidcm.files import write_text
from vidcm.lpc import adherence

if TYPE_CHECKING:
    from vidcm.pipeline import VideoPipeline

VERSION = 2
ROWS = ("student-1", "student-2", "student-4", "student-8", "teacher-50")


def evaluate_edits(
    pipe: "VideoPipeline",
    truth: Truth,
    output: Path,
    *,
    name: str,
    rows: Sequence[str] = ROWS,
    tasks: Sequence[str] = NAMES,
    overwrite: bool = False,
) -> dict:
    """Measure `tasks`, each by its baselines and by `rows`, and write them to `output` as they are
    finished; returns its content. Finished ones of an existing file are kept.

    rows: a role and a number of steps, such as "student-4"; with "zero-shot" between them, of a
    model trained with given frames that is not shown them. name: of the model. Raises UsageError when the file holds
    edits of another protocol or model."""
    protocol = {"version": VERSION, "count": truth.count, "seed": truth.seed}
    results: dict[str, Any] = {
        "protocol": protocol | {"frames": truth.lpc.num_frames},
        "model": describe_model(pipe, name),
        "environment": environment(pipe.device),
        "tasks": {},
    }
    if output.exists() and not overwrite:
        before = read_edits(output)
        for part in ("protocol", "model"):
            if before[part] != results[part]:
                raise UsageError(
                    f"{output} holds edits of another {part}; give another file, or --overwrite"
                )
        results["tasks"] = before["tasks"]
    cases = {task: cases_of(task, truth.frames.numpy(), truth.captions) for task in tasks}
    missing = [
        (task, row)
        for task in tasks
        for row in (*cases[task][0].baselines, *rows)
        if row not in results["tasks"].get(task, {})
    ]
    for role in sorted({row.partition("-")[0] for row in rows}):
        pipe.model(role)  # so that no clip's seconds hold its loading
    with tqdm(total=len(missing) * truth.count, unit="edit", leave=False) as bar:
        for task, row in missing:
            bar.set_description(f"{task}, {row}")
            results["tasks"].setdefault(task, {})[row] = _measure(
                pipe, truth, cases[task], row, bar
            )
            write_text(output, json.dumps(results, indent=1) + "\n")
    return results


def make(pipe: "VideoPipeline", case: Case, row: str, caption: str, seed: int) -> np.ndarray:
    """A row's edit, uint8 `(t h w 3)`; of a way between clips all of them, one after the other."""
    if row in case.baselines:
        return case.baselines[row]
    role, *zero_shot, steps = row.split("-")
    options = {"steps": int(steps), "teacher": role == "teacher", "zero_shot": bool(zero_shot)}
    made = pipe.edit(case.spec, case.clips, case.prompts or caption, seed=seed, **options).frames
    return made.reshape(-1, *made.shape[2:])


def _measure(pipe: "VideoPipeline", truth: Truth, cases: list[Case], row: str, bar: tqdm) -> dict:
    scores, marks, spent, attributes = [], [], 0.0, truth.lpc.attributes
    asked = zip(cases, truth.captions, truth.seeds, truth.exams, strict=True)
    for case, caption, seed, exam in asked:
        start = time.perf_counter()
        frames = make(pipe, case, row, caption, seed)
        spent += time.perf_counter() - start
        scores.append(score(case, frames))
        exams, clip = [about_filled(exam, case)], torch.from_numpy(frames)[None]
        marks.append(adherence.mark(exams, clip, attributes))
        bar.update()
    return summary(scores) | {
        "adherence": _adherence(np.concatenate(marks)),
        "seconds": spent / len(cases),
    }


def _adherence(marks: np.ndarray) -> float | None:
    """Marks `(clips, attributes)`, nan where nothing was asked: the mean over attributes of the
    share that is right."""
    asked = marks[:, ~np.isnan(marks).all(0)]
    return float(np.nanmean(asked, 0).mean()) if asked.size else None


def read_edits(path: Path) -> dict:
    """What `evaluate_edits` wrote. Raises UsageError when the file does not hold that."""
    try:
        results = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"cannot read {path}: {error}") from None
    if not isinstance(results, dict) or not {"protocol", "model", "tasks"} <= results.keys():
        raise UsageError(f"{path} holds no edits; make them with --editing")
    return results
