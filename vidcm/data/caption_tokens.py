"""Captions through a frozen text tower, for the shards of a latent cache."""

from collections.abc import Sequence
from itertools import chain
from typing import Any

import torch

from vidcm.conditioning.embedded import EmbeddedPrompt, without_padding
from vidcm.families.text import PipelineText

TEXTS = 8  # through the tower at a time; fixed, so that a shard depends on its captions alone


class CaptionTokens:
    """Gives captions their tokens, each distinct one of a call once.

    Args:
        tower: The tower; it is loaded now.
        device: Where it runs.
        prompts: Of previews and the like, which training may need beside captions; the empty
            prompt is always among them.

    Attributes:
        key: What the tokens depend on and how they are stored, for plan and index.
        prompts: These prompts with their tokens.
    """

    def __init__(self, tower: PipelineText, device: torch.device, prompts: Sequence[str] = ()):
        self._tower, self._device = tower, device
        self._dtype = tower.dtype(device)
        self.prompts = self._embedded(list(dict.fromkeys(["", *prompts])))
        self.key: dict[str, Any] = {
            "tower": tower.fingerprint(),
            "length": tower.family.text_length,
            "width": self.prompts[0].tokens.shape[1],
            "dtype": str(self._dtype).removeprefix("torch."),
            "prompts": [str(prompt) for prompt in self.prompts],
        }

    def __call__(self, captions: Sequence[Sequence[str]]) -> list[list[EmbeddedPrompt]]:
        """The captions of each clip with their tokens."""
        known = {str(prompt): prompt for prompt in self.prompts}
        distinct = dict.fromkeys(c for c in chain.from_iterable(captions) if c not in known)
        known |= {str(prompt): prompt for prompt in self._embedded(list(distinct))}
        return [[known[caption] for caption in group] for group in captions]

    @torch.no_grad()
    def _embedded(self, prompts: Sequence[str]) -> list[EmbeddedPrompt]:
        found = []
        for first in range(0, len(prompts), TEXTS):
            part = prompts[first : first + TEXTS]
            rows = without_padding(*self._tower(part, self._device))
            kept = [row.to("cpu", self._dtype, copy=True) for row in rows]
            found += map(EmbeddedPrompt, part, kept)
        return found
