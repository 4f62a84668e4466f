"""Whether clips longer than a network was trained on stay what they began as.

A long clip is read in stretches, one for every window: the first picture, then the frames that the
window adds. Each should show what a clip of the trained length shows, so the same questions are
asked of it, about all but the picture they share. Beside it, laid out alike: all frames through the
network at once, short clips end to end, and the truth end to end.
"""

import json
from collections.abc import Sequence
from copy import copy
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from vidcm.errors import UsageError
from vidcm.evaluation.edit_cases import animate
from vidcm.evaluation.edit_scores import about_filled
from vidcm.evaluation.environment import environment
from vidcm.evaluation.markdown import commit_of, grid
from vidcm.evaluation.protocol import Truth, describe_model, plain
from vidcm.evaluation.report import read_results
from vidcm.files import write_text
from vidcm.lpc import adherence, diversity
from vidcm.lpc.dataset import LPC, Combination
from vidcm.metrics import motion

if TYPE_CHECKING:
    from vidcm.pipeline import VideoPipeline

VERSION = 1
LENGTHS = (1, 2, 4, 8)  # windows along a clip
SHOWN = 4  # windows of the clips that other ways are compared with; prompts change halfway
STEPS = (1, 4)
OPEN = ("background", "torso")  # what prompts leave open where drift is measured
OTHER = 2**34  # from the seed of a short clip to that of the next


@dataclass(frozen=True)
class Row:
    """way: "windows"; "at once", several windows' frames through the network in one piece; short
    clips end to end, all but the first without their first frame, of "one seed", of "new seeds", or
    the "truth"; "wide", a clip twice as wide, whose middle is asked what it shows. steps: of the
    student. then: whether another action takes over halfway."""

    way: str
    windows: int = SHOWN
    steps: int = 0
    then: bool = False

    @property
    def name(self) -> str:
        return f"{self.way}-{self.windows}-{self.steps}" + "-then" * self.then


def plan(steps: Sequence[int]) -> list[Row]:
    """All rows of a measurement."""
    rows = [Row("truth"), *(Row("windows", n, s) for s in steps for n in LENGTHS)]
    rows += [Row(way, SHOWN, s) for s in steps for way in ("at once", "one seed", "new seeds")]
    rows += [Row("wide", 1, s) for s in steps] + [Row("truth", then=True)]
    ways = ("windows", "one seed", "new seeds")  # at once there is one prompt
    return rows + [Row(way, SHOWN, s, True) for s in steps for way in ways]


@dataclass(frozen=True)
class Script:
    """What clips are to show: the truth, uint8 `(n t h w c)`, full captions, prompts that leave
    `OPEN` open, and questions about all frames but the first."""

    frames: Tensor
    captions: list[str]
    open_prompts: list[str]
    exams: list[adherence.Exam]

    @classmethod
    def of(cls, lpc: LPC, combinations: Sequence[Combination], seed: int) -> "Script":
        frames, captions, open_prompts, exams = lpc.render(combinations).cpu(), [], [], []
        for i, (combination, clip) in enumerate(zip(combinations, frames.numpy(), strict=True)):
            rng = np.random.default_rng([seed, i, 5])
            captions.append(lpc.caption(combination, rng, full=True))
            open_prompts.append(diversity.describe(lpc, combination, OPEN, rng))
            exams.append(about_filled(adherence.exam(lpc, combination), animate(clip)))
        return cls(frames, captions, open_prompts, exams)


def other_action(lpc: LPC, combination: Combination) -> Combination:
    """The combination with the next action that leaves all else as it is."""
    kept = {k: v for k, v in combination.items() if k != "action"}
    able = [c for c in lpc.alternatives(combination, "action") if c.items() >= kept.items()]
    return able[(able.index(combination) + 1) % len(able)]


class Maker:
    """Clips of rows by the student. span: the frames that a window adds. Raises UsageError for a
    model whose windows are not the truth's clips end to end."""

    def __init__(self, pipe: "VideoPipeline", lpc: LPC, batch: int):
        whole, settings, self.span = pipe.windowed("student"), pipe.settings, lpc.num_frames - 1
        added = (whole.window[0] - 1) * pipe.codec.time_stride
        if whole.overlap[0] or added != self.span:
            raise UsageError(
                f"long clips are measured in windows of {lpc.num_frames} frames end to end; those "
                f"of {pipe.folder} are of {added + 1} and overlap by {whole.overlap[0]} latent "
                "frames; give a model trained on shorter clips"
            )
        self.height, self.width = settings["height"], settings["width"]
        self.pipe, self.batch, self.at_once = pipe, batch, copy(pipe)
        longest = [1 + SHOWN * self.span, self.height, self.width]
        self.at_once.settings = settings | {"trained": [longest]}
        self.seconds = 0.0  # in the pipeline, since it was last set to 0

    def __call__(
        self, row: Row, truth: Sequence[Tensor], prompts: Sequence[list[str]], seeds: list[int]
    ) -> Tensor:
        """Clips uint8 `(n t h w c)`. truth, prompts: before the change, and after it."""
        if row.way in ("one seed", "new seeds", "truth"):
            parts = []
            for k in range(row.windows):
                late, own = row.then and 2 * k >= row.windows, seeds
                if row.way == "new seeds":
                    own = [s + k * OTHER for s in seeds]
                part = truth[late] if row.way == "truth" else self._draw(row, prompts[late], own)
                parts.append(part[:, min(k, 1) :])
            return torch.cat(parts, 1)
        if row.way == "wide":
            clips = self._draw(row, prompts[0], seeds, height=self.height, width=2 * self.width)
            left = self.width // 2
            return clips[:, :, :, left : left + self.width]
        length = 1 + row.windows * self.span
        if not row.then:
            return self._draw(row, prompts[0], seeds, frames=length)
        start = 1 + row.windows // 2 * self.span
        clips = [
            self._draw(row, [before], [seed], frames=length, then=[(start, after)])
            for before, after, seed in zip(*prompts, seeds, strict=True)
        ]
        return torch.cat(clips)

    def _draw(self, row: Row, prompts: list[str], seeds: list[int], **options: Any) -> Tensor:
        pipe, found = self.at_once if row.way == "at once" else self.pipe, []
        for i in range(0, len(prompts), self.batch):
            part = slice(i, i + self.batch)
            clips = pipe(prompts[part], steps=row.steps, seed=seeds[part], **options)
            self.seconds += sum(clips.seconds.values())
            found.append(torch.from_numpy(clips.frames))
        return torch.cat(found)


def measure_long(
    pipe: "VideoPipeline",
    truth: Truth,
    output: Path,
    *,
    name: str,
    batch: int = 16,
    overwrite: bool = False,
) -> dict:
    """Measure the rows of `plan` and write each to `output` when it is finished; returns its
    content. Finished rows of an existing file are kept.

    Adherence in 0..1 of the first and the last stretch to their prompts. drift: mean grey levels
    between these two, each averaged over time, with prompts that leave `OPEN` open. seam: steps
    between stretches over those inside. motion: of the last stretch, over the truth's. Raises
    UsageError when the file holds another protocol or model."""
    maker = Maker(pipe, truth.lpc, batch)
    protocol = {"version": VERSION, "count": truth.count, "seed": truth.seed, "open": list(OPEN)}
    results: dict[str, Any] = {
        "protocol": protocol | {"frames": truth.lpc.num_frames},
        "model": describe_model(pipe, name),
        "rows": {},
    }
    if output.exists() and not overwrite:
        before = read_results(output)
        for part in ("protocol", "model"):
            if before[part] != results[part]:
                raise UsageError(
                    f"{output} holds results of another {part}; give another file, or --overwrite"
                )
        results["rows"] = before["rows"]
    phases = pipe.settings["student"].get("phases")
    rows = plan([phases] if phases else STEPS)
    if missing := [row for row in rows if row.name not in results["rows"]]:
        later = [other_action(truth.lpc, c) for c in truth.combinations]
        scripts = [
            Script.of(truth.lpc, combinations, truth.seed + late)
            for late, combinations in enumerate((truth.combinations, later))
        ]
        # Once before the clock runs: the first call loads the student.
        maker(rows[1], [], [scripts[0].captions[:1]], truth.seeds[:1])
        for row in tqdm(missing, unit="row", leave=False):
            found = asdict(row) | _measure(maker, row, truth, scripts)
            results["rows"][row.name] = plain(found) | {"environment": environment(pipe.device)}
            write_text(output, json.dumps(results, indent=1) + "\n")
    return results


def _measure(maker: Maker, row: Row, truth: Truth, scripts: Sequence[Script]) -> dict:
    attributes, span, end = truth.lpc.attributes, maker.span, row.windows - 1
    true = [s.frames for s in scripts]
    maker.seconds = 0.0
    clips = maker(row, true, [s.captions for s in scripts], truth.seeds)
    found: dict[str, Any] = {"frames": clips.shape[1], "drift": None, "seam": None, "motion": None}
    found["seconds_per_frame"] = maker.seconds / (truth.count * clips.shape[1])
    for part, k, script in (("first", 0, scripts[0]), ("last", end, scripts[row.then])):
        # The picture they share stands in front, where questions expect it; none is about it.
        shown = torch.cat([clips[:, :1], stretch(clips, k, span)], 1)
        marks = adherence.summary(adherence.mark(script.exams, shown, attributes), attributes)
        action = marks["attributes"]["action"]["score"]
        found[part] = {n: marks[n] for n in ("score", "low", "high")} | {"action": action}
    if row.way != "wide":  # others stand beside the middle, and move too
        ends = stretch(clips, end, span), true[row.then][:, 1:]
        found["motion"] = motion.motion_ratio(*map(motion.motion, ends)).overall
    if end:
        found["seam"] = seam(clips, span)
        loose = maker(row, true, [s.open_prompts for s in scripts], truth.seeds)
        first, last = (stretch(loose, k, span).double().mean(1) for k in (0, end))
        found["drift"] = float((first - last).abs().mean())
    return found


def stretch(clips: Tensor, k: int, span: int) -> Tensor:
    """What window `k` adds to clips `(n t h w c)`."""
    return clips[:, 1 + k * span : 1 + (k + 1) * span]


def seam(clips: Tensor, span: int) -> float:
    """Mean step from stretch to stretch of clips uint8 `(n t h w c)`, over that inside; nan or inf
    where nothing moves inside."""
    steps = clips.int().diff(dim=1).abs().double().mean((0, 2, 3, 4))
    between = torch.zeros(len(steps), dtype=torch.bool)
    between[span::span] = True
    return float(steps[between].mean() / steps[~between].mean())


def table(results: dict) -> str:
    """Markdown: long clips, clips whose prompt changes, how they were measured."""
    protocol, rows = results["protocol"], list(results["rows"].values())
    made = rows[0]["environment"]
    commit = commit_of(made)
    told = {"all, first, %": ("first", "score"), "all, last, %": ("last", "score")}
    action = {"action before, %": ("first", "action"), "action after, %": ("last", "action")}
    return "\n\n".join(
        [
            _grid([row for row in rows if not row["then"]], told),
            f"Another action from frame {1 + SHOWN // 2 * (protocol['frames'] - 1)} on:",
            _grid([row for row in rows if row["then"]], action | told),
            f"{protocol['count']} held-out combinations, seed {protocol['seed']}, full captions; "
            f"for drift, prompts that leave {' and '.join(OPEN)} open. Model "
            f"{results['model']['name']}, commit {commit}; {made['cpu']}, {made['threads']} "
            f"threads, torch {made['torch']}.\n",
        ]
    )


def _grid(rows: list[dict], shares: dict[str, tuple[str, str]]) -> str:
    def shown(value: float | None, factor: float = 1, digits: int = 1) -> str:
        return "-" if value is None else f"{factor * value:.{digits}f}"

    lines = [
        [
            f"{row['way']}{', ' * (steps > 0)}{steps or ''}{' step' * (steps > 0)}"
            f"{'s' * (steps > 1)}",
            str(row["frames"]),
            *(shown(row[part][key], 100) for part, key in shares.values()),
            *(shown(row[key], digits=2) for key in ("drift", "seam", "motion")),
            shown(row["seconds_per_frame"] if steps else None, 1000),
        ]
        for row in rows
        for steps in [row["steps"]]
    ]
    return grid(["", "frames", *shares, "drift", "seam", "motion", "ms a frame"], lines)
