"""Whether guidance and negative prompts steer a student as they steer its teacher.

A student takes its guidance scale as an input and negative prompts as a correction
(`guidance.NegativePromptStudent`); its teacher evaluates both branches. Both are sampled with the
same prompts and noise. Negative prompts are tried on an attribute that the prompt leaves open: a
clip shows some background, and the negative prompt names it, or another one.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from vidcm.evaluation.eval_set import EvalJob, EvalSet
from vidcm.lpc import adherence, diversity

VERSION = 1
SCALES = (1.0, 2.0, 3.0, 5.0)
NEGATIVE_SCALE = 3.0  # at which negative prompts are tried
OPEN = "background"
TEACHER_STEPS = 8
NAG = "student, nag"  # its row: attention guidance in the place of guidance

Sampler = Callable[..., Tensor]  # (prompts, seeds, guidance, negative="") -> uint8 (n t h w c)


def measure_steering(job: EvalJob) -> dict:
    """Measure the student in one step (or its phases) and the teacher in `TEACHER_STEPS`.

    Rows of a role hold, by guidance scale: adherence in 0..1; `moved`, mean grey levels from the
    clips at the first scale; and of the student `cosine`, mean over clips, between its movement and
    the teacher's. Of negative prompts: the share of clips that keep the background they show
    without one, of the student also by normalized attention guidance. Returns the content of the
    results file; errors as `quality.evaluate_rows`.
    """
    steps = {"student": job.pipe.settings.student.phases or 1, "teacher": TEACHER_STEPS}
    protocol = {"version": VERSION, "steps": steps, "negative_scale": NEGATIVE_SCALE, "open": OPEN}
    results = job.results("steering", protocol)
    samplers = {role: _sampler(job, role, n) for role, n in steps.items()}
    if not all(results.has(role, "guidance") for role in steps):
        for role, scores in _guidance_metrics(samplers, job.eval_set).items():
            results.add(role, "guidance", row={"scales": scores})
    samplers[NAG] = _sampler(job, "student", steps["student"], method="nag")
    for role, sample in samplers.items():
        if not results.has(role, "negative"):
            results.add(role, "negative", row=_negative_metrics(sample, job.eval_set))
    return results.content()


def _sampler(job: EvalJob, role: str, steps: int, method: str = "guidance") -> Sampler:
    def sample(
        prompts: Sequence[str], seeds: Sequence[int], guidance: float, negative: str = ""
    ) -> Tensor:
        clips = job.pipe(
            list(prompts),
            num_inference_steps=steps,
            guidance_scale=guidance,
            negative_prompt=negative,
            negative_prompt_method=method,
            seed=list(seeds),
            use_teacher=role == "teacher",
            batch_size=job.batch_size,
            complete_prompt=False,
        )
        return torch.from_numpy(clips.frames)

    return sample


def _guidance_metrics(
    samplers: dict[str, Sampler], eval_set: EvalSet
) -> dict[str, dict[str, dict]]:
    """By role and scale."""
    found: dict[str, dict[str, dict]] = {role: {} for role in samplers}
    first: dict[str, Tensor] = {}
    attributes = eval_set.lpc.attributes
    for scale in SCALES:
        changes = {}
        for role, sample in samplers.items():
            frames = sample(eval_set.captions, eval_set.seeds, scale)
            changes[role] = frames.int() - first.setdefault(role, frames).int()
            grades = adherence.grade(eval_set.questions, frames, attributes)
            found[role][f"{scale:g}"] = {
                "adherence": adherence.summarize_grades(grades, attributes)["score"],
                "moved": float(changes[role].abs().double().mean()),
            }
        if scale != SCALES[0]:
            student, teacher = (changes[r].double().flatten(1) for r in ("student", "teacher"))
            cosine = torch.nn.functional.cosine_similarity(student, teacher).mean()
            found["student"][f"{scale:g}"]["cosine"] = float(cosine)
    return found


def _negative_metrics(sample: Sampler, eval_set: EvalSet) -> dict[str, float]:
    """Share of clips that keep the value of `OPEN` they show, by what the negative prompt names."""
    lpc, values = eval_set.lpc, list(eval_set.lpc.words[OPEN])
    rngs = (np.random.default_rng([eval_set.seed, i, 4]) for i in range(eval_set.count))
    prompts = [
        diversity.partial_caption(lpc, c, [OPEN], rng)
        for c, rng in zip(eval_set.combinations, rngs, strict=True)
    ]
    questions = [adherence.attribute_questions(lpc, c, [OPEN])[OPEN] for c in eval_set.combinations]

    def values_in(frames: Tensor, clips: Sequence[int]) -> list[int]:
        pairs = zip(clips, frames.numpy(), strict=True)
        return [questions[i].nearest_value(clip) for i, clip in pairs]

    everything = range(eval_set.count)
    before = values_in(sample(prompts, eval_set.seeds, NEGATIVE_SCALE), everything)
    kept = {}
    for kind, offset in (("named", 0), ("another", 1)):
        same = 0
        for value, word in enumerate(values):
            clips = [i for i in everything if (before[i] + offset) % len(values) == value]
            if clips:
                negative = f"{lpc.words[OPEN][word]['phrases'][0]} {OPEN}"
                texts, seeds = [prompts[i] for i in clips], [eval_set.seeds[i] for i in clips]
                after = values_in(sample(texts, seeds, NEGATIVE_SCALE, negative), clips)
                same += sum(a == before[i] for a, i in zip(after, clips, strict=True))
        kept[kind] = same / eval_set.count
    return kept
