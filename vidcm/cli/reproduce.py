"""`vidcm reproduce`: the whole road of a reference model, from its art to a measured pipeline."""

import argparse
import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from vidcm.cli.argument_types import number, output_folder
from vidcm.cli.common import Parser, run
from vidcm.cli.options import add_art
from vidcm.config import load
from vidcm.errors import VidcmError
from vidcm.files import write_text
from vidcm.schema import from_dict
from vidcm.yaml_file import read_keys

CONFIGS = Path(__file__).parents[2] / "configs"
RECIPES = {"lpc-64": CONFIGS / "lpc" / "recipe.yaml"}
TRIAL_STEPS = 12  # of a training, to learn how long its steps take
STATE, REPORT = "reproduce.json", "report.md"


@dataclass
class Stage:
    """A stage of a recipe.

    Attributes:
        name: Of the stage.
        run: Command of vidcm, with `{root}` and `{configs}`.
        done: File or folder below the root that says that the stage is over; `*.done` is written
            for a command that leaves none.
        share: Of the time of trainings; 0 for a command whose length is its own.
        reserve: Seconds kept for a stage without a share.
    """

    name: str
    run: str
    done: str
    share: float = 0.0
    reserve: float = 0.0


@dataclass
class Recipe:
    """The content of a recipe file."""

    stages: list[Stage]


def parser() -> argparse.ArgumentParser:
    p = Parser(
        "reproduce",
        "Make a reference model: codec, latents, text tower, teacher, student, pipeline, and its\n"
        "evaluation, each by its own command. The recipe splits the time. A run that was\n"
        "interrupted goes on when the same command is called again; report.md tells the result.",
        "example:\n  vidcm reproduce lpc-64 --hours 8 --art layers.tar --output runs/lpc-64",
    )
    p.add_argument("recipe", help=f"{', '.join(RECIPES)}, or the path of a recipe (YAML)")
    time_of = p.add_mutually_exclusive_group(required=True)
    time_of.add_argument("--hours", type=number(0.001, 10_000), help="of the whole run, about")
    time_of.add_argument("--minutes", type=number(0.1, 600_000), help="the same in minutes")
    p.add_argument("--output", required=True, type=output_folder, help="the working folder")
    add_art(p)
    return p


def main(argv: list[str] | None = None) -> int:
    return run(_reproduce, parser().parse_args(argv))


def _reproduce(args: argparse.Namespace) -> None:
    path = RECIPES.get(args.recipe, Path(args.recipe))
    recipe: Recipe = from_dict(Recipe, read_keys(path), str(path))
    names = {"root": str(args.output), "configs": str(path.parent)}
    if args.art:
        os.environ["VIDCM_LPC_ART"] = args.art  # for the commands
    args.output.mkdir(parents=True, exist_ok=True)
    budget = args.minutes * 60 if args.minutes else args.hours * 3600
    state = _State(args.output / STATE)
    for place, stage in enumerate(recipe.stages, start=1):
        if (args.output / stage.done).exists():
            continue
        command = [word.format(**names) for word in shlex.split(stage.run)]
        if stage.share:
            left = budget - state.spent() - sum(s.reserve for s in recipe.stages[place:])
            shares = sum(s.share for s in recipe.stages[place - 1 :])
            steps = state.steps(stage.name, command, left * stage.share / shares, args.output)
            command.append(f"steps={steps}")
        print(
            f"[{place}/{len(recipe.stages)}] {stage.name}: vidcm {shlex.join(command)}", flush=True
        )
        with state.timed(stage.name):
            _run(command, stage.name)
        if stage.done.endswith(".done"):
            write_text(args.output / stage.done, "")
    write_text(args.output / REPORT, _report(recipe.stages, state.content, args.output))
    print(f"{args.output / REPORT}: what was made, in which time, and how good it is")


def _run(command: Sequence[str], name: str) -> None:
    """Run a command of vidcm in a process of its own. Raises VidcmError if it fails."""
    done = subprocess.run([sys.executable, "-m", "vidcm", *command])
    if done.returncode:
        raise VidcmError(
            f"the stage {name} ended with code {done.returncode}, its message is above; the same "
            "command goes on from there"
        )


class _State:
    """Seconds and steps of the stages so far, kept in the working folder."""

    def __init__(self, path: Path):
        self.path = path
        try:
            self.content: dict = json.loads(path.read_text("utf-8"))
        except FileNotFoundError:
            self.content = {"stages": {}}
        except ValueError:
            raise VidcmError(f"{path} is damaged; delete it to plan anew") from None

    def spent(self) -> float:
        """Seconds of all stages."""
        return sum(stage.get("seconds", 0.0) for stage in self.content["stages"].values())

    def _of(self, name: str) -> dict:
        return self.content["stages"].setdefault(name, {})

    def _save(self) -> None:
        write_text(self.path, json.dumps(self.content, indent=1) + "\n")

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Add the time of the block to a stage, whether it succeeds or not."""
        start = time.monotonic()
        try:
            yield
        finally:
            spent = self._of(name).get("seconds", 0.0) + time.monotonic() - start
            self._of(name)["seconds"] = round(spent, 1)
            self._save()

    def steps(self, name: str, command: Sequence[str], seconds: float, root: Path) -> int:
        """Steps of a training that take so long, decided once by a short trial."""
        if "steps" not in self._of(name):
            trial, logged = root / "trial", f"log_every={TRIAL_STEPS // 2}"
            shutil.rmtree(trial, ignore_errors=True)
            short = [c for c in command if not c.startswith("output=")]
            options = [f"output={trial}", f"steps={TRIAL_STEPS}", logged]
            with self.timed(name):
                _run([*short, *options], f"trial of {name}")
            lines = (trial / "metrics.jsonl").read_text("utf-8").splitlines()
            rate = [json.loads(line).get("samples_per_second") for line in lines]
            overrides = [word for word in command if "=" in word]
            batch = load(command[command.index("--config") + 1], overrides).batch_size
            fit = int(seconds * [r for r in rate if r][-1] / batch)
            self._of(name)["steps"] = max(fit, TRIAL_STEPS)
            self._save()
            shutil.rmtree(trial, ignore_errors=True)
        return self._of(name)["steps"]


def _report(stages: Sequence[Stage], state: Mapping, root: Path) -> str:
    """Markdown: time and steps of every stage, last losses, pictures and tables."""
    from vidcm.evaluation.reports import quality_table
    from vidcm.evaluation.results import read_results

    rows = ["| stage | minutes | steps | last loss |", "| --- | ---: | ---: | ---: |"]
    pictures, tables = [], []
    for stage in stages:
        facts = state["stages"].get(stage.name, {})
        log = root / stage.name / "metrics.jsonl"
        lines = log.read_text("utf-8").splitlines() if log.is_file() else []
        losses = [loss for line in lines if (loss := json.loads(line).get("loss")) is not None]
        last = f"{losses[-1]:.4f}" if losses else "-"
        minutes = facts.get("seconds", 0.0) / 60
        rows.append(f"| {stage.name} | {minutes:.1f} | {facts.get('steps', '-')} | {last} |")
        sheets = sorted((root / stage.name / "samples").glob("*.png"))
        pictures += [f"![{stage.name}]({sheets[-1].relative_to(root)})"] if sheets else []
        if stage.done.endswith(".json") and stage.run.startswith("evaluate"):
            tables.append(quality_table(read_results(root / stage.done)))
    return "\n".join(["# What was made", "", *rows, "", *tables, "", *pictures, ""])
