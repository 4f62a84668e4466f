"""A data set of frames as latents of a codec."""

import torch

from vidcm.codecs.base import VideoCodec
from vidcm.data.batch import Batch, Dataset
from vidcm.data.clip_control import ClipControl
from vidcm.errors import UsageError
from vidcm.media.pixels import to_video


class Encoded:
    """Encode the clips of a data set as they are needed, for data sets without an end.

    Args:
        data: a data set with frames.
        codec: the codec.
        device: device of the codec.
        control: makes what the network needs beside the captions.
    """

    def __init__(
        self,
        data: Dataset,
        codec: VideoCodec,
        device: torch.device,
        control: ClipControl | None = None,
    ):
        self.data, self.codec, self.device, self.control = data, codec, device, control

    @property
    def size(self) -> int | None:
        return self.data.size

    @torch.no_grad()
    def batch(self, seed: int, positions) -> Batch:
        batch = self.data.batch(seed, positions)
        if batch.frames is None:
            raise UsageError("denoisers train on clips; use the data latents, lpc or folder")
        latents = self.codec.encode(to_video(batch.frames.to(self.device)))
        control = None if self.control is None else self.control(batch.frames)
        return Batch(batch.captions, latents=latents, control=control)
