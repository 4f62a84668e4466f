"""Sampling times of a few-step student, found by trial on prompts of the training split.

The consistency sampler may stop anywhere between its steps, and where it does so matters more than
how often. Times are added one by one, each at the noise ratio that serves best beside those already
there, so that a longer list never does worse than a shorter one on the prompts searched with.
"""

import json
import math
from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import dataclass

import numpy as np
from torch import Tensor
from tqdm import tqdm

from vidcm.diffusion.times import T_START
from vidcm.errors import UsageError
from vidcm.evaluation.rows import maker
from vidcm.files import write_text
from vidcm.lpc import adherence
from vidcm.lpc.dataset import LPC
from vidcm.metrics import fidelity
from vidcm.pipeline import VideoPipeline

HIGHEST = 96.0  # sigma / alpha


@dataclass(frozen=True)
class Trial:
    """times: rectified-flow times, descending. adherence: share of attributes right. psnr: in dB."""

    times: tuple[float, ...]
    adherence: float
    psnr: float

    @property
    def merit(self) -> tuple[float, float]:
        return round(self.adherence, 4), self.psnr


Try = Callable[[Sequence[float]], Trial]


def ratios_from(lowest: float, steps: int) -> list[float]:
    """Noise ratios sigma / alpha to choose from, from `HIGHEST` down to `lowest`, below it: an
    octave apart, or closer where so many steps need more of them."""
    octaves = math.floor(math.log2(HIGHEST / lowest)) + 1
    if octaves >= steps - 1:
        return [HIGHEST / 2**i for i in range(octaves)]
    return np.geomspace(HIGHEST, lowest, steps - 1).tolist()


def extend(best: Trial, measure: Try, ratios: Sequence[float]) -> Trial:
    """The best list of one more time: `best`'s and one of `ratios`."""
    free = [t for r in ratios if (t := r / (1 + r)) not in best.times and t < best.times[0]]
    lists = [tuple(sorted((*best.times, t), reverse=True)) for t in free]
    return max(map(measure, lists), key=lambda trial: trial.merit)


def search(measure: Try, counts: Sequence[int], lowest: float = 1.5) -> list[Trial]:
    """The best trial for each of `counts` numbers of steps, ascending; no time but the first has a
    noise ratio above `HIGHEST` or below `lowest`."""
    ratios = ratios_from(lowest, max(counts))
    best = measure((T_START,))
    found = {1: best}
    while len(best.times) < max(counts):
        best = extend(best, measure, ratios)
        found[len(best.times)] = best
    return [found[n] for n in sorted(set(counts))]


class Bench:
    """Clips of one set of prompts, seeds and true clips, made at any times."""

    def __init__(self, pipe: VideoPipeline, lpc: LPC, count: int, seed: int, batch: int):
        if pipe.settings["student"].get("sampler", "consistency") != "consistency":
            raise UsageError(
                f"the student of {pipe.folder} is sampled by jumps, whose times are its grid's; "
                "there is nothing to search"
            )
        self.pipe, self.batch, self.attributes = pipe, batch, lpc.attributes
        rngs = [np.random.default_rng([seed, i, 2]) for i in range(count)]
        chosen = [lpc.sample(rng, "train") for rng in rngs]
        self.prompts = [lpc.caption(c, rng, full=True) for c, rng in zip(chosen, rngs, strict=True)]
        self.truth = lpc.render(chosen).cpu()
        bar = tqdm(chosen, desc="true clips", unit="combination", leave=False)
        self.exams = [adherence.exam(lpc, c) for c in bar]
        self.seeds = [seed + 2**34 + i for i in range(count)]

    def __call__(self, times: Sequence[float]) -> Trial:
        frames = self.clips(times)
        marks = adherence.mark(self.exams, frames, self.attributes)
        score = adherence.summary(marks, self.attributes)["score"]
        return Trial(tuple(times), float(score), float(fidelity.psnr(frames, self.truth).mean()))

    def clips(self, times: Sequence[float]) -> Tensor:
        """uint8 `(count t h w c)`: what the pipeline makes once it keeps these times."""
        own, steps = self.pipe.settings, len(times)
        tried = copy(self.pipe)
        tried.settings = {**own, "student": {**own["student"], "times": {str(steps): list(times)}}}
        make = maker(tried, f"student-{steps}", self.batch)
        return make(self.prompts, self.truth, self.seeds).frames


def keep(pipe: VideoPipeline, trials: Sequence[Trial]) -> None:
    """Write the times found to the pipeline's settings, beside those of other numbers of steps."""
    times = pipe.settings["student"].setdefault("times", {})
    times |= {str(len(t.times)): list(t.times) for t in trials}
    write_text(pipe.folder / "pipeline.json", json.dumps(pipe.settings, indent=1) + "\n")
