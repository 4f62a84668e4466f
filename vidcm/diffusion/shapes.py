"""Dimension legend and the one broadcast helper.

b batch, c channels, t frames (inside einops strings only), h w grid, n tokens, d width.
Video and latents are `b c t h w`; tokens are `b n d`; diffusion times are `(b,)` or `(b, t)`.
"""

from torch import Tensor


def like(t: Tensor, x: Tensor) -> Tensor:
    """A time `(b,)` or per-frame `(b, t)` shaped to multiply `x (b c t h w)` or any `(b, ...)`."""
    if t.ndim == 1:
        return t.view(-1, *[1] * (x.ndim - 1))
    return t.view(t.shape[0], 1, t.shape[1], *[1] * (x.ndim - 3))
