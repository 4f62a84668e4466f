"""Whether clips longer than a network was trained on stay true to their prompt.

A long clip is read in stretches, one for every window: the first frame, then the frames that the
window adds. Each should show what a clip of the trained length shows, so the same questions are
asked about it, except about the first frame. The other methods have the same layout: all frames
through the network at once, short clips end to end, and true clips end to end.
"""

from collections.abc import Sequence
from copy import copy
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from vidcm.errors import UsageError
from vidcm.evaluation.edit_cases import animate
from vidcm.evaluation.edit_scores import questions_on_filled
from vidcm.evaluation.eval_set import EvalJob, EvalSet
from vidcm.lpc import adherence, diversity
from vidcm.lpc.combinations import Combination
from vidcm.lpc.dataset import LPC
from vidcm.metrics import motion
from vidcm.pipeline import VideoPipeline

VERSION = 1
LENGTHS = (1, 2, 4, 8)  # windows along a clip
NUM_WINDOWS = 4  # of the clips that methods are compared on; prompts change halfway
STEPS = (1, 4)
OPEN = ("background", "torso")  # attributes left open by the prompts that drift is measured on
SEED_STRIDE = 2**34  # from the seed of a short clip to that of the next


@dataclass(frozen=True)
class LongRow:
    """How long clips are generated.

    Attributes:
        method: "windows"; "at once", all frames through the network together; short clips end to
            end, all but the first without their first frame, of "one seed" or of "new seeds"; the
            "truth" end to end; or "wide", a clip twice as wide, whose middle is graded.
        windows: along the clip.
        num_inference_steps: of the student; 0 for the truth.
        then: whether the prompt changes to another action halfway.
    """

    method: str
    windows: int = NUM_WINDOWS
    num_inference_steps: int = 0
    then: bool = False

    @property
    def name(self) -> str:
        return f"{self.method}-{self.windows}-{self.num_inference_steps}" + "-then" * self.then


def long_rows(steps: Sequence[int]) -> list[LongRow]:
    """All rows of a measurement."""
    rows = [LongRow("truth"), *(LongRow("windows", n, s) for s in steps for n in LENGTHS)]
    methods = ("at once", "one seed", "new seeds")
    rows += [LongRow(method, NUM_WINDOWS, s) for s in steps for method in methods]
    rows += [LongRow("wide", 1, s) for s in steps] + [LongRow("truth", then=True)]
    methods = ("windows", "one seed", "new seeds")  # at once there is one prompt
    return rows + [LongRow(method, NUM_WINDOWS, s, True) for s in steps for method in methods]


@dataclass(frozen=True)
class LongTargets:
    """True clips of one stretch and their prompts.

    Attributes:
        frames: uint8 `(n t h w c)`.
        captions: full ones.
        open_prompts: prompts that leave `OPEN` open.
        questions: about all frames but the first.
    """

    frames: Tensor
    captions: list[str]
    open_prompts: list[str]
    questions: list[adherence.Questions]

    @classmethod
    def of(cls, lpc: LPC, combinations: Sequence[Combination], seed: int) -> "LongTargets":
        frames, captions, open_prompts, questions = lpc.render(combinations).cpu(), [], [], []
        for i, (combination, clip) in enumerate(zip(combinations, frames.numpy(), strict=True)):
            rng = np.random.default_rng([seed, i, 5])
            captions.append(lpc.caption(combination, rng, full=True))
            open_prompts.append(diversity.partial_caption(lpc, combination, OPEN, rng))
            about_clip = adherence.attribute_questions(lpc, combination)
            questions.append(questions_on_filled(about_clip, animate(clip)))
        return cls(frames, captions, open_prompts, questions)


def other_action(lpc: LPC, combination: Combination) -> Combination:
    """The combination with the next action, all other attributes unchanged."""
    kept = {k: v for k, v in combination.items() if k != "action"}
    able = [c for c in lpc.alternatives(combination, "action") if c.items() >= kept.items()]
    return able[(able.index(combination) + 1) % len(able)]


class LongClipGenerator:
    """Generates the clips of rows with the student.

    Attributes:
        span: frames that a window adds.
        seconds: spent in the pipeline; callers reset it.

    Raises:
        UsageError: windows of the model are not true clips end to end.
    """

    def __init__(self, pipe: VideoPipeline, lpc: LPC, batch_size: int):
        windowed, settings = pipe.generation().denoiser, pipe.settings
        self.span = lpc.num_frames - 1
        added = (windowed.window[0] - 1) * pipe.codec.time_stride
        if windowed.overlap[0] or added != self.span:
            raise UsageError(
                f"long clips are measured in windows of {lpc.num_frames} frames end to end; those "
                f"of {pipe.folder} are of {added + 1} and overlap by {windowed.overlap[0]} latent "
                "frames; give a model trained on shorter clips"
            )
        self.height, self.width = settings.height, settings.width
        self.pipe, self.batch_size, self.unwindowed = pipe, batch_size, copy(pipe)
        longest = 1 + NUM_WINDOWS * self.span, self.height, self.width
        self.unwindowed.settings = replace(settings, trained_shapes=[longest])
        self.seconds = 0.0

    def __call__(
        self,
        row: LongRow,
        true_clips: Sequence[Tensor],
        prompts: Sequence[list[str]],
        seeds: list[int],
    ) -> Tensor:
        """Generate the clips of a row.

        Args:
            row: the method.
            true_clips: uint8 `(n t h w c)`, before the change of the prompt and after it.
            prompts: `n` before the change, and after it.
            seeds: of each clip.

        Returns:
            uint8 `(n t h w c)`.
        """
        if row.method in ("one seed", "new seeds", "truth"):
            parts = []
            for k in range(row.windows):
                late = row.then and 2 * k >= row.windows
                own = [s + k * SEED_STRIDE * (row.method == "new seeds") for s in seeds]
                truth = row.method == "truth"
                part = true_clips[late] if truth else self._sample(row, prompts[late], own)
                parts.append(part[:, min(k, 1) :])
            return torch.cat(parts, 1)
        if row.method == "wide":
            clips = self._sample(row, prompts[0], seeds, height=self.height, width=2 * self.width)
            left = self.width // 2
            return clips[:, :, :, left : left + self.width]
        length = 1 + row.windows * self.span
        if not row.then:
            return self._sample(row, prompts[0], seeds, num_frames=length)
        start = 1 + row.windows // 2 * self.span
        clips = [
            self._sample(row, [before], [seed], num_frames=length, prompt_schedule=[(start, after)])
            for before, after, seed in zip(*prompts, seeds, strict=True)
        ]
        return torch.cat(clips)

    def _sample(self, row: LongRow, prompts: list[str], seeds: list[int], **options: Any) -> Tensor:
        pipe = self.unwindowed if row.method == "at once" else self.pipe
        steps, size = row.num_inference_steps, self.batch_size
        options |= {"batch_size": size, "complete_prompt": False}
        clips = pipe(prompts, num_inference_steps=steps, seed=seeds, **options)
        self.seconds += sum(clips.seconds.values())
        return torch.from_numpy(clips.frames)


def measure_long(job: EvalJob) -> dict:
    """Measure the rows of `long_rows`; returns the content of the results file.

    Rows hold the adherence in 0..1 of the `first` and the `last` stretch to their prompts; `drift`,
    mean grey levels between these two, each averaged over time, with prompts that leave `OPEN`
    open; `seam`, steps between stretches over those inside; and `motion` of the last stretch over
    that of the true clips. Errors as `quality.evaluate_rows`.
    """
    eval_set, lpc = job.eval_set, job.eval_set.lpc
    generator = LongClipGenerator(job.pipe, lpc, job.batch_size)
    results = job.results("long", {"version": VERSION, "open": OPEN})
    phases = job.pipe.settings.student.phases
    rows = long_rows([phases] if phases else STEPS)
    if missing := [row for row in rows if not results.has(row.name)]:
        later = [other_action(lpc, c) for c in eval_set.combinations]
        targets = [
            LongTargets.of(lpc, combinations, eval_set.seed + late)
            for late, combinations in enumerate((eval_set.combinations, later))
        ]
        # Once before the clock runs: the first call loads the student.
        generator(rows[1], [], [targets[0].captions[:1]], eval_set.seeds[:1])
        for row in tqdm(missing, unit="row", leave=False):
            found = _long_metrics(generator, row, eval_set, targets)
            results.add(row.name, row=asdict(row) | found)
    return results.content()


def _long_metrics(
    generator: LongClipGenerator, row: LongRow, eval_set: EvalSet, targets: Sequence[LongTargets]
) -> dict:
    attributes, span, end = eval_set.lpc.attributes, generator.span, row.windows - 1
    true_clips = [t.frames for t in targets]
    generator.seconds = 0.0
    clips = generator(row, true_clips, [t.captions for t in targets], eval_set.seeds)
    found: dict[str, Any] = {"frames": clips.shape[1], "drift": None, "seam": None, "motion": None}
    found["seconds_per_frame"] = generator.seconds / (eval_set.count * clips.shape[1])
    for part, k, target in (("first", 0, targets[0]), ("last", end, targets[row.then])):
        # The first frame stands in front, where questions expect it; no question is about it.
        graded = torch.cat([clips[:, :1], stretch(clips, k, span)], 1)
        grades = adherence.grade(target.questions, graded, attributes)
        scores = adherence.summarize_grades(grades, attributes)
        action = scores["attributes"]["action"]["score"]
        found[part] = {n: scores[n] for n in ("score", "low", "high")} | {"action": action}
    if row.method != "wide":  # there others stand beside the middle, and move too
        ends = stretch(clips, end, span), true_clips[row.then][:, 1:]
        found["motion"] = motion.motion_ratio(*map(motion.motion, ends)).overall
    if end:
        found["seam"] = seam(clips, span)
        open_prompts = [t.open_prompts for t in targets]
        varied = generator(row, true_clips, open_prompts, eval_set.seeds)
        first, last = (stretch(varied, k, span).double().mean(1) for k in (0, end))
        found["drift"] = float((first - last).abs().mean())
    return found


def stretch(clips: Tensor, k: int, span: int) -> Tensor:
    """The frames that window `k` adds to clips `(n t h w c)`."""
    return clips[:, 1 + k * span : 1 + (k + 1) * span]


def seam(clips: Tensor, span: int) -> float:
    """Mean step from stretch to stretch of clips uint8 `(n t h w c)`, over that inside stretches.

    Returns:
        nan or inf where nothing moves inside.
    """
    steps = clips.int().diff(dim=1).abs().double().mean((0, 2, 3, 4))
    between = torch.zeros(len(steps), dtype=torch.bool)
    between[span::span] = True
    return float(steps[between].mean() / steps[~between].mean())
