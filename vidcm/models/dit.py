"""A text-conditioned diffusion transformer on spacetime patches.

adaLN-zero (Peebles & Xie 2023, arXiv 2212.09748) with one shared modulation per time and a learnt
offset per block (PixArt-alpha, arXiv 2310.00426, "adaLN-single"), QK-RMSNorm, three-axis rotary
embedding, text by cross-attention. A gated skip takes the noisy patches straight to the output, so
that the tokens may be narrower than the noise of a patch (which a velocity holds whole; compare Li
& He 2025, arXiv 2511.13720). Time may differ per frame: `(b,)` or `(b, t)`.
"""

from collections.abc import Sequence
from functools import partial

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from vidcm.denoiser import Cond
from vidcm.errors import UsageError
from vidcm.models.attention import Attention
from vidcm.models.embed import ScalarEmbedding
from vidcm.models.rope import rotary


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Parameter-free layer norm, then the modulation."""
    return F.layer_norm(x, x.shape[-1:]) * (1 + scale) + shift


class Block(nn.Module):
    """Self-attention over spacetime, cross-attention to text, MLP; all gates start at zero."""

    def __init__(self, width: int, heads: int, context: int, ratio: float):
        super().__init__()
        hidden = int(width * ratio)
        self.attention = Attention(width, heads)
        self.text = Attention(width, heads, context)
        self.mlp = nn.Sequential(
            nn.Linear(width, hidden), nn.GELU("tanh"), nn.Linear(hidden, width)
        )
        self.offset = nn.Parameter(torch.zeros(9, width))

    def forward(
        self, x: Tensor, modulation: Tensor, context: Tensor, mask: Tensor, angles: Tensor
    ) -> Tensor:
        parts = (modulation.unflatten(-1, (9, -1)) + self.offset).unbind(-2)
        for i, branch in enumerate(
            (
                lambda h: self.attention(h, angles=angles),
                lambda h: self.text(h, context, mask),
                self.mlp,
            )
        ):
            shift, scale, gate = parts[3 * i : 3 * i + 3]
            x = x + gate * branch(modulate(x, shift, scale))
        return x


class DiT(nn.Module):
    """channels: of the latents; context: width of the text tokens (both given by the denoiser).
    patch: `(t, h, w)` latents per token. guided: takes a guidance scale as an input (a student).
    two_times: takes a second time, that which a jump ends at; starts deaf to it. The attribute
    `checkpointing`: compute blocks anew in the backward pass rather than keep what is inside them.

    Raises UsageError for a size that is not above 0, when heads do not divide width, the head is not
    a multiple of 16, or a shape does not divide into patches.
    """

    checkpointing = False

    def __init__(
        self,
        channels: int,
        context: int,
        width: int = 256,
        depth: int = 10,
        heads: int = 4,
        patch: Sequence[int] = (1, 2, 2),
        ratio: float = 4.0,
        guided: bool = False,
        two_times: bool = False,
    ):
        super().__init__()
        if min(width, depth, heads, channels) < 1 or ratio <= 0:
            raise UsageError(
                f"width {width}, depth {depth}, heads {heads}, channels {channels}, ratio {ratio}: "
                "all must be above 0"
            )
        if len(patch) != 3 or min(patch) < 1:
            raise UsageError(f"patch {list(patch)} is not [frames, height, width], each at least 1")
        if width % heads or width // heads % 16:
            raise UsageError(
                f"width {width} over {heads} heads: a head must be a multiple of 16 wide"
            )
        self.patch, self.heads, self.width = tuple(patch), heads, width
        pt, ph, pw = self.patch
        self.embed = nn.Linear(channels * pt * ph * pw, width)
        self.time = ScalarEmbedding(width)
        self.guidance = ScalarEmbedding(width, top=8.0, zero=True) if guided else None
        self.span = ScalarEmbedding(width, zero=True) if two_times else None
        self.modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 9 * width))
        self.text_norm = nn.RMSNorm(context, eps=1e-6)
        self.pool = nn.Linear(context, width)
        self.blocks = nn.ModuleList(Block(width, heads, context, ratio) for _ in range(depth))
        size = channels * pt * ph * pw
        self.head_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width + size))
        hidden = max(width, size)  # narrow tokens span too little of a wide patch linearly
        self.head = nn.Sequential(
            nn.Linear(width, hidden), nn.GELU("tanh"), nn.Linear(hidden, size)
        )
        for layer in (self.modulation[-1], self.head_modulation[-1], self.head[-1]):
            for parameter in layer.parameters():
                nn.init.zeros_(parameter)

    def forward(self, x: Tensor, time: Tensor, cond: Cond, time_to: Tensor | None = None) -> Tensor:
        pt, ph, pw = self.patch
        frames, height, width = (n // p for n, p in zip(x.shape[2:], self.patch, strict=True))
        if (frames * pt, height * ph, width * pw) != tuple(x.shape[2:]):
            raise UsageError(
                f"latents of {tuple(x.shape[2:])} do not divide into patches of {self.patch}"
            )
        pattern = "b c (t i) (h j) (w k) -> b (t h w) (c i j k)"
        patches = rearrange(x, pattern, i=pt, j=ph, k=pw).to(self.embed.weight.dtype)
        tokens = self.embed(patches)
        text = self.text_norm(cond.tokens)
        state = self._state(time, time_to, cond, text, frames, height * width)
        modulation = self.modulation(state)
        angles = rotary(frames, height, width, self.width // self.heads, x.device)
        again = self.checkpointing and torch.is_grad_enabled()
        for block in self.blocks:
            run = partial(checkpoint, block, use_reentrant=False) if again else block
            tokens = run(tokens, modulation, text, cond.mask, angles)
        sizes = [self.width, self.width, patches.shape[-1]]
        shift, scale, skip = self.head_modulation(state).split(sizes, dim=-1)
        out = self.head(modulate(tokens, shift, scale)) + skip * patches
        pattern = "b (t h w) (c i j k) -> b c (t i) (h j) (w k)"
        return rearrange(out, pattern, t=frames, h=height, w=width, i=pt, j=ph, k=pw)

    def _state(
        self,
        time: Tensor,
        time_to: Tensor | None,
        cond: Cond,
        text: Tensor,
        frames: int,
        area: int,
    ) -> Tensor:
        """What modulates: times, pooled text and guidance, `(b, 1, d)` or per token `(b, n, d)`."""
        weights = cond.mask.unsqueeze(-1).to(text.dtype)
        pooled = self.pool((text * weights).sum(1) / weights.sum(1).clamp(min=1))
        if self.guidance is not None and cond.guidance is not None:
            pooled = pooled + self.guidance(cond.guidance)
        if time.ndim == 2:
            time = time[:, :: self.patch[0]]
            time_to = None if time_to is None else time_to[:, :: self.patch[0]]
        moment = self.time(time)
        if self.span is not None:
            moment = moment + self.span(time - (time if time_to is None else time_to))
        if time.ndim == 1:
            return (moment + pooled).unsqueeze(1)
        return repeat(moment, "b t d -> b (t n) d", n=area) + pooled.unsqueeze(1)
