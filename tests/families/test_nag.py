"""Normalized attention guidance of public networks, by their own processors."""

import pytest
import torch

from vidcm.diffusion.denoiser import Denoiser
from vidcm.errors import UsageError
from vidcm.models.nag import AttentionGuidance
from vidcm.store import load_model

PROMPTS = ["a red ball bounces left .", "a robot dances"]


@pytest.mark.parametrize("name", ["wan", "wan_5b", "anyflow", "ltx"])
def test_text_attention_is_guided_and_restored(public, name) -> None:
    teacher = load_model(public(name) / "transformer", Denoiser)
    x, t = torch.randn(2, teacher.channels, 3, 4, 4), torch.tensor([0.4, 0.9])
    processors = [getattr(m, "processor", None) for m in teacher.modules()]

    def said(model, prompts=PROMPTS):
        with torch.no_grad():
            return model.velocity(x, t, teacher.encode(prompts))

    plain, negative = said(teacher), teacher.encode(["a monkey"])
    off = teacher.guided_by_attention(negative, AttentionGuidance(scale=0.0))
    guided = teacher.guided_by_attention(negative, AttentionGuidance())
    assert torch.equal(said(off), plain)
    assert not torch.allclose(said(guided), plain, rtol=1e-3)
    same = teacher.guided_by_attention(teacher.encode([PROMPTS[0]]), AttentionGuidance())
    expected = said(teacher, [PROMPTS[0]] * 2)
    assert torch.allclose(said(same, [PROMPTS[0]] * 2), expected, atol=1e-6)
    with pytest.raises((RuntimeError, ValueError)), torch.no_grad():
        guided.velocity(x[:, :3], t, teacher.encode(PROMPTS))
    assert torch.equal(said(teacher), plain)
    assert processors == [getattr(m, "processor", None) for m in teacher.modules()]


def test_joint_attention_is_refused(public) -> None:
    teacher = load_model(public("cogvideox") / "transformer", Denoiser)
    with pytest.raises(UsageError, match="attention to text alone"):
        teacher.guided_by_attention(teacher.encode(["a monkey"]), AttentionGuidance())
