"""Edits of held-out LPC clips against their truth, task by task and row by row."""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from tqdm import tqdm

from vidcm.data.lpc import LPC
from vidcm.editing.cases import CASES, Case
from vidcm.editing.operators import luminance
from vidcm.errors import UsageError
from vidcm.markdown import grid, write_text
from vidcm.metrics import adherence, fidelity, motion
from vidcm.metrics.environment import environment
from vidcm.metrics.protocol import Truth, describe_model

if TYPE_CHECKING:
    from vidcm.pipeline import VideoPipeline

VERSION = 1
ROWS = ("baseline", "student-1", "student-2", "student-4", "student-8", "teacher-50")


def evaluate_edits(
    pipe: "VideoPipeline",
    lpc: LPC,
    output: Path,
    *,
    name: str,
    rows: Sequence[str] = ROWS,
    tasks: Sequence[str] = tuple(CASES),
    count: int = 64,
    seed: int = 0,
    overwrite: bool = False,
) -> dict:
    """Measure `tasks`, each by every row, and write them to `output` as they are finished; returns
    its content. Finished ones of an existing file are kept. Raises UsageError when that holds
    another protocol or model."""
    truth = Truth(lpc, count, seed)
    protocol = {"version": VERSION, "count": count, "seed": seed, "frames": lpc.num_frames}
    results: dict[str, Any] = {
        "protocol": protocol,
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
    for task in tasks:
        cases = [CASES[task](clip) for clip in truth.frames.numpy()]
        done = results["tasks"].setdefault(task, {})
        for row in rows:
            if row not in done:
                done[row] = _measure(pipe, truth, cases, row)
                write_text(output, json.dumps(results, indent=1) + "\n")
    return results


def make(pipe: "VideoPipeline", case: Case, row: str, prompt: str, seed: int) -> np.ndarray:
    """A row's edit, uint8 `(t h w 3)`."""
    role, _, steps = row.partition("-")
    if role == "baseline":
        return case.baseline
    options = {"steps": int(steps), "teacher": role == "teacher"}
    return pipe.edit(case.spec, case.clips, prompt, seed=seed, **options).frames[0]


def _measure(pipe: "VideoPipeline", truth: Truth, cases: list[Case], row: str) -> dict:
    start, made = time.perf_counter(), []
    asked = list(zip(cases, truth.captions, truth.seeds, strict=True))
    for case, prompt, seed in tqdm(asked, desc=f"{cases[0].spec['name']} {row}", leave=False):
        made.append(make(pipe, case, row, prompt, seed))
    spent = (time.perf_counter() - start) / len(cases)
    frames, true = np.stack(made), truth.frames.numpy()
    exams = [_filled(e, c) for e, c in zip(truth.exams, cases, strict=True)]
    attributes = truth.lpc.attributes
    marks = adherence.mark(exams, torch.from_numpy(frames), attributes)
    moves = motion.motion_ratio(motion.motion(torch.from_numpy(frames)), truth.motion)
    seams = [_seam(f, t, c.kept) for f, t, c in zip(frames, true, cases, strict=True)]
    return {
        "method": cases[0].method if row == "baseline" else row,
        "psnr": float(
            np.mean([_psnr(f, t, c) for f, t, c in zip(frames, true, cases, strict=True)])
        ),
        "ssim": float(fidelity.ssim(torch.from_numpy(frames), truth.frames).mean()),
        "adherence": adherence.summary(marks, attributes)["score"],
        "kept": max(_off(f, c) for f, c in zip(frames, cases, strict=True)),
        "seam": None if seams[0] is None else float(np.mean([s for s in seams if s is not None])),
        "motion": moves.overall,
        "seconds": spent,
    }


def _psnr(frames: np.ndarray, truth: np.ndarray, case: Case) -> float:
    """Of what is filled in, in dB, at most fidelity.BEST."""
    error = np.square(frames.astype(float) - truth)[~case.kept].mean()
    return float(10 * np.log10(255**2 / max(error, 255**2 * 10 ** (-fidelity.BEST / 10))))


def _off(frames: np.ndarray, case: Case) -> float:
    """The largest difference in what is to be kept, in grey levels."""
    clip, task = case.clips[0], case.spec["name"]
    if task == "colorize":
        off = luminance(torch.from_numpy(frames)).numpy().astype(int) - clip[..., 0]
    elif task == "upscale":
        size = case.spec["factor"]
        t, height, width = clip.shape[:3]
        off = frames.reshape(t, height, size, width, size, 3).mean((2, 4)) - clip
    elif case.kept.any():
        off = (frames.astype(int) - case.baseline)[case.kept]
    else:
        return 0.0
    return float(np.abs(off).max())


def _seam(frames: np.ndarray, truth: np.ndarray, kept: np.ndarray) -> float | None:
    """The mean step between neighbours in time or space of which one is given and the other filled
    in, over the same of the truth; 1 is right. None where there are none."""
    steps = np.zeros(2)
    for axis in range(3):
        edge = np.diff(kept, axis=axis)
        steps += [
            np.abs(np.diff(clip.astype(int), axis=axis))[edge].sum() for clip in (frames, truth)
        ]
    return None if steps[1] == 0 else float(steps[0] / steps[1])


def _filled(exam: adherence.Exam, case: Case) -> adherence.Exam:
    """The questions of an exam about what is filled in."""
    free, asked = ~case.kept.ravel(), {}
    for name, question in exam.items():
        here = free[question.where]
        if here.any() and (question.shown[:, here] != question.shown[:1, here]).any():
            asked[name] = replace(
                question, where=question.where[here], shown=question.shown[:, here]
            )
    return asked


def read_edits(path: Path) -> dict:
    """What `evaluate_edits` wrote. Raises UsageError when the file does not hold that."""
    try:
        results = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"cannot read {path}: {error}") from None
    if not isinstance(results, dict) or not {"protocol", "model", "tasks"} <= results.keys():
        raise UsageError(f"{path} holds no edits; make them with --editing")
    return results


def table(results: Mapping[str, Any]) -> str:
    """Markdown: a line for every task and row, then how they were measured."""
    head = ["task", "PSNR, dB", "SSIM", "adherence, %", "kept, off by", "seam", "motion", "s/clip"]
    lines = []
    for task, rows in results["tasks"].items():
        for row, found in rows.items():
            label = f"{row} ({found['method']})" if row == "baseline" else row
            lines.append(
                [
                    f"{task}: {label}",
                    f"{found['psnr']:.1f}",
                    f"{found['ssim']:.3f}",
                    "-" if found["adherence"] is None else f"{100 * found['adherence']:.1f}",
                    f"{found['kept']:g}",
                    "-" if found["seam"] is None else f"{found['seam']:.2f}",
                    f"{found['motion']:.2f}",
                    f"{found['seconds']:.2f}",
                ]
            )
    made, protocol = results["environment"], results["protocol"]
    commit = (made["commit"] or "unknown")[:10] + (", changed" if made["dirty"] else "")
    note = (
        f"{protocol['count']} held-out combinations, seed {protocol['seed']}, full captions. Model "
        f"{results['model']['name']}, commit {commit}; {made['cpu']}, {made['threads']} threads, "
        f"torch {made['torch']}."
    )
    return f"{grid(head, lines)}\n\n{note}\n"


def write_edit_sheet(
    pipe: "VideoPipeline", truth: Truth, path: Path, *, overwrite: bool = False
) -> Path:
    """Every task on the first true clip: truth, baseline, and four steps of the student."""
    from vidcm.contact import contact_sheet

    clip = truth.frames[0].numpy()
    rows, labels = [[clip]], [f"{truth.captions[0]} - truth"]
    for task, case_of in CASES.items():
        case = case_of(clip)
        for row in ("baseline", "student-4"):
            rows.append([make(pipe, case, row, truth.captions[0], truth.seeds[0])])
            labels.append(f"{task}: {case.method if row == 'baseline' else row}")
    return contact_sheet(rows, labels, path, overwrite=overwrite)
