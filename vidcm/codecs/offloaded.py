"""A codec that is on its device only while it works."""

from torch import Tensor

from vidcm.codecs.base import VideoCodec
from vidcm.models.offload import Offload


class OffloadedCodec(VideoCodec):
    """Another codec, moved to the device before it encodes or decodes.

    Args:
        codec: The codec.
        offload: Moves it.
    """

    def __init__(self, codec: VideoCodec, offload: Offload):
        super().__init__()
        self.codec, self.offload = codec, offload
        self.channels, self.time_stride = codec.channels, codec.time_stride
        self.stride, self.context = codec.stride, codec.context
        offload.add(codec)

    @property
    def frame_step(self) -> int:
        return self.codec.frame_step

    def encode(self, video: Tensor) -> Tensor:
        self.offload.use(self.codec)
        return self.codec.encode(video)

    def decode(self, latents: Tensor) -> Tensor:
        self.offload.use(self.codec)
        return self.codec.decode(latents)

    def enable_tiling(self) -> None:
        self.codec.enable_tiling()
