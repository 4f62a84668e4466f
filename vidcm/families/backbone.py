"""diffusers' transformers with the call of our backbones."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from vidcm.diffusion.base import Cond
from vidcm.errors import UsageError
from vidcm.families.attention import guided, rebound, ulysses, with_attend
from vidcm.families.base import Family
from vidcm.models.backbone import TransformerBackbone
from vidcm.models.nag import AttentionGuidance, view
from vidcm.models.sequence_parallel import SequenceGroup, check_heads, parallelize_blocks


class PublicBackbone(TransformerBackbone):
    """diffusers' transformer with the call of our backbones.

    Args:
        transformer: The module.
        family: Its family.
    """

    guidance = None  # public architectures take no guidance scale

    def __init__(self, transformer: Any, family: Family):
        super().__init__()
        self.transformer, self.family = transformer, family
        self.patch_size = family.patch_size(dict(transformer.config))
        config = transformer.config
        self.hidden_size = config.num_attention_heads * config.attention_head_dim
        with_attend(transformer)

    @property
    def blocks(self) -> nn.ModuleList:
        return getattr(self.transformer, self.family.blocks)

    @property
    def activation_checkpointing(self) -> bool:
        return self.transformer.gradient_checkpointing

    @activation_checkpointing.setter
    def activation_checkpointing(self, on: bool) -> None:
        network = self.transformer
        (network.enable_gradient_checkpointing if on else network.disable_gradient_checkpointing)()

    def forward(self, x: Tensor, time: Tensor, cond: Cond, time_to: Tensor | None = None) -> Tensor:
        layers = (m for m in self.transformer.modules() if isinstance(m, nn.Linear | nn.Conv3d))
        dtype = next(layers).weight.dtype  # bf16 under DeepSpeed, and of a frozen teacher
        cond = replace(cond, tokens=cond.tokens.to(dtype))
        return self.family.forward(self.transformer, x.to(dtype), time, cond, time_to)

    def parallelize(self, group: SequenceGroup) -> None:
        if not self.family.splits:
            raise UsageError(
                f"sequence_parallel cannot split the tokens of {self.family.name} models; use 1"
            )
        check_heads(self.transformer.config.num_attention_heads, group)
        for block in self.blocks:
            attention: Any = block.attn1
            attention.processor = rebound(attention.processor, ulysses(group))
        parallelize_blocks(self.blocks, group, self.family.own_inputs)

    def guided_by_attention(self, negative: Cond, guidance: AttentionGuidance) -> nn.Module:
        name = self.family.text_attention
        if name is None:
            return super().guided_by_attention(negative, guidance)
        attention = guided(guidance, negative.tokens.shape[1])
        parts = {}
        for part in self.family.text_blocks:
            blocks, found = getattr(self.transformer, part), {}
            for place, block in blocks.named_children():
                to_text: Any = view(getattr(block, name))
                if getattr(to_text, "add_k_proj", None) is not None:
                    raise UsageError(
                        "normalized attention guidance is not for networks that attend to a "
                        "picture beside the text"
                    )
                to_text.processor = rebound(to_text.processor, attention)
                found[place] = view(block, **{name: to_text})
            parts[part] = view(blocks, **found)
        transformer = view(self.transformer, **parts)
        return TwoTexts(view(self, transformer=transformer), negative)


class TwoTexts(nn.Module):
    """A backbone that reads a second text behind the first.

    Args:
        backbone: It tells them apart.
        second: The second text, one sample.
    """

    def __init__(self, backbone: PublicBackbone, second: Cond):
        super().__init__()
        self.backbone, self.second = backbone, second

    def forward(self, x: Tensor, time: Tensor, cond: Cond, time_to: Tensor | None = None) -> Tensor:
        rows = len(cond)
        pairs = ((cond.tokens, self.second.tokens), (cond.mask, self.second.mask))
        tokens, mask = (torch.cat([a, b.expand(rows, *b.shape[1:])], 1) for a, b in pairs)
        return self.backbone(x, time, replace(cond, tokens=tokens, mask=mask), time_to)
