"""Whether guidance and negative prompts still steer a student, and how far beside its teacher.

A student is told its guidance scale as a number and takes a negative prompt as a correction
(`denoiser.NegativePromptStudent`), where its teacher evaluates both branches. The same prompts and noise show
whether that still comes to the same. Negative prompts are tried on what a prompt leaves open: a
clip shows some background, and the negative prompt names it, or another one.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from vidcm.errors import UsageError
from vidcm.evaluation.environment import environment
from vidcm.evaluation.markdown import grid
from vidcm.evaluation.protocol import Truth, describe_model, plain
from vidcm.files import write_text
from vidcm.lpc import adherence, diversity

if TYPE_CHECKING:
    from vidcm.pipeline import VideoPipeline

VERSION = 1
SCALES = (1.0, 2.0, 3.0, 5.0)
AGAINST = 3.0  # the scale at which negative prompts are tried
OPEN = "background"
TEACHER_STEPS = 8


def steer(
    pipe: "VideoPipeline",
    truth: Truth,
    output: Path,
    *,
    name: str,
    batch: int = 16,
    overwrite: bool = False,
) -> dict:
    """Measure the student in one step (or its phases) and the teacher in 8, and write to `output`.

    By scale of guidance: adherence in 0..1; `moved`, mean grey levels from the clips at the first
    scale; of the student `cosine`, mean over clips, of that movement with the teacher's. Of
    negative prompts: the share of clips that keep the background they show without. Raises
    UsageError when the file exists."""
    if output.exists() and not overwrite:
        raise UsageError(f"{output} exists; give another name, or --overwrite")
    steps = {"student": pipe.settings["student"].get("phases", 1), "teacher": TEACHER_STEPS}
    rows: dict[str, dict] = {}
    changes: dict[str, dict[float, Tensor]] = {}
    for role, count in steps.items():
        sampled = _Sampled(pipe, role, count, batch)
        guided, changes[role] = _guidance(sampled, truth)
        rows[role] = {"steps": count, "guidance": guided, "negative": _negatives(sampled, truth)}
    for scale in SCALES[1:]:
        a, b = (changes[role][scale].double().flatten(1) for role in ("student", "teacher"))
        cosine = torch.nn.functional.cosine_similarity(a, b).mean()
        rows["student"]["guidance"][f"{scale:g}"]["cosine"] = float(cosine)
    results = {
        "version": VERSION,
        "count": truth.count,
        "seed": truth.seed,
        "against": AGAINST,
        "model": describe_model(pipe, name),
        "environment": environment(pipe.device),
        "rows": plain(rows),
    }
    write_text(output, json.dumps(results, indent=1) + "\n")
    return results


class _Sampled:
    """Clips uint8 `(n t h w c)` of one role at its number of steps."""

    def __init__(self, pipe: "VideoPipeline", role: str, steps: int, batch: int):
        self.pipe, self.role, self.steps, self.batch = pipe, role, steps, batch

    def __call__(
        self, prompts: Sequence[str], seeds: Sequence[int], guidance: float, negative: str = ""
    ) -> Tensor:
        frames = []
        places = range(0, len(prompts), self.batch)
        for i in tqdm(places, desc=f"{self.role}, guidance {guidance:g}", leave=False):
            part = slice(i, i + self.batch)
            clips = self.pipe(
                list(prompts[part]),
                steps=self.steps,
                guidance=guidance,
                negative_prompt=negative,
                seed=list(seeds[part]),
                teacher=self.role == "teacher",
            )
            frames.append(torch.from_numpy(clips.frames))
        return torch.cat(frames)


def _guidance(sampled: _Sampled, truth: Truth) -> tuple[dict[str, dict], dict[float, Tensor]]:
    """Numbers by scale, and how clips differ from those at the first one."""
    found, changes, attributes = {}, {}, truth.lpc.attributes
    first: Tensor | None = None
    for scale in SCALES:
        frames = sampled(truth.captions, truth.seeds, scale)
        first = frames if first is None else first
        changes[scale] = frames.int() - first.int()
        marks = adherence.mark(truth.exams, frames, attributes)
        found[f"{scale:g}"] = {
            "adherence": adherence.summary(marks, attributes)["score"],
            "moved": float(changes[scale].abs().double().mean()),
        }
    return found, changes


def _negatives(sampled: _Sampled, truth: Truth) -> dict[str, float]:
    """The share of clips that keep what they show of `OPEN`, by what the negative prompt names."""
    lpc, values = truth.lpc, list(truth.lpc.words[OPEN])
    rngs = (np.random.default_rng([truth.seed, i, 4]) for i in range(truth.count))
    prompts = [
        diversity.describe(lpc, c, [OPEN], rng)
        for c, rng in zip(truth.combinations, rngs, strict=True)
    ]
    exams = [adherence.exam(lpc, c, [OPEN])[OPEN] for c in truth.combinations]

    def shown(frames: Tensor, places: Sequence[int]) -> list[int]:
        return [exams[i].nearest(clip) for i, clip in zip(places, frames.numpy(), strict=True)]

    before = shown(sampled(prompts, truth.seeds, AGAINST), range(truth.count))
    kept = {}
    for kind, further in (("named", 0), ("another", 1)):
        same = 0
        for value, word in enumerate(values):
            places = [i for i, b in enumerate(before) if (b + further) % len(values) == value]
            if places:
                negative = f"{lpc.words[OPEN][word]['say'][0]} {OPEN}"
                asked, seeds = [prompts[i] for i in places], [truth.seeds[i] for i in places]
                after = shown(sampled(asked, seeds, AGAINST, negative), places)
                same += sum(a == before[i] for a, i in zip(after, places, strict=True))
        kept[kind] = same / truth.count
    return kept


def table(results: dict) -> str:
    """Markdown: guidance, negative prompts, how they were measured."""
    scales = list(results["rows"]["student"]["guidance"])
    lines = []
    for title, key, factor, digits in (
        ("adherence, %", "adherence", 100, 1),
        ("moved, grey levels", "moved", 1, 2),
        ("cosine with the teacher's movement", "cosine", 1, 2),
    ):
        for role, row in results["rows"].items():
            values = [row["guidance"][scale].get(key) for scale in scales]
            if any(value is not None for value in values):
                shown = ["-" if v is None else f"{factor * v:.{digits}f}" for v in values]
                lines.append([f"{role}: {title}", *shown])
    kept = [
        [role, *(f"{100 * row['negative'][kind]:.0f}" for kind in ("named", "another"))]
        for role, row in results["rows"].items()
    ]
    made_on, rows = results["environment"], results["rows"]
    method = (
        f"{results['count']} held-out prompts, seed {results['seed']}; {rows['student']['steps']} "
        f"step(s) of the student, {rows['teacher']['steps']} of the teacher; negative "
        f"prompts at guidance {results['against']:g}, with prompts that leave the {OPEN} open. "
        f"Model {results['model']['name']}; {made_on['cpu']}, torch {made_on['torch']}."
    )
    head = [f"clips that keep their {OPEN}, %", "it is named", "another is named"]
    guided = grid(["guidance", *scales], lines)
    return "\n\n".join([guided, grid(head, kept), method]) + "\n"
