"""The text tower of a run whose captions have their tokens in the latent cache."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from vidcm.conditioning.embedded import EmbeddedPrompt, with_padding
from vidcm.errors import UsageError
from vidcm.families.text import PipelineText


class CachedText(PipelineText):
    """In the place of a tower, which is never loaded: prompts are looked up.

    Args:
        tower: The tower that the tokens are of.
        prompts: Those that it knows beside prompts that carry their tokens.
        where: The cache, for messages.
    """

    def __init__(self, tower: PipelineText, prompts: Iterable[EmbeddedPrompt], where: str):
        super().__init__(tower.root, tower.family)
        self.where, self._known = where, {str(prompt): prompt for prompt in prompts}

    def check(self, prompts: Iterable[str]) -> None:
        """Raise UsageError for a prompt without tokens."""
        for prompt in prompts:
            self._embedded(prompt)

    def __call__(
        self, prompts: Sequence[str], device: torch.device | str = "cpu"
    ) -> tuple[Tensor, Tensor]:
        """As the tower; prompts without tokens raise UsageError."""
        rows = [self._embedded(prompt).tokens for prompt in prompts]
        tokens, mask = with_padding(rows, self.family.text_length)
        if not self.family.text_mask:
            mask = torch.ones_like(mask)
        return tokens.to(device).float(), mask.to(device)

    def _embedded(self, prompt: str) -> EmbeddedPrompt:
        found = prompt if isinstance(prompt, EmbeddedPrompt) else self._known.get(prompt)
        if found is None:
            raise UsageError(
                f"the latents in {self.where} hold no text tokens of the prompt {prompt[:60]!r}; "
                "encode again with --prompt for it, leave it out of preview_prompts, or set "
                "data.cached_text=false to run the text tower in training"
            )
        return found
