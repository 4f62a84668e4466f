"""What networks that read more than text are given, and how it is made."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

from torch import Tensor

from vidcm.codecs.base import VideoCodec
from vidcm.diffusion.control import Control
from vidcm.errors import UsageError


class ControlSource(ABC):
    """Makes the control of a network.

    Attributes:
        reads: What a user gives for it, as in messages: "a picture".
        required: Whether the network needs it.
    """

    reads: ClassVar[str]
    required: ClassVar[bool]

    @abstractmethod
    def of_pictures(self, codec: VideoCodec, pictures: Tensor, num_frames: int) -> Control:
        """The control of clips that begin with pictures.

        Args:
            codec: Of the network.
            pictures: uint8 `(b, h, w, 3)`, of the clip's size.
            num_frames: Of the clip.
        """

    def of_control_clips(
        self, codec: VideoCodec, frames: Tensor, mask: Tensor, scales: Sequence[float]
    ) -> Control:
        """The control of clips that follow other clips.

        Args:
            codec: Of the network.
            frames: uint8 `(b, t, h, w, 3)`, of the clip's frames and size.
            mask: bool `(b, t, h, w)`, True where pixels are to be generated.
            scales: Weights of the control, one for all layers or one for each.

        Raises:
            UsageError: The network reads no control clips.
        """
        raise UsageError(f"this model takes {self.reads}, and no control clip")

    @abstractmethod
    def of_clips(self, codec: VideoCodec, frames: Tensor) -> Control:
        """The control that training clips are given with.

        Args:
            codec: Of the network.
            frames: uint8 `(b, t, h, w, 3)`.
        """

    @abstractmethod
    def sizes(self, latents: Sequence[int]) -> dict[str, tuple[int, ...]]:
        """Shapes of its tensors, by name, for one clip of latents `(c, t, h, w)`."""

    @abstractmethod
    def facts(self) -> dict[str, Any]:
        """What its tensors depend on beside codec and clips, as plain data."""

    def towers(self) -> list[Any]:
        """Frozen networks that make it, beside the codec."""
        return []
