"""A data set of frames as latents of a codec."""

import torch

from vidcm.codecs.base import VideoCodec
from vidcm.data.batch import Batch, Dataset
from vidcm.errors import UsageError
from vidcm.media.pixels import to_video


class Encoded:
    """Encode the clips of a data set as they are needed, for data sets without an end.

    Args:
        data: a data set with frames.
        codec: the codec.
        device: device of the codec.
    """

    def __init__(self, data: Dataset, codec: VideoCodec, device: torch.device):
        self.data, self.codec, self.device = data, codec, device

    @property
    def size(self) -> int | None:
        return self.data.size

    @torch.no_grad()
    def batch(self, seed: int, positions) -> Batch:
        batch = self.data.batch(seed, positions)
        if batch.frames is None:
            raise UsageError("denoisers train on clips; use the data latents, lpc or folder")
        latents = self.codec.encode(to_video(batch.frames.to(self.device)))
        return Batch(batch.captions, latents=latents)
