"""What networks are given beside captions, made of training clips."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from vidcm.codecs.base import VideoCodec
from vidcm.diffusion.control import Control
from vidcm.errors import UsageError
from vidcm.families.control import ControlSource


class ClipControl:
    """Makes the control of clips.

    Args:
        source: Of the network that will be trained.
        codec: Of that network.
        device: Of the codec.
    """

    def __init__(self, source: ControlSource, codec: VideoCodec, device: torch.device):
        self.source, self.codec, self.device = source, codec, device

    @property
    def facts(self) -> dict[str, Any]:
        """What it depends on, beside codec and clips."""
        return self.source.facts()

    @torch.no_grad()
    def __call__(self, frames: Tensor) -> Control:
        """The control of clips, frames uint8 `(b t h w c)`."""
        return self.source.of_clips(self.codec, frames.to(self.device))


def check_control(
    cached: Mapping[str, Any] | None, source: ControlSource | None, where: str
) -> None:
    """Refuse data without what a network needs, or with what it does not read.

    Args:
        cached: Facts of the control that is in the data; None for none.
        source: Of the network.
        where: The data, for messages.

    Raises:
        UsageError: They do not fit.
    """
    if cached is None:
        if source is not None and source.required:
            raise UsageError(
                f"the network needs {source.reads} beside the captions, and {where} has none; "
                "encode with --control and the network's folder"
            )
    elif source is None or dict(cached) != source.facts():
        raise UsageError(
            f"{where} was encoded with what another network reads beside captions; encode with "
            "--control and this network's folder, or without where it reads none"
        )
