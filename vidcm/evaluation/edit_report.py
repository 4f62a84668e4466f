"""Measured edits as markdown: tables, and a summary of where a student loses.

Needs neither torch nor numpy.
"""

import statistics
from collections.abc import Mapping
from typing import Any

from vidcm.evaluation.markdown import grid, method
from vidcm.evaluation.rows import Row, is_model_row

Scores = Mapping[str, Any]  # of one row
Tasks = Mapping[str, Mapping[str, Scores]]  # by task and row

COMPARED = {"psnr": "PSNR", "ssim": "SSIM", "adherence": "adherence"}
FORMATS = {
    "psnr": "{:.1f}",
    "ssim": "{:.3f}",
    "adherence": "{:.0%}",
    "seam": "{:.2f}",
    "flicker": "{:.2f}",
    "motion": "{:.2f}",
    "kept": "{:.3g}",
    "seconds": "{:.2f}",
}
JUDGED = "student-4"  # the row compared with baselines and teacher in words
CLOSE = 0.95  # share of the teacher's numbers that counts as close to them


def edit_tables(results: Mapping[str, Any]) -> str:
    """Markdown of results of kind "editing"."""
    tasks: Tasks = results["rows"]
    names = {name for rows in tasks.values() for name in rows if is_model_row(name)}
    models = sorted(names, key=column_order)
    parts = [
        "**Filled-in pixels**: PSNR in dB, SSIM, and the share of attributes that show as the "
        "prompt has them. The baseline is the one of best PSNR.",
        _table(tasks, models, ("psnr", "ssim", "adherence")),
        "**Seam, flicker and motion** over those of the true clips; 1 is right, below 1 is "
        "smoother or stiller. A loop's seam is its step from end to beginning over the steps "
        "beside it, and should not exceed 1; that of `interpolate` is its longest step over their "
        "mean.",
        _table(tasks, models, ("seam", "flicker", "motion")),
        "**Kept and seconds**: the largest error in grey levels of pixels that must stay, of any "
        "model row; then seconds a clip.",
        _costs(tasks, models),
        _against_baselines(tasks, models),
        _beside_teacher(tasks, models),
        method(results),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def column_order(name: str) -> tuple[str, bool, int]:
    """Students before teachers, each from few steps to many."""
    row = Row.parse(name)
    return row.role, row.zero_shot, row.num_inference_steps


def _best_baseline(rows: Mapping[str, Scores]) -> str | None:
    """The baseline of best PSNR; without a truth, the one whose seam is nearest to 1."""

    def merit(name: str) -> float:
        scores = rows[name]
        return -abs((scores["seam"] or 0) - 1) if scores["psnr"] is None else scores["psnr"]

    return max((name for name in rows if not is_model_row(name)), key=merit, default=None)


def _cell(scores: Scores | None, keys: tuple[str, ...]) -> str:
    if scores is None or all(scores[k] is None for k in keys):
        return "-"
    return " / ".join("-" if scores[k] is None else FORMATS[k].format(scores[k]) for k in keys)


def _table(tasks: Tasks, models: list[str], keys: tuple[str, ...]) -> str:
    head = ["task", "best baseline", *(m.replace("-", " ") for m in models)]
    lines = []
    for task, rows in tasks.items():
        best = _best_baseline(rows)
        cells = [_cell(rows.get(m), keys) for m in models]
        baseline = _cell(rows[best], keys) if best else "-"
        if {baseline, *cells} != {"-"}:
            lines.append([task, f"{baseline} ({best})" if baseline != "-" else "-", *cells])
    return grid(head, lines)


def _costs(tasks: Tasks, models: list[str]) -> str:
    head = ["task", "kept, off by", "baseline's", *(f"{m.replace('-', ' ')}, s" for m in models)]
    lines = []
    for task, rows in tasks.items():
        best = _best_baseline(rows)
        errors = [rows[m]["kept"] for m in models if m in rows and rows[m]["kept"] is not None]
        kept = FORMATS["kept"].format(max(errors)) if errors else "-"
        baseline = _cell(rows[best], ("kept",)) if best else "-"
        lines.append([task, kept, baseline, *(_cell(rows.get(m), ("seconds",)) for m in models)])
    return grid(head, lines)


def _against_baselines(tasks: Tasks, models: list[str]) -> str:
    """Where the judged row loses to a baseline, and how often each student does."""
    sentences = []
    compared = {task: _comparisons(rows) for task, rows in tasks.items()}
    if JUDGED in models:
        lost = {t: _losses(rows, JUDGED) for t, rows in tasks.items() if JUDGED in rows}
        won = [task for task in lost if compared[task] and not lost[task]]
        sentences.append(
            f"**Against baselines.** In {Row.parse(JUDGED).num_inference_steps} steps the student "
            f"loses to none of them, in PSNR, SSIM or adherence, on {_list(won)}."
        )
        if worse := [f"{t} ({', '.join(lost[t])})" for t in lost if compared[t] and lost[t]]:
            sentences.append(f"It loses on {'; '.join(worse)}.")
    counts = [
        f"{sum(len(_losses(rows, m)) for rows in tasks.values() if m in rows)} in "
        f"{Row.parse(m).steps_label}"
        for m in models
        if Row.parse(m).role == "student"
    ]
    if counts:
        total = sum(compared.values())
        sentences.append(f"Comparisons lost, of {total}: {', '.join(counts)}.")
    return " ".join(sentences)


def _comparisons(rows: Mapping[str, Scores]) -> int:
    """How many numbers both a model and some baseline have."""
    baselines = [scores for name, scores in rows.items() if not is_model_row(name)]
    models = [scores for name, scores in rows.items() if is_model_row(name)]
    return sum(
        any(s[key] is not None for s in baselines) and any(s[key] is not None for s in models)
        for key in COMPARED
    )


def _losses(rows: Mapping[str, Scores], name: str) -> list[str]:
    """In which numbers a row is below the best baseline, with both."""
    losses = []
    baselines = {n: scores for n, scores in rows.items() if not is_model_row(n)}
    for key, label in COMPARED.items():
        known = {n: scores[key] for n, scores in baselines.items() if scores[key] is not None}
        value = rows[name][key]
        if known and value is not None and value < max(known.values()):
            best, text = max(known, key=lambda n: known[n]), FORMATS[key].format
            losses.append(f"{label} {text(value)}, {best} {text(known[best])}")
    return losses


def _beside_teacher(tasks: Tasks, models: list[str]) -> str:
    """How close the judged row comes to the teacher, and how much faster it is."""
    teacher = next((m for m in models if Row.parse(m).role == "teacher"), None)
    both = [task for task, rows in tasks.items() if {JUDGED, teacher} <= rows.keys()]
    if teacher is None or not both:
        return ""
    near, far = [], []
    for task in both:
        student, reference = tasks[task][JUDGED], tasks[task][teacher]
        keys = [k for k in COMPARED if student[k] is not None and reference[k] is not None]
        below = [
            f"{COMPARED[k]} {FORMATS[k].format(student[k])}, not {FORMATS[k].format(reference[k])}"
            for k in keys
            if student[k] < CLOSE * reference[k]
        ]
        if below:
            far.append(f"{task} ({', '.join(below)})")
        elif keys:
            near.append(task)
    faster = statistics.median(
        tasks[t][teacher]["seconds"] / tasks[t][JUDGED]["seconds"] for t in both
    )
    text = (
        f"**Beside the teacher.** The same projection around the teacher's "
        f"{Row.parse(teacher).steps_label} takes {faster:.0f} times as long (median over tasks). "
        f"The student's {Row.parse(JUDGED).steps_label} come within {1 - CLOSE:.0%} of it or "
        f"better, in all three, on {_list(near)}."
    )
    return f"{text} They do not on {'; '.join(far)}." if far else text


def _list(names: list[str]) -> str:
    return ", ".join(names) or "nothing"
