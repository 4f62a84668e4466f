"""A causal 3-D video VAE, factorised into 2-D convolutions and causal mixing along time.

Stride 4 in time and 8 in space. The first frame is encoded alone and each later latent frame
encodes the next four frames, so that `4k + 1` frames give `k + 1` latent frames, none of which
depends on later frames. The trunk from pixels to pixels is linear (it has no norms) and the
residual branches start at zero: a new codec is a linear autoencoder, which `init_from_pca` sets to
principal components, level by level. Spatial convolutions fold frames into the batch, so all of
them are 2-D: fast on a CPU, for clips of any length.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from vidcm.codecs.base import VideoCodec
from vidcm.errors import UsageError

PATCH = 4  # pixels of each side folded into channels at the input


class Conv(nn.Conv2d):
    """A 3x3 convolution over each frame of `b c t h w`."""

    def __init__(self, width: int, out: int):
        super().__init__(width, out, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        frames = rearrange(x, "b c t h w -> (b t) c h w").contiguous(
            memory_format=torch.channels_last
        )
        return rearrange(super().forward(frames), "(b t) c h w -> b c t h w", b=x.shape[0])


class Pointwise(nn.Linear):
    """A linear map over channels of `b c t h w`."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)


class RMSNorm(nn.Module):
    """Root-mean-square normalisation over channels at each position, which keeps time causal."""

    def __init__(self, width: int):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(width, 1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.square().mean(1, keepdim=True) + 1e-6) * self.scale


class Residual(nn.Module):
    """Norm, SiLU, 3x3, SiLU, 3x3; the last layer starts at zero."""

    def __init__(self, width: int):
        super().__init__()
        self.norm = RMSNorm(width)
        self.first, self.last = Conv(width, width), Conv(width, width)
        for p in self.last.parameters():
            nn.init.zeros_(p)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.last(F.silu(self.first(F.silu(self.norm(x)))))


class TimeMix(nn.Module):
    """Causal mixing along time with a kernel of three frames."""

    def __init__(self, width: int):
        super().__init__()
        self.norm = RMSNorm(width)
        self.mix, self.out = Pointwise(3 * width, width), Pointwise(width, width)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, x: Tensor) -> Tensor:
        h = F.pad(self.norm(x), (0, 0, 0, 0, 2, 0))
        h = torch.cat([h[:, :, :-2], h[:, :, 1:-1], h[:, :, 2:]], dim=1)
        return x + self.out(F.silu(self.mix(h)))


class Downsample(nn.Module):
    """Fold `(time, space, space)` neighbours into channels, then a linear map."""

    def __init__(self, width: int, out: int, time: int, space: int):
        super().__init__()
        self.time, self.space = time, space
        self.map = Pointwise(width * time * space**2, out)

    def fold(self, x: Tensor) -> Tensor:
        """Neighbours as channels; the first frame is repeated to fill a group of its own."""
        if self.time > 1:
            x = torch.cat([x[:, :, :1].expand(-1, -1, self.time - 1, -1, -1), x], dim=2)
        pattern = "b c (t i) (h j) (w k) -> b (c i j k) t h w"
        return rearrange(x, pattern, i=self.time, j=self.space, k=self.space)

    def forward(self, x: Tensor) -> Tensor:
        return self.map(self.fold(x))


class Upsample(nn.Module):
    """The inverse of `Downsample`: a linear map, then unfold; the first group keeps one frame."""

    def __init__(self, width: int, out: int, time: int, space: int):
        super().__init__()
        self.time, self.space = time, space
        self.map = Pointwise(width, out * time * space**2)

    def forward(self, x: Tensor) -> Tensor:
        pattern = "b (c i j k) t h w -> b c (t i) (h j) (w k)"
        x = rearrange(self.map(x), pattern, i=self.time, j=self.space, k=self.space)
        return x[:, :, self.time - 1 :]


class CausalVAE(VideoCodec):
    """Encode a video `(b 3 t h w)` in [-1, 1] to latents `(b c (t-1)/4+1 h/8 w/8)` and back.

    Args:
        channels: latent channels.
        widths: hidden channels at spatial stride 4, at stride 8, and at the latent grid.
        encoder_depths: residual blocks at these three levels of the encoder.
        decoder_depths: the same of the decoder.

    Raises:
        UsageError: not three levels, or too few channels.
    """

    time_stride, stride = 4, 8
    context = 4  # three frames at each of its two levels in time

    def __init__(
        self,
        channels: int = 16,
        widths: Sequence[int] = (64, 128, 256),
        encoder_depths: Sequence[int] = (1, 1, 1),
        decoder_depths: Sequence[int] = (2, 2, 1),
    ):
        super().__init__()
        self.channels = channels
        levels = (widths, encoder_depths, decoder_depths)
        if any(len(sizes) != 3 for sizes in levels) or min(channels, *widths) < 1:
            raise UsageError(
                f"channels {channels}, widths {list(widths)}, depths {list(encoder_depths)} and "
                f"{list(decoder_depths)}: use three of each, channels and widths above 0"
            )
        a, b, c = widths
        pixels = 3 * PATCH**2
        if a < pixels:
            raise UsageError(f"widths[0] is {a}; it must hold the {pixels} numbers of a patch")
        self.encoder = nn.Sequential(
            Conv(pixels, a),
            *_blocks(a, encoder_depths[0]),
            Downsample(a, b, 1, 2),
            *_blocks(b, encoder_depths[1]),
            TimeMix(b),
            Downsample(b, c, 4, 1),
            *_blocks(c, encoder_depths[2]),
            TimeMix(c),
            Conv(c, 2 * channels),
        )
        self.decoder = nn.Sequential(
            Conv(channels, c),
            TimeMix(c),
            *_blocks(c, decoder_depths[2]),
            Upsample(c, b, 4, 1),
            TimeMix(b),
            *_blocks(b, decoder_depths[1]),
            Upsample(b, a, 1, 2),
            *_blocks(a, decoder_depths[0]),
            Conv(a, pixels),
        )
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("std", torch.ones(channels))
        self.mean: Tensor
        self.std: Tensor

    @torch.no_grad()
    def init_from_pca(self, video: Tensor) -> None:
        """Set the linear trunk to principal components, each level from the level before it.

        Latent axes are scaled half way between pixels and whitened, so that a latent error weighs
        more where it changes more in pixels, and rotated at random, so that the KL term treats all
        channels alike; `whiten` undoes the rotation. Posterior standard deviations start at e^-3.

        Args:
            video: training clips `(b 3 t h w)`.
        """
        (first, last), folds = _layers(self.encoder, Conv), _layers(self.encoder, Downsample)
        (enter, leave), unfolds = _layers(self.decoder, Conv), _layers(self.decoder, Upsample)[::-1]
        _identity(first)
        _identity(leave)
        x = first(self._patches(video))
        for fold, unfold in zip(folds, unfolds, strict=True):
            x = fold.fold(x)
            basis, mean, _ = _components(x, fold.map.out_features)
            fold.map.weight.copy_(basis.T)
            fold.map.bias.copy_(-(basis.T @ mean))
            unfold.map.weight.copy_(basis)
            unfold.map.bias.copy_(mean)
            x = fold.map(x)
        basis, mean, spread = _components(x, self.channels)
        scale = (spread * spread.mean()).sqrt()
        rotation = torch.linalg.qr(torch.randn(self.channels, self.channels)).Q.to(basis)
        down, up = (basis / scale) @ rotation, (basis * scale) @ rotation
        last.weight.zero_()
        last.weight[: self.channels, :, 1, 1] = down.T
        last.bias.fill_(-6.0)
        last.bias[: self.channels] = -down.T @ mean
        enter.weight.zero_()
        enter.weight[:, :, 1, 1] = up
        enter.bias.copy_(mean)

    @torch.no_grad()
    def whiten(self, mean: Tensor, logvar: Tensor) -> None:
        """Rotate the channels to the latents' principal axes and store their statistics.

        Axes are sorted by variance, centred, and scaled by one number to unit variance on average.
        A denoiser's gate per channel is then one per axis, near to a Wiener filter. Reconstructions
        do not change; the posterior gets one standard deviation for all channels.

        Args:
            mean: posterior means `(b c t h w)` of training clips.
            logvar: their log-variances.
        """
        axes, centre, spread = _components(mean, self.channels)
        last, enter = _layers(self.encoder, Conv)[-1], _layers(self.decoder, Conv)[0]
        c = self.channels
        last.weight[:c] = torch.einsum("ji,jkhw->ikhw", axes, last.weight[:c])
        last.bias[:c] = axes.T @ last.bias[:c]
        last.weight[c:] = 0.0
        last.bias[c:] = logvar.exp().mean().log()
        enter.weight.copy_(torch.einsum("okhw,ki->oihw", enter.weight, axes))
        self.mean.copy_(axes.T @ centre)
        self.std.fill_(spread.square().mean().sqrt())

    def _patches(self, video: Tensor) -> Tensor:
        return rearrange(video, "b c t (h j) (w k) -> b (c j k) t h w", j=PATCH, k=PATCH)

    def posterior(self, video: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-variance of the raw latents of a video.

        Raises:
            UsageError: the strides do not divide the shape.
        """
        self.latent_shape(*video.shape[2:])
        mean, logvar = self.encoder(self._patches(video)).chunk(2, dim=1)
        return mean, logvar.clamp(-20, 4)

    def reconstruct(self, raw: Tensor) -> Tensor:
        """Decode raw latents to a video, not clamped."""
        patches = self.decoder(raw)
        return rearrange(patches, "b (c j k) t h w -> b c t (h j) (w k)", j=PATCH, k=PATCH)

    def encode(self, video: Tensor) -> Tensor:
        """Posterior means of a video `(b 3 t h w)`, of unit variance on average, fp32."""
        mean, std = (s.view(-1, 1, 1, 1) for s in (self.mean, self.std))
        return (self.posterior(video)[0].float() - mean) / std

    def decode(self, latents: Tensor) -> Tensor:
        """Decode latents to a video `(b 3 t h w)` in [-1, 1]."""
        mean, std = (s.view(-1, 1, 1, 1) for s in (self.mean, self.std))
        raw = (latents * std + mean).to(self.mean.dtype)
        return self.reconstruct(raw).float().clamp(-1, 1)


def _blocks(width: int, depth: int) -> list[nn.Module]:
    return [Residual(width) for _ in range(depth)]


def _layers(layers: nn.Sequential, kind: type) -> list:
    return [layer for layer in layers if isinstance(layer, kind)]


def _identity(conv: Conv) -> None:
    """Pass channels through; channels beyond those of the input start at zero."""
    nn.init.dirac_(conv.weight)
    assert conv.bias is not None
    nn.init.zeros_(conv.bias)


def _components(x: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Principal axes `(c, count)` of the channels of `x`, their mean and standard deviations."""
    rows = rearrange(x, "b c t h w -> (b t h w) c").double()
    mean = rows.mean(0)
    values, vectors = torch.linalg.eigh(torch.cov((rows - mean).T))
    order = values.argsort(descending=True)[:count]
    spread = values[order].clamp(min=1e-8).sqrt()
    return vectors[:, order].float(), mean.float(), spread.float()
