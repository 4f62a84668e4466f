"""The lowest noise level of a few-step student's sampler, chosen on prompts of the training split.

The consistency sampler takes geometric noise levels down to a lowest one, the same rule for every
number of steps (`times.student_timesteps`). Where it ends matters more than how often it stops.
"""

from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import dataclass, replace

import numpy as np
from torch import Tensor
from tqdm import tqdm

from vidcm.errors import UsageError
from vidcm.evaluation.row_clips import clip_generator
from vidcm.evaluation.rows import Row
from vidcm.lpc import adherence
from vidcm.lpc.dataset import LPC
from vidcm.metrics import fidelity
from vidcm.pipeline import VideoPipeline


@dataclass(frozen=True)
class LevelTrial:
    """Scores of a lowest level at one number of steps.

    Attributes:
        lowest_sigma: sigma / alpha of the last level.
        steps: of the sampler.
        adherence: share of correct attributes.
        psnr: in dB.
    """

    lowest_sigma: float
    steps: int
    adherence: float
    psnr: float


MeasureLevel = Callable[[float, int], LevelTrial]


def search_level(measure: MeasureLevel, levels: Sequence[float], steps: Sequence[int]) -> float:
    """The level of highest adherence, mean over numbers of steps; PSNR decides where it ties.

    Adherence is compared in steps of 0.001.
    """

    def merit(level: float) -> tuple[float, float]:
        trials = [measure(level, n) for n in steps]
        score = float(np.mean([t.adherence for t in trials]))
        return round(score, 3), float(np.mean([t.psnr for t in trials]))

    return max(levels, key=merit)


class TuningSet:
    """Prompts of the training split with seeds and true clips; scores levels on them.

    Raises:
        UsageError: the student's levels are fixed by its training.
    """

    def __init__(self, pipe: VideoPipeline, lpc: LPC, count: int, seed: int, batch_size: int):
        student = pipe.settings.student
        if student.sampler != "consistency" or student.phases is not None:
            raise UsageError(
                f"the noise levels of the student of {pipe.folder} are fixed by its training; only "
                "those of consistency students can be tuned"
            )
        self.pipe, self.batch_size, self.attributes = pipe, batch_size, lpc.attributes
        rngs = [np.random.default_rng([seed, i, 2]) for i in range(count)]
        chosen = [lpc.sample(rng, "train") for rng in rngs]
        self.prompts = [lpc.caption(c, rng, full=True) for c, rng in zip(chosen, rngs, strict=True)]
        self.true_clips = lpc.render(chosen).cpu()
        bar = tqdm(chosen, desc="true clips", unit="combination", leave=False)
        self.questions = [adherence.attribute_questions(lpc, c) for c in bar]
        self.seeds = [seed + 2**34 + i for i in range(count)]

    def __call__(self, lowest_sigma: float, steps: int) -> LevelTrial:
        frames = self.clips(lowest_sigma, steps)
        grades = adherence.grade(self.questions, frames, self.attributes)
        score = adherence.summarize_grades(grades, self.attributes)["score"]
        psnr = float(fidelity.psnr(frames, self.true_clips).mean())
        return LevelTrial(lowest_sigma, steps, float(score), psnr)

    def clips(self, lowest_sigma: float, steps: int) -> Tensor:
        """uint8 `(count t h w c)`, as the pipeline generates them with this lowest level."""
        tried, settings = copy(self.pipe), self.pipe.settings
        student = replace(settings.student, lowest_sigma=lowest_sigma)
        tried.settings = replace(settings, student=student)
        generate = clip_generator(tried, Row("student", steps), self.batch_size)
        return generate(self.prompts, self.true_clips, self.seeds).frames


def save_level(pipe: VideoPipeline, lowest_sigma: float) -> None:
    """Write the level to the folder's `pipeline.json`."""
    pipe.settings.student.lowest_sigma = lowest_sigma
    pipe.settings.save(pipe.folder)
