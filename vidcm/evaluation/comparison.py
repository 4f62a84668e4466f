"""Every objective with the same teacher, budget and protocol: train, export, measure, row by row.

A row's training is timed first, so that every row gets as many steps as fit into the same seconds.
Rows are independent and resumable: a training goes on from its checkpoint, a measurement from its
last finished line, and a finished row is left alone. A row that fails is recorded with its reason,
and the others go on.
"""

import hashlib
import json
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vidcm.config import TrainConfig, load
from vidcm.diffusion.times import SHIFT
from vidcm.errors import UsageError, VidcmError
from vidcm.evaluation.comparison_config import Comparison, ComparisonRow, folder_name, row_entries
from vidcm.evaluation.comparison_report import VERSION
from vidcm.evaluation.environment import environment
from vidcm.evaluation.eval_set import EvalJob, EvalSet
from vidcm.evaluation.quality import evaluate_rows
from vidcm.evaluation.results import Results, first_difference
from vidcm.evaluation.rows import Row
from vidcm.evaluation.timed_training import identifying_settings, train_for_seconds
from vidcm.export import student_facts
from vidcm.files import write_text
from vidcm.lpc.dataset import CELL, FPS, LPC
from vidcm.pipeline import VideoPipeline
from vidcm.runtime import pick_device
from vidcm.settings import PipelineSettings, StudentSettings, TeacherSettings
from vidcm.store import weights_hash


@dataclass(frozen=True)
class RowJob:
    """One row with one seed.

    Attributes:
        key: unique name, with the seed where the row has several.
        name: of the row.
        run: its folder.
        config: of its training; None for the teacher's rows.
    """

    key: str
    name: str
    row: ComparisonRow
    seed: int
    run: Path
    config: TrainConfig | None


class RowsFailed(VidcmError):
    """Some rows failed; `results` holds the others and the reasons."""

    def __init__(self, results: dict, failed: dict[str, str], rows: int):
        super().__init__(
            f"{len(failed)} of {rows} rows failed: "
            + "; ".join(f"{key}: {reason}" for key, reason in failed.items())
            + ". Mend it and give the same command again: finished rows are kept"
        )
        self.results = results


def run_comparison(comparison: Comparison, lpc: LPC, only: list[str] | None = None) -> dict:
    """Train and measure rows, and write each to `comparison.results` when it is finished.

    Args:
        comparison: its settings.
        lpc: the dataset.
        only: names or keys of rows (default: all).

    Returns:
        The content of the results file.

    Raises:
        UsageError: before anything is trained, when that file or a row's folder holds results of
            something else.
        RowsFailed: after all rows, when some of them failed.
    """
    model = {"teacher": weights_hash(comparison.teacher), "codec": weights_hash(comparison.codec)}
    protocol = {k: getattr(comparison, k) for k in ("budget", "count", "seed")}
    facts = {"kind": "comparison", "protocol": {"version": VERSION} | protocol, "model": model}
    order = {key: place for place, (key, _, _) in enumerate(row_entries(comparison))}
    results = Results(
        Path(comparison.results),
        facts,
        environment(pick_device("auto")),
        sort_key=lambda key: order.get(key, len(order)),
    )
    jobs = [job for job in _jobs(comparison) if not only or {job.key, job.name} & set(only)]
    for job in jobs:
        _refuse_stale(job.run, _row_facts(comparison, job, model))
    eval_set, failed = EvalSet(lpc, comparison.count, comparison.seed), {}
    for number, job in enumerate(jobs, start=1):
        print(f"row {number} of {len(jobs)}: {job.key}", file=sys.stderr, flush=True)
        text = json.dumps(_row_facts(comparison, job, model), indent=1)
        write_text(job.run / "row.json", text + "\n")
        found: dict[str, Any] = {
            "row": job.name,
            "seed": job.seed,
            "guidance": job.row.guidance,
            "training": None,
        }
        try:
            if job.config is not None:
                found["training"] = train_row(comparison, job)
            found["evaluations"] = measure_row(comparison, job, eval_set)
        except Exception as error:  # whatever it is, hours of other rows do not hang on it
            reason = " ".join(str(error).split())
            known = isinstance(error, VidcmError)
            failed[job.key] = reason if known else f"{type(error).__name__}: {reason}"
            found |= {"failed": failed[job.key], "evaluations": {}}
            print(f"row {job.key} failed: {failed[job.key]}", file=sys.stderr, flush=True)
        results.add(job.key, row=found)
    if failed:
        raise RowsFailed(results.content(), failed, len(jobs))
    return results.content()


def _jobs(comparison: Comparison) -> list[RowJob]:
    """All jobs, in the order of the file."""
    jobs = []
    for key, row, seed in row_entries(comparison):
        config = load(row.config, [*row.overrides, f"seed={seed}"]) if row.config else None
        run = Path(comparison.output) / folder_name(key)
        jobs.append(RowJob(key, key.removesuffix(f", seed {seed}"), row, seed, run, config))
    return jobs


def _row_facts(comparison: Comparison, job: RowJob, model: dict[str, Any]) -> dict[str, Any]:
    """What identifies the content of a row's folder."""
    if job.config is None:
        return model
    return {**model, **identifying_settings(job.config), "budget": comparison.budget}


def _refuse_stale(run: Path, facts: dict[str, Any]) -> None:
    """Raises UsageError when a row's folder holds something else."""
    fix = f"remove {run}, or set output to another folder"
    try:
        before = json.loads((run / "row.json").read_text("utf-8"))
    except FileNotFoundError:
        if (run / "student").exists():
            raise UsageError(f"{run} has no row.json that says what it holds; {fix}") from None
        return
    except (OSError, ValueError) as error:
        raise UsageError(f"cannot read {run / 'row.json'} ({error}); {fix}") from None
    if other := first_difference(before, json.loads(json.dumps(facts))):
        raise UsageError(f"{run} holds a row of another {other}; {fix}")


def train_row(comparison: Comparison, job: RowJob) -> dict:
    """Train a row for the budget; returns what `train_for_seconds` does.

    All seeds of a row train for as many steps.
    """
    config, row = job.config, job.row
    assert config is not None and row.config is not None
    overrides = [*row.overrides, f"seed={job.seed}", f"codec={comparison.codec}"]
    overrides += [f"teacher={comparison.teacher}"] if config.teacher else []
    overrides += [f"init={comparison.teacher}"] if config.init else []
    timing = Path(comparison.output) / folder_name(job.name) / "timing.json"
    return train_for_seconds(
        comparison.budget, row.config, overrides, config.batch_size, job.run, timing
    )


def measure_row(comparison: Comparison, job: RowJob, eval_set: EvalSet) -> dict[str, dict]:
    """Quality metrics by number of evaluations.

    An evaluation of the teacher is a guided one. It takes as many steps as fit into each number.
    """
    pipe = VideoPipeline.from_pretrained(_write_pipeline(comparison, job, eval_set.lpc))
    counts = comparison.evaluations
    if job.config is not None:
        phases = pipe.settings.student.phases
        rows = {n: Row("student", n) for n in counts if n == (phases or n)}
        if not rows:
            raise VidcmError(f"a student of {phases} phases needs evaluations to have {phases}")
    elif job.row.solver == "heun":  # two slopes an interval, one in the last
        rows = {2 * k - 1: Row("teacher", k) for k in ((n + 1) // 2 for n in counts)}
    else:
        rows = {n: Row("teacher", n) for n in counts}
    protocol = json.dumps(
        [pipe.settings.to_dict(), comparison.count, comparison.seed], sort_keys=True
    )
    digest = hashlib.sha256(protocol.encode()).hexdigest()[:12]
    output = job.run / f"measured-{digest}.json"
    eval_job = EvalJob(pipe, eval_set, output, job.key, comparison.batch)
    found = evaluate_rows(eval_job, list(rows.values()))
    lines = {str(n): found["rows"][str(row)]["heldout"] for n, row in rows.items()}
    return {n: {k: v for k, v in x.items() if k != "environment"} for n, x in lines.items()}


def _write_pipeline(comparison: Comparison, job: RowJob, lpc: LPC) -> Path:
    """Write a pipeline folder of a row; weights keep their precision."""
    assert job.row.guidance is not None
    models = {"codec": Path(comparison.codec), "teacher": Path(comparison.teacher)}
    if job.config is not None:
        models["student"] = job.run / "student" / "final"
    guidance, shift = job.row.guidance, SHIFT if job.row.shift is None else job.row.shift
    settings = PipelineSettings(
        lpc.num_frames,
        CELL,
        CELL,
        FPS,
        StudentSettings(4, guidance, **student_facts(models.get("student"))),
        TeacherSettings(50, guidance, shift, job.row.solver or "euler"),
    )
    folder = job.run / "pipeline"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for role, source in models.items():
        shutil.copytree(source, folder / role)
    settings.save(folder)
    return folder
