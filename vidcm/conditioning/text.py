"""A small text tower, trained along with its denoiser.

A word is the sum of its hashed character n-grams and its hashed whole (Bojanowski et al. 2017,
arXiv 1607.04606): there is no vocabulary to ship, and a word never seen in training still starts
from the pieces it shares with words that were.
"""

import zlib
from collections.abc import Sequence
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from vidcm.conditioning.prompts import words_of
from vidcm.errors import UsageError
from vidcm.models.attention import Attention
from vidcm.models.rope import rotary


@lru_cache(maxsize=65536)
def ngrams(word: str, buckets: int, limit: int = 24) -> tuple[int, ...]:
    """Bucket numbers (1 up) of a word and its character 3- to 5-grams, at most `limit`."""
    marked = f"<{word[:24]}>"
    pieces = [marked] + [marked[i : i + n] for n in (3, 4, 5) for i in range(len(marked) - n + 1)]
    return tuple(zlib.crc32(p.encode()) % (buckets - 1) + 1 for p in pieces[:limit])


class HashedWords(nn.Module):
    """A text tower: prompts to tokens `(b, n, hidden_size)` and a mask `(b, n)`.

    n is the number of words of the longest prompt, at most `max_words`; the rest of a prompt is
    left out. A prompt without words is one learnt token.

    Raises:
        UsageError: The sizes make no tower.
    """

    def __init__(
        self,
        hidden_size: int = 192,
        num_layers: int = 3,
        num_heads: int = 4,
        buckets: int = 8192,
        max_words: int = 64,
    ):
        super().__init__()
        if min(hidden_size, num_heads, max_words) < 1 or num_layers < 0 or buckets < 2:
            raise UsageError(
                f"hidden_size {hidden_size}, num_heads {num_heads}, max_words {max_words}, "
                f"num_layers {num_layers}, buckets {buckets}: use at least 1, 1, 1, 0 and 2"
            )
        if hidden_size % (2 * num_heads):
            raise UsageError(
                f"hidden_size {hidden_size} over {num_heads} heads: a head must be an even number "
                "wide"
            )
        self.hidden_size, self.num_heads = hidden_size, num_heads
        self.buckets, self.max_words = buckets, max_words
        self.pieces = nn.EmbeddingBag(buckets, hidden_size, mode="mean", padding_idx=0)
        self.empty = nn.Parameter(torch.randn(hidden_size) * 0.02)
        self.blocks = nn.ModuleList(_Block(hidden_size, num_heads) for _ in range(num_layers))

    def dropped(self, prompt: str) -> list[str]:
        """The words of a prompt that lie beyond `max_words`."""
        return words_of(prompt)[self.max_words :]

    def forward(self, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        device = self.empty.device
        words = [words_of(p)[: self.max_words] for p in prompts]
        longest = max(1, *map(len, words))
        places = {"": 0}  # each different word once: a batch of captions repeats a small vocabulary
        grid = [
            [places.setdefault(w, len(places)) for w in ws] + [0] * (longest - len(ws))
            for ws in words
        ]
        bags = [torch.tensor(ngrams(w, self.buckets) if w else [0]) for w in places]
        vectors = (
            self.pieces(pad_sequence(bags, batch_first=True).to(device)) * self.hidden_size**0.5
        )
        which = torch.tensor(grid, device=device)
        x, mask = F.embedding(which, vectors), which > 0
        none = ~mask.any(1)
        first = torch.zeros_like(mask)
        first[:, 0] = none
        x = torch.where(first.unsqueeze(-1), self.empty, x)
        mask = mask | first
        angles = rotary(longest, 1, 1, self.hidden_size // self.num_heads, device)
        for block in self.blocks:
            x = block(x, mask, angles)
        return x, mask


class _Block(nn.Module):
    """Pre-norm self-attention and MLP."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.norms = nn.ModuleList(nn.RMSNorm(width, eps=1e-6) for _ in range(2))
        self.attention = Attention(width, heads)
        self.mlp = nn.Sequential(
            nn.Linear(width, 3 * width), nn.GELU("tanh"), nn.Linear(3 * width, width)
        )

    def forward(self, x: Tensor, mask: Tensor, angles: Tensor) -> Tensor:
        x = x + self.attention(self.norms[0](x), mask=mask, angles=angles)
        return x + self.mlp(self.norms[1](x))
