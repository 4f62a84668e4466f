"""Training a codec: reconstruction, structure, motion and a KL pull towards unit latents."""

from dataclasses import dataclass

import torch
from torch import Tensor

from vidcm.codecs.causal_vae import CausalVAE
from vidcm.codecs.losses import charbonnier, kl_to_unit_normal, ssim_loss
from vidcm.config import TrainConfig
from vidcm.data.batch import Batch
from vidcm.diffusion.shapes import like
from vidcm.errors import UsageError
from vidcm.media.pixels import to_video
from vidcm.metrics.fidelity import psnr
from vidcm.objectives.base import Loss, Objective
from vidcm.rng import SampleRng


@dataclass(eq=False, kw_only=True)
class Autoencoding(Objective):
    """Reconstruction, structure and motion losses with a KL term.

    Args:
        crop: Side in pixels of the windows trained on, a multiple of 8; 0 for entire frames.
        windows: How many of each clip.
        perceptual: Weight of the structural loss beside the reconstruction's 1.
        motion: Weight of the loss of frame differences.
        kl: Weight of the KL divergence from unit latents.
        tries: Random places per window, of which the one with most contrast is taken.
        decoder_only: Freeze the encoder of `init`, so that cached latents stay valid.
        latent_noise: Noise on the latents that the decoder gets, of a deviation drawn from 0 to
            this, in deviations of the latents: it learns to take away what a denoiser leaves.

    Raises:
        UsageError: An option makes no sense.
    """

    trains = CausalVAE

    crop: int = 0
    windows: int = 1
    perceptual: float = 0.1
    motion: float = 0.5
    kl: float = 1e-3
    tries: int = 3
    decoder_only: bool = False
    latent_noise: float = 0.0

    def __post_init__(self) -> None:
        if self.crop < 0 or self.crop % CausalVAE.stride:
            raise UsageError(
                f"crop {self.crop} is not a multiple of the codec's stride {CausalVAE.stride}"
            )
        if min(self.windows, self.tries) < 1:
            raise UsageError(f"windows {self.windows}, tries {self.tries}: both must be at least 1")
        if min(self.perceptual, self.motion, self.kl) < 0:
            raise UsageError(
                f"perceptual {self.perceptual}, motion {self.motion}, kl {self.kl}: weights must "
                "be 0 or above"
            )
        if self.latent_noise < 0:
            raise UsageError(f"latent_noise is {self.latent_noise}; it must be 0 or above")

    def check(self, config: TrainConfig) -> None:
        super().check(config)
        if self.latent_noise and not config.init:
            raise UsageError(
                "objective.latent_noise counts in deviations of the latents, which a codec has at "
                "the end of its training; set init to a codec's `final` folder"
            )
        if self.decoder_only and not config.init:
            raise UsageError(
                "objective.decoder_only keeps the encoder of init; set init to a codec's `final` "
                "folder"
            )

    def __call__(self, model: CausalVAE, batch: Batch, progress: float, rng: SampleRng) -> Loss:
        assert batch.frames is not None
        video = to_video(batch.frames)
        if self.crop:
            video = self._windows(video, rng)
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.decoder_only):
            mean, logvar = model.posterior(video)
        noise = rng.normal(len(mean) // len(batch), *mean.shape[1:]).flatten(0, 1)
        raw = mean + (0.5 * logvar).exp() * noise
        if self.latent_noise:
            level = self.latent_noise * rng.uniform(len(mean) // len(batch)).flatten()
            error = rng.normal(len(mean) // len(batch), *mean.shape[1:]).flatten(0, 1)
            raw = raw + like(level, raw) * model.std.view(-1, 1, 1, 1) * error
        rebuilt = model.reconstruct(raw)
        kl = kl_to_unit_normal(mean, logvar)
        total = charbonnier(rebuilt, video) + self.perceptual * ssim_loss(rebuilt, video)
        total = total + self.motion * charbonnier(rebuilt.diff(dim=2), video.diff(dim=2))
        if not self.decoder_only:
            total = total + self.kl * kl
        quality = psnr(rebuilt.detach().clamp(-1, 1), video, peak=2).mean()
        return Loss(total, {"psnr": quality, "kl": kl.detach()})

    def _windows(self, video: Tensor, rng: SampleRng) -> Tensor:
        """`(b c t h w)` -> `(b * windows, c, t, crop, crop)`, the busy places of each clip."""
        size, stride = self.crop, CausalVAE.stride
        if size > min(video.shape[3:]):
            height, width = video.shape[3:]
            raise UsageError(
                f"objective.crop is {size}, and the clips are {height}x{width}; crop less, or 0"
            )
        places = torch.tensor([(n - size) // stride + 1 for n in video.shape[3:]])
        draws = rng.uniform(self.windows, self.tries, 2).cpu() * places
        chosen = []
        for clip, corners in zip(video, (draws.long() * stride).tolist(), strict=True):
            for tries in corners:
                found = [clip[:, :, y : y + size, x : x + size] for y, x in tries]
                contrast = torch.stack([w[:, ::4].std() for w in found])
                chosen.append(found[int(contrast.argmax())])
        return torch.stack(chosen)
