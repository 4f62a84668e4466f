"""Prompts as people write them, against captions as the training data writes them."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources

import numpy as np
from torch import Tensor

from vidcm.conditioning.prompts import words_of
from vidcm.lpc.adherence import Exam, exam, mark, read_open
from vidcm.lpc.dataset import LPC, Combination
from vidcm.lpc.diversity import describe

VERSION = 1
LEXICON_CAPTIONS = 8000


@dataclass(frozen=True)
class HandPrompt:
    """A prompt, the combination it means, and the attributes it leaves open."""

    prompt: str
    attributes: Combination
    open: list[str]


def text() -> str:
    """The bundled file: one JSON object a line."""
    return resources.files("vidcm.lpc").joinpath("hand_prompts.jsonl").read_text("utf-8")


def load() -> list[HandPrompt]:
    """The bundled prompts."""
    return [HandPrompt(**json.loads(line)) for line in text().splitlines()]


def templates(lpc: LPC, prompts: Sequence[HandPrompt], seed: int) -> list[str]:
    """A training-style caption of each, that leaves the same attributes open."""
    return [
        describe(lpc, p.attributes, p.open, np.random.default_rng([seed, i]))
        for i, p in enumerate(prompts)
    ]


def unseen(lpc: LPC, prompts: Sequence[HandPrompt]) -> tuple[int, list[str]]:
    """How many prompts hold words that no training caption has, and those words."""
    known: set[str] = set()
    for i in range(LEXICON_CAPTIONS):
        rng = np.random.default_rng([0, i])
        known.update(words_of(lpc.caption(lpc.sample(rng, "train"), rng)))
    new = [{w for w in words_of(p.prompt) if w[0].isalnum()} - known for p in prompts]
    return sum(map(bool, new)), sorted(set().union(*new))


class HandMarker:
    """Marks clips of the prompts; renders of a combination are kept from row to row."""

    def __init__(self, lpc: LPC, prompts: Sequence[HandPrompt]):
        self.lpc, self.prompts = lpc, prompts
        self._exams: dict[tuple[str, ...], Exam] = {}

    def __call__(self, frames: Tensor) -> np.ndarray:
        """Clips uint8 `(b t h w c)`, one a prompt -> marks `(b, attributes)`, open ones nan."""
        exams = []
        for prompt, clip in zip(self.prompts, frames.numpy(), strict=True):
            shown = read_open(self.lpc, prompt.attributes, prompt.open, clip)
            named = [a for a in self.lpc.attributes if a not in prompt.open]
            key = (*shown.values(), *prompt.open)
            if key not in self._exams:
                self._exams[key] = exam(self.lpc, shown, named)
            exams.append(self._exams[key])
        return mark(exams, frames, self.lpc.attributes)
