"""Pictures and control clips that exports of networks which read them are compared with."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from vidcm.codecs.base import VideoCodec
from vidcm.diffusion.control import Control
from vidcm.families.control import ControlSource
from vidcm.families.vace_control import VaceControl
from vidcm.families.wan_control import ImageChannels

PREFIX = "control."  # of its tensors in a reference
FRAMES = "frames"  # pixels that it is made of, uint8 `(t h w 3)`


class PipelineControl(ABC):
    """Makes a control of frames as vidcm does, and the arguments of diffusers' call for it."""

    @abstractmethod
    def control(self, source: ControlSource, codec: VideoCodec, frames: Tensor) -> Control:
        """Of frames `(t h w 3)`, for one clip."""

    @abstractmethod
    def arguments(self, frames: Tensor) -> dict[str, Any]:
        """Of the pipeline's call."""


class FirstPicture(PipelineControl):
    """The first of the frames, which the clip begins with."""

    def control(self, source: ControlSource, codec: VideoCodec, frames: Tensor) -> Control:
        return source.of_pictures(codec, frames[:1], len(frames))

    def arguments(self, frames: Tensor) -> dict[str, Any]:
        return {"image": Image.fromarray(frames[0].numpy())}


class WholeClip(PipelineControl):
    """All of them, which the clip follows."""

    def control(self, source: ControlSource, codec: VideoCodec, frames: Tensor) -> Control:
        mask = torch.ones(1, *frames.shape[:3], dtype=torch.bool)
        return source.of_control_clips(codec, frames[None], mask, [1.0])

    def arguments(self, frames: Tensor) -> dict[str, Any]:
        return {"video": [Image.fromarray(frame) for frame in frames.numpy()]}


OF_SOURCES: dict[type, PipelineControl] = {ImageChannels: FirstPicture(), VaceControl: WholeClip()}
OF_PIPELINES = {"WanImageToVideoPipeline": FirstPicture(), "WanVACEPipeline": WholeClip()}


def needed(source: ControlSource | None) -> ControlSource | None:
    """The source of a network that does not do without."""
    return source if source is not None and source.required else None


def draw_frames(codec: VideoCodec, latents: Sequence[int]) -> Tensor:
    """Frames of a clip of latents `(c, t, h, w)`, of noise."""
    _, frames, height, width = latents
    size = (frames - 1) * codec.time_stride + 1, height * codec.stride, width * codec.stride
    generator = torch.Generator().manual_seed(2)
    return torch.randint(256, (*size, 3), generator=generator, dtype=torch.uint8)


def draw_control(source: ControlSource | None, latents: Sequence[int]) -> dict[str, Tensor]:
    """Tensors of a control of noise, as a reference has them; {} for networks of text alone."""
    if (source := needed(source)) is None:
        return {}
    generator = torch.Generator().manual_seed(3)
    sizes = source.sizes(latents).items()
    return {PREFIX + name: torch.randn(1, *size, generator=generator) for name, size in sizes}


def read_control(reference: dict[str, Tensor]) -> Control | None:
    """The control of a reference."""
    names = [name for name in reference if name.startswith(PREFIX)]
    tensors = {name.removeprefix(PREFIX): reference[name] for name in names}
    return Control(**tensors) if tensors else None
