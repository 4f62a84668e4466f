"""Normalized attention guidance: the formula, its limits, and networks that stay as they are."""

import pytest
import tiny
import torch

from vidcm.diffusion.denoiser import Denoiser
from vidcm.errors import UsageError
from vidcm.models.nag import AttentionGuidance
from vidcm.registry import build

X = torch.randn(2, 5, 3, 2, 4, generator=torch.Generator().manual_seed(1))
T = torch.tensor([0.3, 0.9])


@pytest.fixture
def student() -> Denoiser:
    torch.manual_seed(0)
    model = build("model", tiny.denoiser(guidance_embed=True))
    return tiny.shaken(model, 0.2).requires_grad_(False)  # type: ignore[return-value]


def said(model: Denoiser, *prompts: str) -> torch.Tensor:
    return model.velocity(X, T, model.encode(prompts, torch.tensor([2.0, 3.0])))


def test_the_formula_by_hand() -> None:
    guidance = AttentionGuidance(scale=2.0, tau=1.5, alpha=0.25)
    p, n = torch.tensor([[[3.0, -1.0]]]), torch.tensor([[[1.0, 0.0]]])
    # g = p + 2 (p - n) = (7, -3): L1 norm 10 of at most 1.5 * 4 = 6
    expected = 0.25 * torch.tensor([7.0, -3.0]) * 0.6 + 0.75 * p[0, 0]
    assert torch.allclose(guidance(p, n)[0, 0], expected)
    small = AttentionGuidance(scale=0.1, tau=2.5, alpha=1.0)
    assert torch.allclose(small(p, n), p + 0.1 * (p - n))  # below the limit nothing is scaled
    assert torch.equal(guidance(p, p), p)
    zero = torch.zeros_like(p)
    assert torch.equal(guidance(zero, n), zero)


def test_it_is_the_network_itself_where_it_is_off(student: Denoiser) -> None:
    plain = said(student, "an orc walks", "a man")
    for off in (AttentionGuidance(scale=0.0), AttentionGuidance(alpha=0.0)):
        guided = student.guided_by_attention(student.encode(["a woman"]), off)
        assert torch.equal(said(guided, "an orc walks", "a man"), plain)
    same = student.guided_by_attention(student.encode(["an orc walks"]), AttentionGuidance())
    twice = ["an orc walks"] * 2
    assert torch.allclose(said(same, *twice), said(student, *twice), atol=1e-4)


def test_a_view_shares_weights_and_leaves_the_network_alone(student: Denoiser) -> None:
    before = said(student, "an orc walks", "a man")
    guided = student.guided_by_attention(student.encode(["a woman runs"]), AttentionGuidance())
    moved = said(guided, "an orc walks", "a man")
    assert (moved - before).abs().max() > 1e-3 * before.abs().max()
    assert torch.equal(said(student, "an orc walks", "a man"), before)
    with pytest.raises(RuntimeError):
        guided.velocity(X[:, :3], T, student.encode(["an orc", "a man"], T))
    assert torch.equal(said(student, "an orc walks", "a man"), before)
    ours = {p.data_ptr() for p in student.parameters()}
    assert {p.data_ptr() for p in guided.parameters()} == ours
    student.backbone.blocks[0].text.out.weight.add_(0.1)
    assert not torch.equal(said(guided, "an orc walks", "a man"), moved)


def test_strength_moves_further(student: Denoiser) -> None:
    plain, negative = said(student, "an orc walks", "a man"), student.encode(["a woman runs"])
    guidances = [AttentionGuidance(scale=s, tau=100.0) for s in (0.5, 1.0, 4.0)]
    moves = [
        (said(student.guided_by_attention(negative, g), "an orc walks", "a man") - plain).norm()
        for g in guidances
    ]
    assert moves[0] < moves[1] < moves[2]


def test_a_pipeline_uses_it_without_further_evaluations(tmp_path) -> None:
    pipe = tiny.load(tmp_path)
    call = dict(num_inference_steps=2, guidance_scale=2.0, seed=3)
    plain = pipe("an orc walks", **call)
    nag = pipe("an orc walks", negative_prompt="a man", negative_prompt_method="nag", **call)
    today = pipe("an orc walks", negative_prompt="a man", **call)
    assert (plain.evaluations, nag.evaluations, today.evaluations) == (2, 2, 6)
    assert (nag.frames != plain.frames).any() and (nag.frames != today.frames).any()
    off = pipe("an orc walks", negative_prompt="a man", nag_scale=0.0, **call)
    assert (off.frames == plain.frames).all()
    one = {**call, "guidance_scale": 1.0}
    there = pipe("an orc walks", negative_prompt="a man", negative_prompt_method="nag", **one)
    assert (there.frames != pipe("an orc walks", **one).frames).any()
    for options, text in (
        ({"negative_prompt_method": "off"}, "use guidance, nag"),
        ({"negative_prompt_method": "guidance", "nag_scale": 2.0}, "drop one"),
        ({"negative_prompt_method": "nag", "use_teacher": True}, "for students"),
        ({"nag_scale": -1.0}, "nag_scale is -1"),
    ):
        with pytest.raises(UsageError, match=text):
            pipe("an orc walks", negative_prompt="a man", **options)
