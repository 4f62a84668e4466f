"""A public codec: diffusers' autoencoder with the family's rules and statistics of latents."""

from typing import Any, Self

from torch import Tensor

from vidcm.codecs.base import VideoCodec
from vidcm.errors import UsageError
from vidcm.families.base import Family, find_family
from vidcm.families.component import empty_module, read_config
from vidcm.store import local_folder


class PublicCodec(VideoCodec):
    """Frames and sizes that the autoencoder would change silently are refused.

    Args:
        autoencoder: diffusers' module.
        family: Its family.
        tiling: Encode and decode in tiles: less memory, other numbers near the seams.
    """

    def __init__(self, autoencoder: Any, family: Family, tiling: bool = False):
        super().__init__()
        self.autoencoder, self.family = autoencoder, family
        if tiling:
            self.enable_tiling()
        self.channels, self.time_stride, self.stride = family.codec_sizes(autoencoder)

    @classmethod
    def from_spec(
        cls, base: str | None = None, config: dict | None = None, tiling: bool = False
    ) -> Self:
        """Build the codec of a folder.

        Args:
            base: Folder `vae` of a diffusers pipeline.
            config: `config.json` of the autoencoder, `_class_name` included; instead of the base's.
            tiling: As in the constructor.

        Raises:
            UsageError: There is neither, or the class is unknown.
        """
        if config is None:
            if base is None:
                raise UsageError("a public codec needs base, the folder `vae` of a pipeline")
            config = read_config(local_folder(base))
        class_name = str(config.get("_class_name"))
        return cls(empty_module(config, class_name), find_family(class_name), tiling)

    def enable_tiling(self) -> None:
        self.autoencoder.enable_tiling()

    @property
    def frame_step(self) -> int:
        return self.time_stride * self.family.latent_step

    def encode(self, video: Tensor) -> Tensor:
        self.latent_shape(*video.shape[2:])
        weight = next(self.autoencoder.parameters())
        raw = self.autoencoder.encode(video.to(weight.dtype)).latent_dist.mode().float()
        mean, std = self._statistics(raw)
        return (raw - mean) / std

    def decode(self, latents: Tensor) -> Tensor:
        weight = next(self.autoencoder.parameters())
        mean, std = self._statistics(latents)
        raw = (latents * std + mean).to(weight.dtype)
        return self.family.decode(self.autoencoder, raw).float().clamp(-1, 1)

    def _statistics(self, like: Tensor) -> list[Tensor]:
        """Mean and deviation of each channel; buffers of some autoencoders, so read when needed."""
        return [
            s.to(like).view(-1, 1, 1, 1) for s in self.family.latent_statistics(self.autoencoder)
        ]
