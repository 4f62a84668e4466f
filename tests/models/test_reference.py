"""Our layers compute what timm's do, with the same weights, where both compute the same."""

import pytest
import torch
from torch import Tensor, nn

from vidcm.models.attention import Attention
from vidcm.models.dit import Block

pytestmark = pytest.mark.timm
WIDTH, HEADS, CONTEXT, TOKENS = 48, 3, 11, 7


def copy_attention(ours: Attention, theirs: nn.Module) -> None:
    qkv = torch.cat([ours.queries.weight, ours.keys_values.weight])
    theirs.load_state_dict(
        {
            "qkv.weight": qkv,
            "q_norm.weight": ours.query_norm.weight,
            "k_norm.weight": ours.key_norm.weight,
            "proj.weight": ours.out.weight,
            "proj.bias": ours.out.bias,
        }
    )


def shaken(module: nn.Module) -> nn.Module:
    """Every weight at random, the norms' too."""
    for p in module.parameters():
        nn.init.normal_(p, std=0.3)
    return module.double().requires_grad_(False)


def no_turn() -> Tensor:
    """Angles of a rotary embedding that leaves queries and keys alone."""
    return torch.zeros(TOKENS, WIDTH // HEADS // 2, dtype=torch.float64)


def test_self_attention_is_timm_s():
    from timm.layers.attention import Attention as Reference

    ours = shaken(Attention(WIDTH, HEADS))
    theirs = Reference(WIDTH, HEADS, qk_norm=True, norm_layer=nn.RMSNorm).double()
    theirs.q_norm.eps = theirs.k_norm.eps = ours.query_norm.eps
    copy_attention(ours, theirs)
    x = torch.randn(2, TOKENS, WIDTH, dtype=torch.float64)
    torch.testing.assert_close(ours(x, angles=no_turn()), theirs(x))


def test_a_block_is_timm_s_with_its_modulation_as_norms_and_layer_scale():
    from timm.models.vision_transformer import Block as Reference

    ours = shaken(Block(WIDTH, HEADS, CONTEXT, 3.0))
    theirs = Reference(
        WIDTH,
        HEADS,
        mlp_ratio=3.0,
        qk_norm=True,
        init_values=1.0,  # has a scale per channel
        act_layer=lambda: nn.GELU("tanh"),
        norm_layer=nn.RMSNorm,
    ).double()
    theirs.attn.q_norm.eps = theirs.attn.k_norm.eps = ours.attention.query_norm.eps
    theirs.norm1, theirs.norm2 = (nn.LayerNorm(WIDTH, dtype=torch.float64) for _ in range(2))
    copy_attention(ours.attention, theirs.attn)
    theirs.mlp.fc1.load_state_dict(ours.mlp[0].state_dict())
    theirs.mlp.fc2.load_state_dict(ours.mlp[2].state_dict())

    modulation = torch.randn(9, WIDTH, dtype=torch.float64)
    modulation[5] = -ours.offset[5]  # the gate of the text, which timm's block has not
    parts = modulation + ours.offset
    for norm, scale, (shift, factor, gate) in (
        (theirs.norm1, theirs.ls1, parts[0:3]),
        (theirs.norm2, theirs.ls2, parts[6:9]),
    ):
        norm.load_state_dict({"weight": 1 + factor, "bias": shift})
        scale.load_state_dict({"gamma": gate})

    x = torch.randn(2, TOKENS, WIDTH, dtype=torch.float64)
    context = torch.randn(2, 5, CONTEXT, dtype=torch.float64)
    mask = torch.ones(2, 5, dtype=torch.bool)
    out = ours(x, modulation.flatten().expand(2, 1, -1), context, mask, no_turn())
    torch.testing.assert_close(out, theirs(x))
