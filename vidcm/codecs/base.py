"""What every part of vidcm may ask of a video codec."""

from abc import ABC, abstractmethod

from torch import Tensor, nn

from vidcm.errors import UsageError
from vidcm.media.sizes import check_frames, check_size


class VideoCodec(nn.Module, ABC):
    """Videos `(b 3 t h w)` in [-1, 1] to latents `(b c t h w)` and back.

    The first frame is encoded alone, and each later latent frame stands for `time_stride` frames.

    Attributes:
        channels: Latent channels.
        time_stride: Frames of a latent frame.
        stride: Pixels of a latent, along height and width.
        frame_step: Clips have `k * frame_step + 1` frames.
        context: Latent frames before a part of a clip that the part depends on; with them it is
            encoded and decoded as in the whole. None for codecs that take whole clips only.
    """

    channels: int
    time_stride: int
    stride: int
    context: int | None = None

    @property
    def frame_step(self) -> int:
        return self.time_stride

    @abstractmethod
    def encode(self, video: Tensor) -> Tensor:
        """Latents of a video, of unit variance on average, fp32.

        Raises:
            UsageError: A number of frames or a size that the codec would change.
        """

    @abstractmethod
    def decode(self, latents: Tensor) -> Tensor:
        """The video of latents, clamped to [-1, 1], fp32."""

    def enable_tiling(self) -> None:
        """Decode and encode in tiles of the picture, for less memory.

        Raises:
            UsageError: The codec knows no tiles.
        """
        raise UsageError(
            f"{type(self).__name__} has no tiles; it decodes long clips in pieces already"
        )

    def latent_shape(self, frames: int, height: int, width: int) -> tuple[int, int, int, int]:
        """`(c, t, h, w)` of the latents of a clip. Raises UsageError as `encode` does."""
        check_frames(frames, self.frame_step)
        check_size(height, width, self.stride)
        groups = (frames - 1) // self.time_stride + 1
        return self.channels, groups, height // self.stride, width // self.stride
