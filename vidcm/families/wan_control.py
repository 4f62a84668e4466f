"""Pictures that Wan continues, as `WanImageToVideoPipeline` of diffusers gives them.

Wan 2.1 and 2.2 A14B read the latents of the picture, followed by grey frames, and a mask of what is
given beside the noisy latents; 2.1 attends to CLIP's tokens of it too. Wan 2.2 5B sees its latent
frame clean, at time 0 of its own.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vidcm.codecs.base import VideoCodec
from vidcm.diffusion.control import Control
from vidcm.errors import UsageError
from vidcm.families.component import read_config
from vidcm.families.control import ControlSource
from vidcm.families.image import ENCODER, PipelineImage
from vidcm.media.pixels import to_video

INDEX = "model_index.json"
CHANNELS = 16  # of a config that does not say


class ImageChannels(ControlSource):
    """A mask of given frames, 1 where they are, then the latents of the picture and grey frames.

    Args:
        masks: Channels of the mask: frames of a latent frame.
        tower: CLIP, for networks that attend to its tokens.
    """

    reads, required = "a picture", True

    def __init__(self, masks: int, tower: PipelineImage | None = None):
        self.masks, self.tower = masks, tower

    def of_pictures(self, codec: VideoCodec, pictures: Tensor, num_frames: int) -> Control:
        first = to_video(pictures.unsqueeze(1))
        rest = first.new_zeros(*first.shape[:2], num_frames - 1, *first.shape[3:])
        latents = codec.encode(torch.cat([first, rest], 2))
        mask = latents.new_zeros(len(latents), self.masks, *latents.shape[2:])
        mask[:, :, 0] = 1
        tokens = None
        if self.tower is not None:
            tokens = self.tower(list(pictures.cpu().numpy()), pictures.device)
        return Control(channels=torch.cat([mask, latents], 1), tokens=tokens)

    def of_clips(self, codec: VideoCodec, frames: Tensor) -> Control:
        return self.of_pictures(codec, frames[:, 0], frames.shape[1])

    def sizes(self, latents: Sequence[int]) -> dict[str, tuple[int, ...]]:
        channels, *size = latents
        found = {"channels": (self.masks + channels, *size)}
        return found | ({"tokens": self.tower.tokens} if self.tower else {})

    def facts(self) -> dict[str, Any]:
        found: dict[str, Any] = {"kind": "image_channels", "masks": self.masks}
        return found | ({"image_encoder": self.tower.hash} if self.tower else {})

    def towers(self) -> list[Any]:
        return [self.tower] if self.tower else []


class FirstFrame(ControlSource):
    """The latent frame of a picture, given at time 0; the network makes clips without one too."""

    reads, required = "a picture", False

    def of_pictures(self, codec: VideoCodec, pictures: Tensor, num_frames: int) -> Control:
        return Control(given=codec.encode(to_video(pictures.unsqueeze(1))))

    def of_clips(self, codec: VideoCodec, frames: Tensor) -> Control:
        return self.of_pictures(codec, frames[:, 0], frames.shape[1])

    def sizes(self, latents: Sequence[int]) -> dict[str, tuple[int, ...]]:
        channels, _, height, width = latents
        return {"given": (channels, 1, height, width)}

    def facts(self) -> dict[str, Any]:
        return {"kind": "first_frame"}


def control_of(config: dict[str, Any], root: Path | None) -> ControlSource | None:
    """What a Wan network is given; None for text alone.

    Args:
        config: Of the network.
        root: Its pipeline's folder, if it has one.

    Raises:
        UsageError: It reads something that vidcm cannot make.
    """
    read = int(config.get("in_channels", CHANNELS))
    made = int(config.get("out_channels") or read)
    if config.get("pos_embed_seq_len"):
        raise UsageError(
            "this Wan network continues a first and a last picture; vidcm has those of a first one"
        )
    if read != made:
        masks = read - 2 * made
        if masks < 1:
            raise UsageError(
                f"this Wan network reads {read} channels and makes {made}; vidcm knows those that "
                "read a mask and a picture beside the clip"
            )
        return ImageChannels(masks, _tower(config, root))
    expands = root is not None and (root / INDEX).is_file()
    if expands and root is not None and read_config(root, INDEX).get("expand_timesteps"):
        return FirstFrame()
    return None


def _tower(config: dict[str, Any], root: Path | None) -> PipelineImage | None:
    if config.get("image_dim") is None:
        return None
    if root is None or not (root / ENCODER).is_dir():
        raise UsageError(
            f"this Wan network attends to pictures by CLIP, and there is no folder {ENCODER} "
            "beside it; give the transformer of a whole pipeline"
        )
    return PipelineImage(root)
