"""Prompts that carry what a frozen text tower made of them, computed ahead of training."""

import torch
from torch import Tensor

from vidcm.errors import VidcmError


class EmbeddedPrompt(str):
    """A prompt with its tokens; otherwise it is a string as any other.

    Args:
        prompt: The text.
        tokens: `(n, d)`, without the padding behind them.
    """

    tokens: Tensor

    def __new__(cls, prompt: str, tokens: Tensor) -> "EmbeddedPrompt":
        found = super().__new__(cls, prompt)
        found.tokens = tokens
        return found

    def __getnewargs__(self) -> tuple[str, Tensor]:  # of copies
        return str(self), self.tokens

    def in_memory(self) -> "EmbeddedPrompt":
        """The same, its tokens copied from the file that they are mapped from."""
        return EmbeddedPrompt(self, self.tokens.clone())


def without_padding(tokens: Tensor, mask: Tensor) -> list[Tensor]:
    """The tokens of each prompt `(n_i, d)`, without those at the end that are masked or zero.

    Args:
        tokens: `(b, n, d)`.
        mask: bool `(b, n)`, True where there is a token.

    Raises:
        VidcmError: Padding comes before a token.
    """
    places = torch.arange(1, tokens.shape[1] + 1, device=tokens.device)
    lengths = ((mask & (tokens != 0).any(-1)) * places).amax(1).tolist()
    if not all(bool(row[:n].all()) for row, n in zip(mask, lengths, strict=True)):
        raise VidcmError("the text tower puts padding before its tokens, and they cannot be cached")
    return [row[:n] for row, n in zip(tokens, lengths, strict=True)]


def with_padding(rows: list[Tensor], length: int) -> tuple[Tensor, Tensor]:
    """Tokens `(b, length, d)`, zero where there is none, and their mask `(b, length)`."""
    tokens = rows[0].new_zeros(len(rows), length, rows[0].shape[1])
    mask = torch.zeros(len(rows), length, dtype=torch.bool)
    for i, row in enumerate(rows):
        tokens[i, : len(row)] = row
        mask[i, : len(row)] = True
    return tokens, mask
