"""The transformer: what starts at zero, what is not read, and what only depends on differences."""

import pytest
import tiny
import torch

from vidcm.diffusion.base import Cond
from vidcm.errors import UsageError
from vidcm.models.attention import Attention, attend
from vidcm.models.dit import DiT
from vidcm.models.embed import ScalarEmbedding
from vidcm.models.rope import rotary, rotate

CHANNELS, CONTEXT = 3, 11


def dit(**options) -> DiT:
    torch.manual_seed(0)
    return DiT(
        CHANNELS,
        CONTEXT,
        **{"hidden_size": 32, "num_layers": 2, "num_heads": 2, "patch_size": (1, 1, 1), **options},
    )


def condition(words: int = 7, guidance: bool = False) -> Cond:
    mask = torch.arange(words) < torch.tensor([[words], [2]])
    told = torch.tensor([1.5, 4.0]) if guidance else None
    return Cond(torch.randn(2, words, CONTEXT), mask, told)


@pytest.mark.parametrize("patch", [(1, 1, 1), (1, 2, 2), (2, 1, 3)])
def test_shapes_with_every_axis_different(patch):
    x = torch.randn(2, CHANNELS, *(n * p for n, p in zip((5, 2, 7), patch, strict=True)))
    model, t = tiny.shaken(dit(patch_size=patch)), torch.rand(2)

    cond = condition()
    out = model(x, t, cond)
    assert out.shape == x.shape
    torch.testing.assert_close(model(x, t[:, None].expand(-1, x.shape[2]), cond), out)


def test_patches_go_back_where_they_came_from():
    """With everything else at zero, the skip from input to output is the identity."""
    model = dit(patch_size=(2, 1, 3))
    with torch.no_grad():
        model.head_modulation[-1].bias[2 * model.hidden_size :] = 1
    x = torch.randn(2, CHANNELS, 4, 5, 9)
    torch.testing.assert_close(model(x, torch.rand(2), condition()), x)


@pytest.mark.parametrize("guidance_embed", [False, True])
def test_a_fresh_one_says_nothing(guidance_embed):
    x = torch.randn(2, CHANNELS, 2, 3, 5)
    assert (
        dit(guidance_embed=guidance_embed)(x, torch.rand(2), condition(guidance=guidance_embed))
        .abs()
        .max()
        == 0
    )


def test_a_fresh_student_is_its_teacher_whatever_the_scale():
    teacher = tiny.shaken(dit())
    student = dit(guidance_embed=True)
    missing = student.load_state_dict(teacher.state_dict(), strict=False)
    assert all(k.startswith("guidance.") for k in missing.missing_keys)
    x, t, cond = torch.randn(2, CHANNELS, 2, 3, 5), torch.rand(2), condition(guidance=True)
    assert student(x, t, cond).equal(teacher(x, t, cond))


def test_padding_words_change_nothing():
    model, x, t = tiny.shaken(dit()), torch.randn(2, CHANNELS, 2, 3, 5), torch.rand(2)
    cond = condition(7)
    noise = torch.where(cond.mask.unsqueeze(-1), cond.tokens, 5 * torch.randn_like(cond.tokens))
    out = model(x, t, cond)
    torch.testing.assert_close(model(x, t, Cond(noise, cond.mask)), out)
    longer = Cond(torch.cat([cond.tokens, noise], 1), torch.cat([cond.mask, cond.mask & False], 1))
    torch.testing.assert_close(model(x, t, longer), out, rtol=1e-4, atol=1e-5)
    words = Cond(cond.tokens.flip(0), cond.mask)
    assert not model(x, t, words).allclose(out, atol=1e-3)


def test_samples_of_a_batch_do_not_see_each_other():
    model, x, t, cond = (
        tiny.shaken(dit()),
        torch.randn(2, CHANNELS, 2, 3, 5),
        torch.rand(2),
        condition(),
    )
    alone = model(x[1:], t[1:], Cond(cond.tokens[1:], cond.mask[1:]))
    torch.testing.assert_close(model(x, t, cond)[1:], alone, rtol=1e-4, atol=1e-5)


def test_every_parameter_gets_a_finite_gradient():
    model = tiny.shaken(dit(guidance_embed=True), 0.05)
    x = torch.randn(2, CHANNELS, 2, 3, 5)
    model(x, torch.rand(2), condition(guidance=True)).square().sum().backward()
    for name, p in model.named_parameters():
        assert p.grad is not None and p.grad.isfinite().all() and p.grad.abs().max() > 0, name


def test_a_fresh_one_learns():
    """All gates start at zero, but not all gradients do."""
    model, x, t, cond = dit(), torch.randn(2, CHANNELS, 2, 3, 5), torch.rand(2), condition()
    target, optimizer = torch.randn_like(x), torch.optim.Adam(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(20):
        loss = (model(x, t, cond) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize(
    "options, message",
    [
        ({"hidden_size": 30, "num_heads": 4}, "30 over 4 heads"),
        ({"hidden_size": 48, "num_heads": 2}, "multiple of 16"),
    ],
)
def test_widths_that_heads_do_not_divide(options, message):
    with pytest.raises(UsageError, match=message):
        dit(**options)


def test_latents_that_patches_do_not_divide():
    with pytest.raises(UsageError, match=r"\(2, 3, 5\) do not divide into patches of \(1, 2, 2\)"):
        dit(patch_size=(1, 2, 2))(torch.randn(2, CHANNELS, 2, 3, 5), torch.rand(2), condition())


# --- parts ----------------------------------------------------------------------------------------


def test_rotary_is_relative_on_every_axis():
    """Scores between tokens depend on their offset alone."""
    angles = rotary(5, 3, 7, 16, torch.device("cpu")).view(5, 3, 7, 8)
    q, k = torch.randn(2, 1, 1, 1, 16)

    def score(a: tuple[int, int, int], b: tuple[int, int, int]) -> torch.Tensor:
        return (rotate(q, angles[a].view(1, 8)) * rotate(k, angles[b].view(1, 8))).sum()

    for offset in [(1, 0, 0), (0, 1, 0), (0, 0, 3), (2, 1, 2)]:
        scores = [
            score((i, j, n), tuple(p + o for p, o in zip((i, j, n), offset, strict=True)))
            for i, j, n in [(0, 0, 0), (1, 1, 2), (2, 0, 3)]
        ]
        torch.testing.assert_close(torch.stack(scores), scores[0].expand(3))
        assert not torch.isclose(scores[0], score((0, 0, 0), (0, 0, 0)), atol=1e-4)


def test_rotary_keeps_lengths_and_tells_all_places_apart():
    angles = rotary(5, 3, 7, 32, torch.device("cpu"))
    assert angles.shape == (105, 16) and torch.unique(angles, dim=0).shape == (105, 16)
    x = torch.randn(2, 3, 105, 32)
    torch.testing.assert_close(rotate(x, angles).norm(dim=-1), x.norm(dim=-1))


def test_rotary_does_not_depend_on_the_size_of_the_grid():
    small = rotary(2, 3, 5, 32, torch.device("cpu")).view(2, 3, 5, 16)
    large = rotary(7, 5, 11, 32, torch.device("cpu")).view(7, 5, 11, 16)
    assert large[:2, :3, :5].equal(small)


def test_attention_is_its_formula():
    q, k, v = torch.randn(3, 2, 3, 5, 8).unbind(0)
    mask = torch.tensor([[True] * 5, [True, True, False, False, False]])
    scores = (q @ k.mT / 8**0.5).masked_fill(~mask[:, None, None], -torch.inf)
    torch.testing.assert_close(attend(q, k, v, mask), scores.softmax(-1) @ v)
    torch.testing.assert_close(attend(q, k, v), (q @ k.mT / 8**0.5).softmax(-1) @ v)


def test_queries_and_keys_are_normalised():
    """Attention does not saturate when its input grows."""
    layer, x = Attention(32, 2), torch.randn(1, 5, 32)
    grown = layer(1000 * x) - layer.out.bias
    torch.testing.assert_close(grown, 1000 * (layer(x) - layer.out.bias), rtol=1e-3, atol=0.05)


def test_scalar_embedding_is_smooth_and_starts_absent_when_asked():
    layer = ScalarEmbedding(13)
    t = torch.linspace(0, 1, 100_001)
    waves = torch.cat(
        [(t[:, None] * layer.frequencies).cos(), (t[:, None] * layer.frequencies).sin()], 1
    )
    assert waves.diff(dim=0).abs().max() * 1e5 < 65  # d emb / dt, at most the top frequency
    assert layer(torch.rand(2, 3)).shape == (2, 3, 13)
    assert ScalarEmbedding(13, zero=True)(torch.rand(5)).abs().max() == 0
