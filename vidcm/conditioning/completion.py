"""Completing prompts before a model reads them.

Models are trained on complete captions and prompted with short ones, which leave things open; a
model asked so blends what fits. What is left open is drawn before instead (compare DALL-E 3, Betker
et al. 2023, where a language model completes prompts). Needs no torch.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

Schedule = Sequence[tuple[int, str]]


@dataclass(frozen=True)
class Completion:
    """A prompt as the model reads it.

    Attributes:
        caption: The complete sentence.
        named: attribute -> value of what the prompt names.
        drawn: The same of what was drawn.
    """

    caption: str
    named: Mapping[str, str]
    drawn: Mapping[str, str]

    @property
    def attributes(self) -> dict[str, str]:
        """All attributes."""
        return {**self.named, **self.drawn}


class PromptReader(Protocol):
    """Knows the attributes that the captions of a model have; a kind of the registry."""

    def complete(
        self, prompt: str, seed: int, before: Mapping[str, str] | None = None
    ) -> Completion:
        """Complete a prompt.

        Args:
            prompt: In anybody's words.
            seed: Of the draws.
            before: Attributes of the clip so far, which stay where the prompt names none.
        """
        ...

    def knows(self, word: str) -> bool:
        """Whether a lower-case word of a prompt is understood, or needs no understanding."""
        ...


def complete_prompts(
    reader: PromptReader | None, prompts: Sequence[str], schedule: Schedule, seeds: Sequence[int]
) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """Captions of clips, and the captions that take over along them.

    Args:
        reader: What completes them; None for prompts as they are.
        prompts: One for each clip.
        schedule: (frame, prompt) of prompts that take over along every clip.
        seeds: One for each clip.

    Returns:
        A caption for each clip, and (frame, a caption for each clip).
    """
    if reader is None:
        return list(prompts), [(frame, [prompt] * len(prompts)) for frame, prompt in schedule]
    latest = [reader.complete(p, seed) for p, seed in zip(prompts, seeds, strict=True)]
    first, later = [c.caption for c in latest], []
    for frame, prompt in sorted(schedule):
        pairs = zip(latest, seeds, strict=True)
        latest = [reader.complete(prompt, seed, c.attributes) for c, seed in pairs]
        later.append((frame, [c.caption for c in latest]))
    return first, later
