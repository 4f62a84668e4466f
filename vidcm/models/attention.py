"""Attention, in one place: every backbone's queries, keys and values meet here."""

import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from vidcm.models.rope import rotate


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """softmax(q k' / sqrt(d)) v over `(b, heads, n, d)`; mask: bool `(b, keys)`, True to attend."""
    bias = None if mask is None else mask[:, None, None, :]
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias)


class Attention(nn.Module):
    """Multi-head attention with RMS-normalised queries and keys (Dehghani et al. 2023, arXiv
    2302.05442). context: width of the keys' source for cross-attention, None for self-attention.
    """

    def __init__(self, width: int, heads: int, context: int | None = None):
        super().__init__()
        self.heads, self.self_attention = heads, context is None
        self.queries = nn.Linear(width, width, bias=False)
        self.keys_values = nn.Linear(context or width, 2 * width, bias=False)
        self.query_norm = nn.RMSNorm(width // heads, eps=1e-6)
        self.key_norm = nn.RMSNorm(width // heads, eps=1e-6)
        self.out = nn.Linear(width, width)

    def forward(
        self,
        x: Tensor,
        context: Tensor | None = None,
        mask: Tensor | None = None,
        angles: Tensor | None = None,
    ) -> Tensor:
        source = x if context is None else context
        split = "b n (heads d) -> b heads n d"
        q = self.query_norm(rearrange(self.queries(x), split, heads=self.heads))
        k, v = (
            rearrange(y, split, heads=self.heads) for y in self.keys_values(source).chunk(2, -1)
        )
        k = self.key_norm(k)
        if angles is not None:
            q, k = rotate(q, angles), rotate(k, angles)
        return self.out(rearrange(attend(q, k, v, mask), "b heads n d -> b n (heads d)"))
