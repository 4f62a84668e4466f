"""Control clips of Wan VACE, as `WanVACEPipeline` of diffusers gives them.

The branch reads latents of the pixels that stay, latents of those that are to be generated, each
grey elsewhere, and the mask: 8 x 8 of its pixels for each latent, as channels.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from vidcm.codecs.base import VideoCodec
from vidcm.diffusion.control import Control
from vidcm.errors import UsageError
from vidcm.families.control import ControlSource
from vidcm.media.pixels import to_video

STRIDE = 8  # pixels of a latent


class VaceControl(ControlSource):
    """What VACE follows: a clip, such as one of depths, poses or lines, or parts of a clip.

    Args:
        layers: Of the branch.
    """

    reads, required = "a control clip or a picture", True

    def __init__(self, layers: int):
        self.layers = layers

    def of_pictures(self, codec: VideoCodec, pictures: Tensor, num_frames: int) -> Control:
        first = to_video(pictures.unsqueeze(1))
        rest = first.new_zeros(*first.shape[:2], num_frames - 1, *first.shape[3:])
        video = torch.cat([first, rest], 2)
        mask = torch.ones_like(video[:, 0], dtype=torch.bool)
        mask[:, 0] = False
        return self._encoded(codec, video, mask)

    def of_control_clips(
        self, codec: VideoCodec, frames: Tensor, mask: Tensor, scales: Sequence[float]
    ) -> Control:
        if len(scales) not in (1, self.layers):
            raise UsageError(
                f"control_scale has {len(scales)} numbers and the control branch {self.layers} "
                "layers; give one, or one for each"
            )
        found = self._encoded(codec, to_video(frames), mask)
        weights = torch.tensor(scales, device=frames.device).expand(len(frames), self.layers)
        return Control(channels=found.channels, scales=weights)

    def of_clips(self, codec: VideoCodec, frames: Tensor) -> Control:
        return self.of_pictures(codec, frames[:, 0], frames.shape[1])

    def sizes(self, latents: Sequence[int]) -> dict[str, tuple[int, ...]]:
        channels, *size = latents
        return {"channels": (2 * channels + STRIDE**2, *size)}

    def facts(self) -> dict[str, Any]:
        return {"kind": "vace"}

    def _encoded(self, codec: VideoCodec, video: Tensor, mask: Tensor) -> Control:
        """Control of `video (b 3 t h w)` and `mask (b t h w)`."""
        if codec.stride != STRIDE:
            raise UsageError(
                f"Wan VACE has masks of {STRIDE} pixels for a latent, and this codec has "
                f"{codec.stride}; give the codec of its pipeline"
            )
        marks = mask.unsqueeze(1).to(video)
        latents = torch.cat([codec.encode(video * part) for part in (1 - marks, marks)], 1)
        pixels = rearrange(marks[:, 0], "b t (h i) (w j) -> b (i j) t h w", i=STRIDE, j=STRIDE)
        fewer = F.interpolate(pixels, size=latents.shape[2:], mode="nearest-exact")
        return Control(channels=torch.cat([latents, fewer], 1))
