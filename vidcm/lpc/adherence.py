"""Prompt adherence against true clips: which value of an attribute does a generated clip show?

Every combination of attributes has one true clip, and so has every alternative to it. For each
attribute a clip is compared with the true clips of all values, at the pixels where these differ;
the nearest (mean squared error) is the value it shows. No network judges.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from vidcm.lpc.combinations import Combination
from vidcm.lpc.dataset import LPC

VERSION = 1
RESAMPLES = 1000


@dataclass(frozen=True)
class AttributeQuestion:
    """Which value of one attribute does a clip of one combination show?

    Attributes:
        values: names of the k possible values.
        answer: index of the true value.
        positions: flat indices `(n,)` into `t h w` at which any two true clips differ.
        pixels: uint8 `(k, n, 3)`, the true clips at these positions.
    """

    values: list[str]
    answer: int
    positions: np.ndarray
    pixels: np.ndarray

    def nearest_value(self, frames: np.ndarray) -> int:
        """Index of the value that uint8 `(t h w 3)` shows; the answer where it ties."""
        seen = frames.reshape(-1, 3)[self.positions].astype(np.int32)
        errors = [int(np.square(seen - value).sum(dtype=np.int64)) for value in self.pixels]
        best = min(errors)
        return self.answer if errors[self.answer] == best else errors.index(best)


Questions = dict[str, AttributeQuestion]


def attribute_questions(
    lpc: LPC, combination: Combination, attributes: Sequence[str] | None = None
) -> Questions:
    """A question for each attribute whose alternatives differ in some pixel.

    A fall has one direction, and some dresses hide the legs: such attributes have no question.
    Each alternative is rendered once.

    Args:
        lpc: the dataset.
        combination: of the true clip.
        attributes: names (default: all).
    """
    alternatives: dict[str, list[Combination]] = {}
    for name in attributes if attributes is not None else lpc.attributes:
        others = lpc.alternatives(combination, name)
        if len(others) > 1:
            alternatives[name] = others
    if not alternatives:
        return {}
    frames = lpc.render([c for others in alternatives.values() for c in others]).cpu().numpy()
    questions: Questions = {}
    start = 0
    for name, others in alternatives.items():
        clips = frames[start : start + len(others)].reshape(len(others), -1, 3)
        start += len(others)
        positions = np.flatnonzero((clips != clips[:1]).any((0, 2)))
        if len(positions):
            values = [c[name] for c in others]
            answer = values.index(combination[name])
            pixels = clips[:, positions]
            questions[name] = AttributeQuestion(values, answer, positions.astype(np.int32), pixels)
    return questions


def grade(questions: Sequence[Questions], frames: Tensor, attributes: Sequence[str]) -> np.ndarray:
    """Grade clips by the questions of their combinations.

    Args:
        questions: of each clip.
        frames: uint8 `(b t h w c)`.
        attributes: names of the columns.

    Returns:
        `(b, attributes)`: 1 correct, 0 wrong, nan without a question.
    """
    grades = np.full((len(questions), len(attributes)), np.nan)
    for row, (of_clip, clip) in enumerate(zip(questions, frames.numpy(), strict=True)):
        for column, name in enumerate(attributes):
            if name in of_clip:
                grades[row, column] = of_clip[name].nearest_value(clip) == of_clip[name].answer
    return grades


def chance_score(questions: Sequence[Questions]) -> float:
    """Expected score of drawing values uniformly, mean over attributes."""
    shares: dict[str, list[float]] = {}
    for of_clip in questions:
        for name, question in of_clip.items():
            shares.setdefault(name, []).append(1 / len(question.values))
    return float(np.mean([np.mean(s) for s in shares.values()])) if shares else float("nan")


def fill_open_attributes(
    lpc: LPC, combination: Combination, open_attributes: Sequence[str], frames: np.ndarray
) -> Combination:
    """Replace attributes that a prompt leaves open by the values that the clip shows.

    Otherwise they would disturb the questions about the others.

    Args:
        lpc: the dataset.
        combination: that the prompt means.
        open_attributes: names of attributes that it leaves open.
        frames: the clip, uint8 `(t h w 3)`.
    """
    for name in open_attributes:
        question = attribute_questions(lpc, combination, [name]).get(name)
        if question:
            value = question.values[question.nearest_value(frames)]
            others = lpc.alternatives(combination, name)
            combination = next(c for c in others if c[name] == value)
    return combination


def summarize_grades(grades: np.ndarray, attributes: Sequence[str], seed: int = 0) -> dict:
    """Scores in 0..1 by attribute and their mean.

    Attributes get Wilson 95 % intervals; their mean gets a bootstrap over clips, since the grades
    of one clip are not independent.

    Args:
        grades: `(clips, attributes)` from `grade`.
        attributes: names of the columns.
        seed: of the bootstrap.

    Returns:
        `score`, `low`, `high`; `all_correct`, the share of clips without a wrong answer; and
        `attributes`, by name.
    """
    by_attribute = {}
    for name, column in zip(attributes, grades.T, strict=True):
        answers = column[~np.isnan(column)]
        if len(answers):
            low, high = wilson(int(answers.sum()), len(answers))
            by_attribute[name] = {
                "score": float(answers.mean()),
                "low": low,
                "high": high,
                "questions": len(answers),
            }
    graded = ~np.isnan(grades)
    if not graded.any():
        return {"score": None, "low": None, "high": None, "all_correct": None, "attributes": {}}
    used = graded.any(0)
    correct, counted = np.nan_to_num(grades)[:, used], graded[:, used].astype(float)
    weights = np.random.default_rng(seed).multinomial(
        len(grades), np.full(len(grades), 1 / len(grades)), RESAMPLES
    )
    with np.errstate(invalid="ignore"):
        drawn = np.nanmean((weights @ correct) / (weights @ counted), axis=1)
    low, high = np.percentile(drawn, [2.5, 97.5])
    return {
        "score": float(np.mean([a["score"] for a in by_attribute.values()])),
        "low": float(low),
        "high": float(high),
        "all_correct": float(np.mean((np.nan_to_num(grades, nan=1.0) == 1).all(1))),
        "attributes": by_attribute,
    }


def wilson(successes: int, trials: int, z: float = 1.959964) -> tuple[float, float]:
    """Score interval of a share, 95 % by default (Wilson 1927)."""
    share, spread = successes / trials, z * z / trials
    middle = share + spread / 2
    reach = z * np.sqrt(share * (1 - share) / trials + spread / (4 * trials))
    low, high = (middle - reach) / (1 + spread), (middle + reach) / (1 + spread)
    return float(max(low, 0.0)), float(min(high, 1.0))
