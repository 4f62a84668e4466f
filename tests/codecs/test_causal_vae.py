"""The codec: causal in time, linear where it starts, on principal axes where it ends."""

import pytest
import torch
from einops import rearrange

from vidcm.codecs.causal_vae import CausalVAE, _components
from vidcm.codecs.losses import charbonnier, kl_to_unit_normal, ssim_loss
from vidcm.errors import UsageError
from vidcm.metrics.fidelity import psnr
from vidcm.registry import build

WIDTHS = (48, 40, 44)


def codec(channels: int = 7, shake: float = 0.0, **options) -> CausalVAE:
    torch.manual_seed(0)
    model = CausalVAE(channels, WIDTHS, **options)
    for parameter in model.parameters():
        parameter.data += shake * torch.randn_like(parameter)
    return model.eval().requires_grad_(False)


def clips(count: int = 6, frames: int = 9, height: int = 16, width: int = 24) -> torch.Tensor:
    """Smooth moving gradients with a little noise: as compressible as video is."""
    t, y, x = (torch.linspace(0, 1, n) for n in (frames, height, width))
    a = torch.rand(count, 3, 4, 1, 1, 1) * 6
    waves = a[:, :, 0] * t.view(-1, 1, 1) + a[:, :, 1] * y.view(-1, 1) + a[:, :, 2] * x + a[:, :, 3]
    return (0.7 * waves.sin() + 0.05 * torch.randn(count, 3, frames, height, width)).clamp(-1, 1)


# --- shapes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("frames, groups", [(1, 1), (5, 2), (13, 4)])
def test_shapes_with_every_axis_different(frames, groups):
    model, video = codec(7), clips(2, frames, 24, 40)
    latents = model.encode(video)
    assert latents.shape == (2, 7, groups, 3, 5)
    assert model.latent_shape(frames, 24, 40) == (7, groups, 3, 5)
    assert model.decode(latents).shape == (2, 3, frames, 24, 40)


@pytest.mark.parametrize(
    "shape, message",
    [
        ((1, 3, 8, 16, 16), "8 frames .* stride 4; use 5 or 9"),
        ((1, 3, 2, 16, 16), "2 frames .*; use 1 or 5"),
        ((1, 3, 5, 20, 16), "height 20 is not a multiple of 8; use 16 or 24"),
        ((1, 3, 5, 16, 7), "width 7 is not a multiple of 8; use 8 or 16"),
    ],
)
def test_sizes_that_do_not_fit_name_the_nearest(shape, message):
    with pytest.raises(UsageError, match=message):
        codec().encode(torch.zeros(shape))
    with pytest.raises(UsageError, match=message):
        codec().latent_shape(*shape[2:])


# --- causality ------------------------------------------------------------------------------------


@pytest.mark.parametrize("groups", [1, 2, 3])
def test_later_frames_do_not_touch_earlier_latents_or_frames(groups):
    model, video = codec(shake=0.1), clips(1, 13)
    seen = 4 * (groups - 1) + 1
    changed = video.clone()
    changed[:, :, seen:] = torch.rand_like(changed[:, :, seen:])
    before, after = model.encode(video), model.encode(changed)
    torch.testing.assert_close(after[:, :, :groups], before[:, :, :groups])
    assert not after[:, :, groups:].allclose(before[:, :, groups:], atol=1e-3)
    torch.testing.assert_close(model.encode(video[:, :, :seen]), before[:, :, :groups])
    whole, start = model.decode(before), model.decode(before[:, :, :groups])
    torch.testing.assert_close(start, whole[:, :, :seen], rtol=1e-4, atol=1e-4)


def test_an_image_is_a_clip_of_one_frame():
    model, video = codec(shake=0.1), clips(2, 9)
    torch.testing.assert_close(model.encode(video[:, :, :1]), model.encode(video)[:, :, :1])


# --- the start ------------------------------------------------------------------------------------


def test_the_start_is_far_better_than_chance_and_half_whitened():
    """Components keep the square root of their spread, whatever turn of the channels hides them."""
    model, video = codec(), clips(40)
    before = psnr(model.decode(model.encode(video)), video, peak=2).mean()
    model.init_from_pca(video)
    after = psnr(model.decode(model.encode(video)), video, peak=2).mean()
    assert after > before + 6
    rows = rearrange(model.encode(video), "b c t h w -> (b t h w) c")
    torch.testing.assert_close(rows.mean(0), torch.zeros(7), atol=1e-2, rtol=0)
    raw = rearrange(model.posterior(video)[0], "b c t h w -> (b t h w) c")
    spread = torch.linalg.eigvalsh(torch.cov(raw.T)).flip(0)
    assert float(spread.mean()) == pytest.approx(1, abs=0.02)
    assert spread[0] > 1.5 * spread[-1]
    assert model.posterior(video)[1].eq(-6).all()


def test_a_second_start_is_the_same():
    video = clips(20)
    first, second = codec(), codec(shake=0.0)
    torch.manual_seed(3)
    first.init_from_pca(video)
    torch.manual_seed(3)
    second.init_from_pca(video)
    assert first.encode(video).equal(second.encode(video))


def test_where_no_level_loses_anything_the_start_is_direct_principal_components():
    """Wide enough levels pass everything on, so all that is left out is left out at the end."""
    torch.manual_seed(0)
    wide = CausalVAE(7, (48, 192, 768), (0, 0, 0), (0, 0, 0)).eval().requires_grad_(False)
    video = clips(12)
    wide.init_from_pca(video)
    raw = wide.posterior(video)[0]
    # The same numbers in one matrix: blocks of 4 frames x 8 x 8 pixels, the first frame repeated.
    filled = torch.cat([video[:, :, :1].expand(-1, -1, 3, -1, -1), video], dim=2)
    pattern = "b c (t i) (h j) (w k) -> b (c i j k) t h w"
    blocks = rearrange(filled, pattern, i=4, j=8, k=8)
    basis, mean, spread = _components(blocks, 7)
    direct = torch.einsum("dc,bdthw->bcthw", basis, blocks - mean.view(-1, 1, 1, 1))
    scale = (spread * spread.mean()).sqrt().view(-1, 1, 1, 1)
    turned = torch.cov(rearrange(raw, "b c t h w -> c (b t h w)"))
    spectrum = torch.linalg.eigvalsh(turned).flip(0)
    expected = torch.cov(rearrange(direct / scale, "b c t h w -> c (b t h w)")).diagonal()
    torch.testing.assert_close(spectrum, expected, atol=1e-2, rtol=2e-2)
    rebuilt = torch.einsum("dc,bcthw->bdthw", basis, direct) + mean.view(-1, 1, 1, 1)
    undo = "b (c i j k) t h w -> b c (t i) (h j) (w k)"
    expected = rearrange(rebuilt, undo, i=4, j=8, k=8)[:, :, 3:]
    torch.testing.assert_close(wide.reconstruct(raw), expected, atol=5e-3, rtol=0)


def test_settled_latents_lie_on_their_principal_axes_and_decode_as_before():
    model, video = codec(shake=0.05), clips(20)
    mean, logvar = model.posterior(video)
    rebuilt = model.reconstruct(mean)
    width = logvar.exp().mean()
    model.whiten(mean, logvar)
    latents = model.encode(video)
    rows = rearrange(latents, "b c t h w -> (b t h w) c")
    torch.testing.assert_close(rows.mean(0), torch.zeros(7), atol=1e-4, rtol=0)
    spread = torch.cov(rows.T)
    assert float(spread.diagonal().mean()) == pytest.approx(1, abs=1e-4)
    off = spread - spread.diagonal().diag()
    torch.testing.assert_close(off, torch.zeros(7, 7), atol=1e-3, rtol=0)
    assert (spread.diagonal().diff() <= 1e-4).all()  # the widest first
    assert spread[0, 0] > 2 * spread[-1, -1]  # a spectrum, not whitened
    torch.testing.assert_close(model.decode(latents), rebuilt.clamp(-1, 1), atol=1e-3, rtol=0)
    again = model.posterior(video)[1].exp()
    torch.testing.assert_close(again, width.expand_as(again))


# --- loss terms -----------------------------------------------------------------------------------


def test_terms_vanish_at_the_target_and_grow_away_from_it():
    video = clips(3)
    for term in (charbonnier, ssim_loss):
        losses = [float(term(video + e * torch.randn_like(video), video)) for e in (0, 0.05, 0.2)]
        assert losses[0] == pytest.approx(0, abs=1e-5) and losses[0] < losses[1] < losses[2]


def test_structure_sees_what_brightness_does_not():
    """A blurred clip is closer in absolute error than a slightly brighter one, not in structure."""
    video = torch.sign(torch.randn(2, 3, 1, 16, 16)) * 0.1
    blurred, brighter = video * 0.0, video + 0.11
    assert charbonnier(blurred, video) < charbonnier(brighter, video)
    assert ssim_loss(blurred, video) > ssim_loss(brighter, video)


def test_kl_has_its_closed_form():
    assert kl_to_unit_normal(torch.zeros(5), torch.zeros(5)) == 0
    mean, logvar = torch.tensor([1.5]), torch.tensor([-0.7])
    p = torch.distributions.Normal(mean, (0.5 * logvar).exp())
    expected = torch.distributions.kl_divergence(p, torch.distributions.Normal(0.0, 1.0))
    torch.testing.assert_close(kl_to_unit_normal(mean, logvar), expected[0])


def test_registered_and_small_enough():
    model = build("model", {"name": "causal_vae", "channels": 64})
    assert sum(p.numel() for p in model.parameters()) < 6e6
