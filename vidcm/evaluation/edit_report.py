"""Measured edits as markdown: tables, and in words where a student loses."""

import statistics
from collections.abc import Callable, Mapping
from typing import Any

from vidcm.evaluation.markdown import commit_of, grid

Rows = Mapping[str, Mapping[str, Any]]

TRUE = {"psnr": "PSNR", "ssim": "SSIM", "adherence": "adherence"}
FORMATS: dict[str, Callable[[float], str]] = {
    "psnr": "{:.1f}".format,
    "ssim": "{:.3f}".format,
    "adherence": "{:.0%}".format,
    "seam": "{:.2f}".format,
    "flicker": "{:.2f}".format,
    "motion": "{:.2f}".format,
    "kept": "{:.3g}".format,
    "seconds": "{:.2f}".format,
}
JUDGED = "student-4"  # the row held against baselines and teacher
NEAR = 0.95  # the share of the teacher's numbers that counts as close to them


def report(results: Mapping[str, Any]) -> str:
    """Markdown of what `evaluate_edits` gives."""
    tasks: dict[str, Rows] = results["tasks"]
    models = sorted({r for rows in tasks.values() for r in rows if _is_model(r)}, key=_place)
    parts = [
        "**What is filled in**: PSNR in dB, SSIM, and the share of attributes that show as the "
        "prompt has them. The baseline is the one of best PSNR.",
        _table(tasks, models, ("psnr", "ssim", "adherence")),
        "**Seam, flicker and motion** over those of the truth; 1 is right, below 1 is smoother or "
        "stiller. A loop's seam is its step from end to beginning over the steps beside it, and "
        "should not exceed 1; that of `interpolate` is its longest step over their mean.",
        _table(tasks, models, ("seam", "flicker", "motion")),
        "**Kept and seconds**: the largest error in grey levels of what must stay, of any model "
        "row; then seconds a clip.",
        _costs(tasks, models),
        *_verdicts(tasks, models),
        _note(results),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _is_model(row: str) -> bool:
    return row.startswith(("student-", "teacher-"))


def _place(row: str) -> tuple[str, int]:
    role, _, steps = row.rpartition("-")
    return role, int(steps)


def _best(rows: Rows) -> str | None:
    """The baseline of best PSNR; without a truth, the one whose seam is nearest to 1."""
    names = [row for row in rows if not _is_model(row)]

    def merit(name: str) -> float:
        found = rows[name]
        return -abs((found["seam"] or 0) - 1) if found["psnr"] is None else found["psnr"]

    return max(names, key=merit, default=None)


def _cell(found: Mapping[str, Any] | None, names: tuple[str, ...]) -> str:
    if found is None or all(found[n] is None for n in names):
        return "-"
    return " / ".join("-" if found[n] is None else FORMATS[n](found[n]) for n in names)


def _table(tasks: Mapping[str, Rows], models: list[str], names: tuple[str, ...]) -> str:
    head = ["task", "best baseline", *(m.replace("-", " ") for m in models)]
    lines = []
    for task, rows in tasks.items():
        best = _best(rows)
        cells = [_cell(rows.get(m), names) for m in models]
        simple = _cell(rows[best], names) if best else "-"
        if {simple, *cells} != {"-"}:
            lines.append([task, f"{simple} ({best})" if best and simple != "-" else "-", *cells])
    return grid(head, lines)


def _costs(tasks: Mapping[str, Rows], models: list[str]) -> str:
    head = ["task", "kept, off by", "baseline's", *(f"{m.replace('-', ' ')}, s" for m in models)]
    lines = []
    for task, rows in tasks.items():
        best = _best(rows)
        off = [rows[m]["kept"] for m in models if m in rows and rows[m]["kept"] is not None]
        kept = FORMATS["kept"](max(off)) if off else "-"
        simple = _cell(rows[best], ("kept",)) if best else "-"
        lines.append([task, kept, simple, *(_cell(rows.get(m), ("seconds",)) for m in models)])
    return grid(head, lines)


def _verdicts(tasks: Mapping[str, Rows], models: list[str]) -> list[str]:
    """Where the judged row loses to a baseline, how often the others do, and how close it comes to
    the teacher."""
    said = []
    if JUDGED in models:
        lost = {task: _losses(rows, JUDGED) for task, rows in tasks.items() if JUDGED in rows}
        asked = [t for t in lost if _asked(tasks[t])]
        won = [t for t in asked if not lost[t]]
        steps = JUDGED.partition("-")[2]
        said.append(
            f"**Against baselines.** In {steps} steps the student loses to none of them, in PSNR, "
            f"SSIM or adherence, on {_list(won)}."
        )
        if worse := [f"{t} ({', '.join(lost[t])})" for t in asked if lost[t]]:
            said.append(f"It loses on {'; '.join(worse)}.")
    students = [m for m in models if m.startswith("student-")]
    if counts := [
        f"{sum(len(_losses(rows, m)) for rows in tasks.values() if m in rows)} in {_steps(m)}"
        for m in students
    ]:
        total = sum(_asked(rows) for rows in tasks.values())
        said.append(f"Comparisons lost, of {total}: {', '.join(counts)}.")
    return [" ".join(said), _beside_teacher(tasks, models)]


def _asked(rows: Rows) -> int:
    """How many numbers a student and some baseline both have."""
    simple = [found for row, found in rows.items() if not _is_model(row)]
    models = [found for row, found in rows.items() if _is_model(row)]
    return sum(
        any(f[name] is not None for f in simple) and any(f[name] is not None for f in models)
        for name in TRUE
    )


def _losses(rows: Rows, row: str) -> list[str]:
    """In which numbers a row is below a baseline, with both."""
    found = []
    for name, label in TRUE.items():
        simple = {r: f[name] for r, f in rows.items() if not _is_model(r) and f[name] is not None}
        mine = rows[row][name]
        if simple and mine is not None and mine < max(simple.values()):
            best, shown = max(simple, key=lambda r: simple[r]), FORMATS[name]
            found.append(f"{label} {shown(mine)}, {best} {shown(simple[best])}")
    return found


def _beside_teacher(tasks: Mapping[str, Rows], models: list[str]) -> str:
    teacher = next((m for m in models if m.startswith("teacher-")), None)
    both = [t for t, rows in tasks.items() if {JUDGED, teacher} <= rows.keys()]
    if teacher is None or not both:
        return ""
    near, far = [], []
    for task in both:
        mine, its = tasks[task][JUDGED], tasks[task][teacher]
        numbers = [n for n in TRUE if mine[n] is not None and its[n] is not None]
        below = [
            f"{TRUE[n]} {FORMATS[n](mine[n])}, not {FORMATS[n](its[n])}"
            for n in numbers
            if mine[n] < NEAR * its[n]
        ]
        if below:
            far.append(f"{task} ({', '.join(below)})")
        elif numbers:
            near.append(task)
    faster = statistics.median(
        tasks[t][teacher]["seconds"] / tasks[t][JUDGED]["seconds"] for t in both
    )
    said = [
        f"**Beside the teacher.** The same projection round the teacher's {_steps(teacher)} takes "
        f"{faster:.0f} times as long (median over tasks). The student's {_steps(JUDGED)} come "
        f"within {1 - NEAR:.0%} of it or better, in all three, on {_list(near)}."
    ]
    if far:
        said.append(f"They do not on {'; '.join(far)}.")
    return " ".join(said)


def _steps(row: str) -> str:
    count = _place(row)[1]
    return f"{count} step{'s' * (count > 1)}{' zero-shot' * ('zero-shot' in row)}"


def _list(names: list[str]) -> str:
    return ", ".join(names) or "nothing"


def _note(results: Mapping[str, Any]) -> str:
    made, protocol = results["environment"], results["protocol"]
    commit = commit_of(made)
    return (
        f"{protocol['count']} held-out combinations, seed {protocol['seed']}, full captions. Model "
        f"{results['model']['name']}, commit {commit}; {made['cpu']}, {made['threads']} threads, "
        f"torch {made['torch']}."
    )
