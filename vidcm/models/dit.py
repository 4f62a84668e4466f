"""A text-conditioned diffusion transformer on spacetime patches.

adaLN-zero (Peebles & Xie 2023, arXiv 2212.09748) with one shared modulation per time and a learnt
offset per block (PixArt-alpha, arXiv 2310.00426, "adaLN-single"), QK-RMSNorm, three-axis rotary
embedding, text by cross-attention. A gated skip takes the noisy patches straight to the output, so
that the tokens may be narrower than the noise of a patch (which a velocity holds whole; compare Li
& He 2025, arXiv 2511.13720). Time may differ per frame: `(b,)` or `(b, t)`.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from vidcm.diffusion.base import Cond
from vidcm.errors import UsageError
from vidcm.models.attention import Attention
from vidcm.models.backbone import TransformerBackbone
from vidcm.models.embed import ScalarEmbedding
from vidcm.models.nag import AttentionGuidance, GuidedAttention, view
from vidcm.models.rope import rotary
from vidcm.models.sequence_parallel import SequenceGroup, check_heads, parallelize_blocks


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


class DiT(TransformerBackbone):
    """A diffusion transformer on spacetime patches.

    The attribute `activation_checkpointing` computes blocks anew in the backward pass instead of
    keeping their activations.

    Args:
        channels: Of the latents; set by the denoiser.
        context: Width of the text tokens; set by the denoiser.
        hidden_size: Width of the tokens.
        num_layers: Number of blocks.
        num_heads: Attention heads of a block.
        patch_size: `(t, h, w)` latents per token.
        mlp_ratio: Width of an MLP over `hidden_size`.
        guidance_embed: Take a guidance scale as an input, as a student does.
        two_times: Take a second time, the target of a jump; it has no effect before training.

    Raises:
        UsageError: A size is not above 0, heads do not divide `hidden_size`, or a head is not a
            multiple of 16.
    """

    student_inputs = ("guidance", "span")

    def __init__(
        self,
        channels: int,
        context: int,
        hidden_size: int = 256,
        num_layers: int = 10,
        num_heads: int = 4,
        patch_size: Sequence[int] = (1, 2, 2),
        mlp_ratio: float = 4.0,
        guidance_embed: bool = False,
        two_times: bool = False,
    ):
        super().__init__()
        if min(hidden_size, num_layers, num_heads, channels) < 1 or mlp_ratio <= 0:
            raise UsageError(
                f"hidden_size {hidden_size}, num_layers {num_layers}, num_heads {num_heads}, "
                f"channels {channels}, mlp_ratio {mlp_ratio}: all must be above 0"
            )
        if len(patch_size) != 3 or min(patch_size) < 1:
            raise UsageError(
                f"patch_size {list(patch_size)} is not [frames, height, width], each at least 1"
            )
        if hidden_size % num_heads or hidden_size // num_heads % 16:
            raise UsageError(
                f"hidden_size {hidden_size} over {num_heads} heads: a head must be a multiple of "
                "16 wide"
            )
        self.patch_size = tuple(patch_size)
        self.num_heads, self.hidden_size = num_heads, hidden_size
        pt, ph, pw = self.patch_size
        self.embed = nn.Linear(channels * pt * ph * pw, hidden_size)
        self.time = ScalarEmbedding(hidden_size)
        self.guidance = ScalarEmbedding(hidden_size, top=8.0, zero=True) if guidance_embed else None
        self.span = ScalarEmbedding(hidden_size, zero=True) if two_times else None
        self.modulation = nn.Sequential(nn.SiLU(), nn.Linear(hidden_size, 9 * hidden_size))
        self.text_norm = nn.RMSNorm(context, eps=1e-6)
        self.pool = nn.Linear(context, hidden_size)
        self.blocks = nn.ModuleList(
            Block(hidden_size, num_heads, context, mlp_ratio) for _ in range(num_layers)
        )
        size = channels * pt * ph * pw
        self.head_modulation = nn.Sequential(
            nn.SiLU(), nn.Linear(hidden_size, 2 * hidden_size + size)
        )
        hidden = max(hidden_size, size)  # narrow tokens span too little of a wide patch linearly
        self.head = nn.Sequential(
            nn.Linear(hidden_size, hidden), nn.GELU("tanh"), nn.Linear(hidden, size)
        )
        for layer in (self.modulation[-1], self.head_modulation[-1], self.head[-1]):
            for parameter in layer.parameters():
                nn.init.zeros_(parameter)

    def forward(self, x: Tensor, time: Tensor, cond: Cond, time_to: Tensor | None = None) -> Tensor:
        pt, ph, pw = self.patch_size
        frames, height, width = (n // p for n, p in zip(x.shape[2:], self.patch_size, strict=True))
        if (frames * pt, height * ph, width * pw) != tuple(x.shape[2:]):
            raise UsageError(
                f"latents of {tuple(x.shape[2:])} do not divide into patches of {self.patch_size}"
            )
        pattern = "b c (t i) (h j) (w k) -> b (t h w) (c i j k)"
        patches = rearrange(x, pattern, i=pt, j=ph, k=pw).to(self.embed.weight.dtype)
        tokens = self.embed(patches)
        text = self.text_norm(cond.tokens)
        state = self._state(time, time_to, cond, text, frames, height * width)
        modulation = self.modulation(state)
        angles = rotary(frames, height, width, self.hidden_size // self.num_heads, x.device)
        again = self.activation_checkpointing and torch.is_grad_enabled()
        for block in self.blocks:
            run = partial(checkpoint, block, use_reentrant=False) if again else block
            tokens = run(tokens, modulation, text, cond.mask, angles)
        sizes = [self.hidden_size, self.hidden_size, patches.shape[-1]]
        shift, scale, skip = self.head_modulation(state).split(sizes, dim=-1)
        out = self.head(modulate(tokens, shift, scale)) + skip * patches
        pattern = "b (t h w) (c i j k) -> b c (t i) (h j) (w k)"
        return rearrange(out, pattern, t=frames, h=height, w=width, i=pt, j=ph, k=pw)

    def guided_by_attention(self, negative: Cond, guidance: AttentionGuidance) -> nn.Module:
        blocks = {}
        for name, block in self.blocks.named_children():
            attention: Any = block.text
            text: Any = GuidedAttention(
                attention, self.text_norm, negative.tokens, negative.mask, guidance
            )
            blocks[name] = view(block, text=text)
        return view(self, blocks=view(self.blocks, **blocks))

    def parallelize(self, group: SequenceGroup) -> None:
        check_heads(self.num_heads, group)
        for block in self.blocks:
            attention: Any = block.attention
            attention.attend = group.attend
        parallelize_blocks(self.blocks, group, _own_inputs)

    def _state(
        self, time: Tensor, time_to: Tensor | None, cond: Cond, text: Tensor, frames: int, area: int
    ) -> Tensor:
        """What modulates: times, pooled text and guidance, `(b, 1, d)` or per token `(b, n, d)`."""
        weights = cond.mask.unsqueeze(-1).to(text.dtype)
        pooled = self.pool((text * weights).sum(1) / weights.sum(1).clamp(min=1))
        if self.guidance is not None and cond.guidance_scale is not None:
            pooled = pooled + self.guidance(cond.guidance_scale)
        if time.ndim == 2:
            time = time[:, :: self.patch_size[0]]
            time_to = None if time_to is None else time_to[:, :: self.patch_size[0]]
        moment = self.time(time)
        if self.span is not None:
            moment = moment + self.span(time - (time if time_to is None else time_to))
        if time.ndim == 1:
            return (moment + pooled).unsqueeze(1)
        return repeat(moment, "b t d -> b (t n) d", n=area) + pooled.unsqueeze(1)


def _own_inputs(group: SequenceGroup, inputs: tuple) -> tuple:
    """Modulation, text, mask and angles of a block, for this rank's tokens."""
    modulation, text, mask, angles = inputs
    if modulation.shape[1] > 1:  # of each token
        modulation = group.part(modulation, 1)
    return modulation, text, mask, group.part(angles, 0)
