"""The quality table.

Every row generates clips of the same held-out prompts with the same seeds, and all are compared
with the same true clips.
"""

import hashlib
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from vidcm.errors import UsageError
from vidcm.evaluation.diffusers_clips import diffusers_generator
from vidcm.evaluation.eval_set import SEEDS_PER_PROMPT, EvalJob, EvalSet
from vidcm.evaluation.row_clips import ClipGenerator, clip_generator
from vidcm.evaluation.rows import ROWS, Row
from vidcm.lpc import adherence, diversity, hand_prompts
from vidcm.metrics import fidelity, frechet, motion


def evaluate_rows(
    job: EvalJob, rows: Sequence[Row] = ROWS, with_hand_prompts: bool = False
) -> dict:
    """Measure rows; returns the content of the results file.

    Args:
        job: model, evaluation set and results file.
        rows: to measure.
        with_hand_prompts: also measure prompts written by hand.

    Raises:
        UsageError: the file holds results of another protocol or model.
    """
    eval_set = job.eval_set
    results = job.results("quality", eval_set.protocol(), lambda row: Row.parse(row).sort_key)
    grader: hand_prompts.HandPromptGrader | None = None
    for row in sorted(rows, key=lambda row: row.sort_key):
        generate = row_generator(job, row)
        if not results.has(str(row), "heldout"):
            results.add(str(row), "heldout", row=_heldout_metrics(generate, eval_set))
        by_hand = with_hand_prompts and row.role in ("teacher", "student")
        if by_hand and not results.has(str(row), "hand_prompts"):
            prompts = hand_prompts.load_hand_prompts()
            grader = grader or hand_prompts.HandPromptGrader(eval_set.lpc, prompts)
            found = _hand_prompt_metrics(generate, eval_set, grader)
            results.add(str(row), "hand_prompts", row=found)
    return results.content()


def row_generator(job: EvalJob, row: Row) -> ClipGenerator:
    """What makes the clips of a row.

    Raises:
        UsageError: diffusers is to make them, and there is no export.
    """
    if row.role != "diffusers":
        return clip_generator(job.pipe, row, job.batch_size)
    if job.exported is None:
        raise UsageError(
            f"row {row} needs the student as diffusers loads it; give --diffusers FOLDER, written "
            "by vidcm export --to diffusers"
        )
    return diffusers_generator(job.pipe, job.exported, row, job.batch_size)


def _heldout_metrics(generate: ClipGenerator, eval_set: EvalSet) -> dict:
    """All metrics of one row on the held-out captions."""
    questions = eval_set.questions  # before the clock starts: they serve every row
    start = time.perf_counter()
    clips = generate(eval_set.captions, eval_set.frames, eval_set.seeds)
    spent = time.perf_counter() - start
    attributes = eval_set.lpc.attributes
    grades = adherence.grade(questions, clips.frames, attributes)
    scores = adherence.summarize_grades(grades, attributes)
    moved = motion.motion(clips.frames)
    ratio = motion.motion_ratio(moved, eval_set.motion)
    features = eval_set.extractor(clips.frames)
    return {
        "evaluations": clips.evaluations,
        "adherence": scores | {"chance": adherence.chance_score(questions)},
        "fidelity": {
            "psnr": fidelity.psnr(clips.frames, eval_set.frames).mean().item(),
            "ssim": fidelity.ssim(clips.frames, eval_set.frames).mean().item(),
        },
        "motion": {
            "ratio": ratio.overall,
            "quartiles": np.nanquantile(ratio.per_clip, [0.25, 0.5, 0.75]).tolist(),
            "generated": moved.mean(),
            "true": eval_set.motion.mean(),
            "still": ratio.still,
        },
        # The true clips of the same prompts, so that 0 is reached; biased upwards at small counts.
        "frechet": {
            "distance": frechet.frechet_distance(features, eval_set.features),
            "clips": eval_set.count,
            "against": "the same prompts",
        },
        "diversity": _diversity_metrics(generate, eval_set),
        "truth": hashlib.sha256(eval_set.frames.numpy().tobytes()).hexdigest(),
        "seconds": {"total": spent, "per_clip": spent / eval_set.count, "stages": clips.seconds},
    }


def _diversity_metrics(generate: ClipGenerator, eval_set: EvalSet) -> dict:
    open_prompts, seeds_each = eval_set.open_prompts, SEEDS_PER_PROMPT
    prompts = [p.prompt for p in open_prompts for _ in range(seeds_each)]
    true_clips = torch.cat([p.true_clips[:seeds_each] for p in open_prompts])
    seeds = [eval_set.seed + 2**32 + i for i in range(len(prompts))]
    groups = generate(prompts, true_clips, seeds).frames.split(seeds_each)
    generated = [diversity.mean_pairwise_distance(clips) for clips in groups]
    true = [diversity.mean_pairwise_distance(p.true_clips) for p in open_prompts]
    return {
        "ratio": diversity.diversity_ratio(generated, true),
        "generated": np.mean(generated),
        "true": np.mean(true),
        "prompts": len(open_prompts),
        "seeds": seeds_each,
    }


def _hand_prompt_metrics(
    generate: ClipGenerator, eval_set: EvalSet, grader: hand_prompts.HandPromptGrader
) -> dict:
    lpc, prompts = eval_set.lpc, grader.prompts
    true_clips = lpc.render([p.attributes for p in prompts]).cpu()
    seeds = [eval_set.seed + 2**33 + i for i in range(len(prompts))]
    texts = [p.prompt for p in prompts]
    ways = {
        "hand": (texts, False),
        "completed": (texts, True),
        "template": (hand_prompts.template_captions(lpc, prompts, eval_set.seed), False),
    }
    found: dict[str, Any] = {}
    for way, (of_way, complete) in ways.items():
        clips = generate(of_way, true_clips, seeds, complete_prompt=complete)
        found[way] = adherence.summarize_grades(grader(clips.frames), lpc.attributes)
    count, words = hand_prompts.unseen_words(lpc, prompts)
    return found | {"prompts": len(prompts), "unseen": {"prompts": count, "words": words}}
