"""Prompts written by hand, beside captions in the style of the training data."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources

import numpy as np
from torch import Tensor

from vidcm.conditioning.prompts import words_of
from vidcm.lpc.adherence import Questions, attribute_questions, fill_open_attributes, grade
from vidcm.lpc.combinations import Combination
from vidcm.lpc.dataset import LPC
from vidcm.lpc.diversity import partial_caption

VERSION = 1
LEXICON_CAPTIONS = 8000


@dataclass(frozen=True)
class HandPrompt:
    """A prompt, the combination it means, and the attributes it leaves open."""

    prompt: str
    attributes: Combination
    open: list[str]


def hand_prompts_text() -> str:
    """The bundled file: one JSON object a line."""
    return resources.files("vidcm.lpc").joinpath("hand_prompts.jsonl").read_text("utf-8")


def load_hand_prompts() -> list[HandPrompt]:
    """The bundled prompts."""
    return [HandPrompt(**json.loads(line)) for line in hand_prompts_text().splitlines()]


def template_captions(lpc: LPC, prompts: Sequence[HandPrompt], seed: int) -> list[str]:
    """A training-style caption for each prompt, with the same attributes open."""
    return [
        partial_caption(lpc, p.attributes, p.open, np.random.default_rng([seed, i]))
        for i, p in enumerate(prompts)
    ]


def unseen_words(lpc: LPC, prompts: Sequence[HandPrompt]) -> tuple[int, list[str]]:
    """How many prompts have words that no training caption has, and these words."""
    known: set[str] = set()
    for i in range(LEXICON_CAPTIONS):
        rng = np.random.default_rng([0, i])
        known.update(words_of(lpc.caption(lpc.sample(rng, "train"), rng)))
    new = [{w for w in words_of(p.prompt) if w[0].isalnum()} - known for p in prompts]
    return sum(map(bool, new)), sorted(set().union(*new))


class HandPromptGrader:
    """Grades clips of the prompts; caches the questions of a combination from row to row."""

    def __init__(self, lpc: LPC, prompts: Sequence[HandPrompt]):
        self.lpc, self.prompts = lpc, prompts
        self._questions: dict[tuple[str, ...], Questions] = {}

    def __call__(self, frames: Tensor) -> np.ndarray:
        """Clips uint8 `(b t h w c)`, one per prompt -> grades `(b, attributes)`, open ones nan."""
        questions = []
        for prompt, clip in zip(self.prompts, frames.numpy(), strict=True):
            filled = fill_open_attributes(self.lpc, prompt.attributes, prompt.open, clip)
            named = [a for a in self.lpc.attributes if a not in prompt.open]
            key = (*filled.values(), *prompt.open)
            if key not in self._questions:
                self._questions[key] = attribute_questions(self.lpc, filled, named)
            questions.append(self._questions[key])
        return grade(questions, frames, self.lpc.attributes)
