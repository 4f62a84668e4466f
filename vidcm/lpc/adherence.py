"""Prompt adherence against truth: which value of an attribute does a generated clip show?

Every combination has one true clip, and so has every alternative to it. For each attribute the clip
is compared with the true clips of all its values, on the pixels and frames where these differ; the
nearest (mean squared error) is the value shown. No network judges.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from vidcm.lpc.dataset import LPC, Combination

VERSION = 1
RESAMPLES = 1000


@dataclass(frozen=True)
class Question:
    """One attribute of one combination. values: k names. answer: the true one's place. where: flat
    places `(n,)` in `t h w` at which any two true clips differ. shown: uint8 `(k, n, 3)`."""

    values: list[str]
    answer: int
    where: np.ndarray
    shown: np.ndarray

    def nearest(self, frames: np.ndarray) -> int:
        """The place of the value that uint8 `(t h w 3)` shows; the answer where it ties."""
        seen = frames.reshape(-1, 3)[self.where].astype(np.int32)
        errors = [int(np.square(seen - value).sum(dtype=np.int64)) for value in self.shown]
        best = min(errors)
        return self.answer if errors[self.answer] == best else errors.index(best)


Exam = dict[str, Question]


def exam(lpc: LPC, combination: Combination, attributes: Sequence[str] | None = None) -> Exam:
    """A question for each attribute (default: all) that has alternatives that can be seen: a fall
    has one direction, and some dresses hide the legs. Renders each alternative once."""
    asked: dict[str, list[Combination]] = {}
    for name in attributes if attributes is not None else lpc.attributes:
        others = lpc.alternatives(combination, name)
        if len(others) > 1:
            asked[name] = others
    if not asked:
        return {}
    frames = lpc.render([c for others in asked.values() for c in others]).cpu().numpy()
    questions: Exam = {}
    start = 0
    for name, others in asked.items():
        clips = frames[start : start + len(others)].reshape(len(others), -1, 3)
        start += len(others)
        where = np.flatnonzero((clips != clips[:1]).any((0, 2)))
        if len(where):
            values = [c[name] for c in others]
            answer = values.index(combination[name])
            questions[name] = Question(values, answer, where.astype(np.int32), clips[:, where])
    return questions


def mark(exams: Sequence[Exam], frames: Tensor, attributes: Sequence[str]) -> np.ndarray:
    """Clips uint8 `(b t h w c)` against their exams -> float `(b, attributes)`: 1 right, 0 wrong,
    nan not asked."""
    marks = np.full((len(exams), len(attributes)), np.nan)
    for row, (questions, clip) in enumerate(zip(exams, frames.numpy(), strict=True)):
        for column, name in enumerate(attributes):
            if name in questions:
                marks[row, column] = questions[name].nearest(clip) == questions[name].answer
    return marks


def chance(exams: Sequence[Exam]) -> float:
    """The score of guessing, mean over attributes: a value drawn among those an attribute has."""
    shares: dict[str, list[float]] = {}
    for questions in exams:
        for name, question in questions.items():
            shares.setdefault(name, []).append(1 / len(question.values))
    return float(np.mean([np.mean(s) for s in shares.values()])) if shares else float("nan")


def read_open(
    lpc: LPC, combination: Combination, open_: Sequence[str], frames: np.ndarray
) -> Combination:
    """The combination with the attributes that its prompt leaves open at the values that the clip
    shows, so that they do not disturb the questions about the others."""
    for name in open_:
        question = exam(lpc, combination, [name]).get(name)
        if question:
            value = question.values[question.nearest(frames)]
            others = lpc.alternatives(combination, name)
            combination = next(c for c in others if c[name] == value)
    return combination


def summary(marks: np.ndarray, attributes: Sequence[str], seed: int = 0) -> dict:
    """Marks `(clips, attributes)` to numbers in 0..1: by attribute with a Wilson 95 % interval, and
    their mean with a bootstrap over clips (marks of one clip are not independent). `all_right`: the
    share of clips with no wrong answer."""
    by_attribute = {}
    for name, column in zip(attributes, marks.T, strict=True):
        asked = column[~np.isnan(column)]
        if len(asked):
            low, high = wilson(int(asked.sum()), len(asked))
            by_attribute[name] = {
                "score": float(asked.mean()),
                "low": low,
                "high": high,
                "asked": len(asked),
            }
    asked = ~np.isnan(marks)
    if not asked.any():
        return {"score": None, "low": None, "high": None, "all_right": None, "attributes": {}}
    used = asked.any(0)
    right, counted = np.nan_to_num(marks)[:, used], asked[:, used].astype(float)
    weights = np.random.default_rng(seed).multinomial(
        len(marks), np.full(len(marks), 1 / len(marks)), RESAMPLES
    )
    with np.errstate(invalid="ignore"):
        drawn = np.nanmean((weights @ right) / (weights @ counted), axis=1)
    low, high = np.percentile(drawn, [2.5, 97.5])
    return {
        "score": float(np.mean([a["score"] for a in by_attribute.values()])),
        "low": float(low),
        "high": float(high),
        "all_right": float(np.mean((np.nan_to_num(marks, nan=1.0) == 1).all(1))),
        "attributes": by_attribute,
    }


def wilson(right: int, asked: int, z: float = 1.959964) -> tuple[float, float]:
    """The 95 % score interval of a share (Wilson 1927)."""
    share, spread = right / asked, z * z / asked
    middle = share + spread / 2
    reach = z * np.sqrt(share * (1 - share) / asked + spread / (4 * asked))
    low, high = (middle - reach) / (1 + spread), (middle + reach) / (1 + spread)
    return float(max(low, 0.0)), float(min(high, 1.0))
