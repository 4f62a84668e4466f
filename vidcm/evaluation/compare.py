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
from vidcm.errors import UsageError, VidcmError
from vidcm.evaluation.comparison_config import Comparison, Row, entries, folder_name, read
from vidcm.evaluation.comparison_report import VERSION, read_comparison
from vidcm.evaluation.environment import environment
from vidcm.evaluation.protocol import Truth, evaluate_on
from vidcm.evaluation.timed_training import settings_of, train_for_seconds
from vidcm.export import objective_of, pipeline_settings
from vidcm.files import write_text
from vidcm.lpc.dataset import CELL, FPS, LPC
from vidcm.pipeline import VideoPipeline
from vidcm.runtime import pick_device
from vidcm.store import read_card

__all__ = ["RowsFailed", "compare", "entries", "read"]


@dataclass(frozen=True)
class Job:
    """A row with a seed. run: its folder. config: of its training, None for the teacher's rows."""

    key: str
    name: str
    row: Row
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


def compare(asked: Comparison, lpc: LPC, only: list[str] | None = None) -> dict:
    """Train and measure every row, or those of the names `only`; returns what is also written to
    `asked.results`.

    Raises UsageError, before anything is trained, when that file or a row's folder holds what was
    made of something else; RowsFailed, after all rows, when some of them failed."""
    made_of: dict[str, Any] = {
        role: read_card(getattr(asked, role)).get("sha256") for role in ("teacher", "codec")
    }
    results: dict[str, Any] = {
        "version": VERSION,
        "budget": asked.budget,
        "count": asked.count,
        "seed": asked.seed,
        **made_of,
    }
    target = Path(asked.results)
    kept = _kept(target, results)
    results |= {"environment": environment(pick_device("auto")), "rows": {}}
    places = {key: place for place, (key, _, _) in enumerate(entries(asked))}
    jobs = [job for job in _jobs(asked) if not only or {job.key, job.name} & set(only)]
    for job in jobs:
        _refuse_stale(job.run, _facts(asked, job, made_of))
    truth, failed = Truth(lpc, asked.count, asked.seed), {}
    for number, job in enumerate(jobs, start=1):
        print(f"row {number} of {len(jobs)}: {job.key}", file=sys.stderr, flush=True)
        write_text(job.run / "row.json", json.dumps(_facts(asked, job, made_of), indent=1) + "\n")
        found: dict[str, Any] = {
            "row": job.name,
            "seed": job.seed,
            "guidance": job.row.guidance,
            "training": None,
        }
        try:
            if job.config is not None:
                found["training"] = train_row(asked, job)
            found["evaluations"] = measure_row(asked, job, truth)
        except Exception as error:  # whatever it is, hours of other rows do not hang on it
            reason = " ".join(str(error).split())
            known = isinstance(error, VidcmError)
            failed[job.key] = reason if known else f"{type(error).__name__}: {reason}"
            found |= {"failed": failed[job.key], "evaluations": {}}
            print(f"row {job.key} failed: {failed[job.key]}", file=sys.stderr, flush=True)
        kept[job.key] = found
        ranked = sorted(kept, key=lambda key: places.get(key, len(places)))
        results["rows"] = {key: kept[key] for key in ranked}
        write_text(target, json.dumps(results, indent=1) + "\n")
    if failed:
        raise RowsFailed(results, failed, len(jobs))
    return results


def _jobs(asked: Comparison) -> list[Job]:
    """Everything to do, in the order of the file."""
    jobs = []
    for key, row, seed in entries(asked):
        config = load(row.config, [*row.overrides, f"seed={seed}"]) if row.config else None
        run = Path(asked.output) / folder_name(key)
        jobs.append(Job(key, key.removesuffix(f", seed {seed}"), row, seed, run, config))
    return jobs


def _kept(target: Path, now: dict) -> dict:
    """The rows of a results file that is there already."""
    if not target.exists():
        return {}
    before = read_comparison(target)
    for key, value in now.items():
        if before.get(key) != value:
            raise UsageError(
                f"{target} holds a comparison of another {key}: {_short(before.get(key))}, not "
                f"{_short(value)}; set results to another file, or remove this one"
            )
    return dict(before["rows"])


def _facts(asked: Comparison, job: Job, made_of: dict[str, Any]) -> dict[str, Any]:
    """What a row's folder is made of."""
    training = settings_of(job.config) | {"budget": asked.budget} if job.config else {}
    return {**made_of, **training}


def _refuse_stale(run: Path, now: dict[str, Any]) -> None:
    """Raises UsageError when a row's folder was made of something else."""
    fix = f"remove {run}, or set output to another folder"
    try:
        before = json.loads((run / "row.json").read_text("utf-8"))
    except FileNotFoundError:
        if (run / "student").exists():
            raise UsageError(f"{run} does not say what it was made of; {fix}") from None
        return
    except (OSError, ValueError) as error:
        raise UsageError(f"cannot read {run / 'row.json'} ({error}); {fix}") from None
    was, told = _flat(before), _flat(json.loads(json.dumps(now)))
    for key in was | told:
        if was.get(key) != told.get(key):
            raise UsageError(
                f"{run} was made of another {key}: {_short(was.get(key))}, not "
                f"{_short(told.get(key))}; {fix}"
            )


def train_row(asked: Comparison, job: Job) -> dict:
    """Train a row for the budget; what `budget.train_for_seconds` says of it. All seeds of a row train as
    many steps."""
    config, row = job.config, job.row
    assert config is not None and row.config is not None
    told = [*row.overrides, f"seed={job.seed}", f"codec={asked.codec}"]
    told += [f"teacher={asked.teacher}"] if config.teacher else []
    told += [f"init={asked.teacher}"] if config.init else []
    timing = Path(asked.output) / folder_name(job.name) / "timing.json"
    return train_for_seconds(asked.budget, row.config, told, config.batch_size, job.run, timing)


def measure_row(asked: Comparison, job: Job, truth: Truth) -> dict[str, dict]:
    """Lines of `metrics.protocol` by number of evaluations, of a student or of the teacher, whose
    evaluations are guided ones. The teacher takes as many steps as fit into each number."""
    pipe = VideoPipeline.from_pretrained(_pipeline(asked, job, truth.lpc))
    if job.config is not None:
        phases = pipe.settings["student"].get("phases")
        wanted = {n: f"student-{n}" for n in asked.evaluations if n == (phases or n)}
        if not wanted:
            raise VidcmError(f"a student of {phases} phases needs evaluations to have {phases}")
    elif job.row.solver == "heun":  # two slopes an interval, one in the last
        wanted = {2 * k - 1: f"teacher-{k}" for k in ((n + 1) // 2 for n in asked.evaluations)}
    else:
        wanted = {n: f"teacher-{n}" for n in asked.evaluations}
    asks = json.dumps([pipe.settings, asked.count, asked.seed], sort_keys=True)
    digest = hashlib.sha256(asks.encode()).hexdigest()[:12]
    found = evaluate_on(
        truth,
        pipe,
        job.run / f"measured-{digest}.json",
        name=job.key,
        rows=list(wanted.values()),
        batch=asked.batch,
    )
    return {str(n): found["rows"][r]["heldout"] for n, r in wanted.items()}


def _pipeline(asked: Comparison, job: Job, lpc: LPC) -> Path:
    """A pipeline folder of a row, made anew; its weights are not rounded."""
    assert job.row.guidance is not None
    models = {"codec": Path(asked.codec), "teacher": Path(asked.teacher)}
    objective = {}
    if job.config is not None:
        models["student"] = job.run / "student" / "final"
        objective = objective_of(models["student"])
    settings = pipeline_settings(
        objective,
        frames=lpc.num_frames,
        height=CELL,
        width=CELL,
        fps=FPS,
        guidance=job.row.guidance,
        solver=job.row.solver,
        shift=job.row.shift,
    )
    folder = job.run / "pipeline"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for role, source in models.items():
        shutil.copytree(source, folder / role)
    write_text(folder / "pipeline.json", json.dumps(settings, indent=1) + "\n")
    return folder


def _flat(tree: dict[str, Any], before: str = "") -> dict[str, Any]:
    """Leaves by dotted keys."""
    leaves: dict[str, Any] = {}
    for key, value in tree.items():
        name = f"{before}{key}"
        leaves |= _flat(value, f"{name}.") if isinstance(value, dict) else {name: value}
    return leaves


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:14]}...{text[-1]}"
