"""How the pipelines of diffusers lay out latents while they sample."""

from abc import ABC, abstractmethod
from collections.abc import Sequence

from einops import rearrange
from torch import Tensor

from vidcm.errors import UsageError
from vidcm.families.base import Family


class SampleLayout(ABC):
    """From `(b c t h w)` to a pipeline's layout and back."""

    @abstractmethod
    def pack(self, x: Tensor) -> Tensor:
        """Our latents in the pipeline's layout."""

    @abstractmethod
    def unpack(self, x: Tensor, shape: Sequence[int]) -> Tensor:
        """The pipeline's latents in our layout, of the given shape."""


class SameLayout(SampleLayout):
    """Wan's and AnyFlow's: ours."""

    def pack(self, x: Tensor) -> Tensor:
        return x

    def unpack(self, x: Tensor, shape: Sequence[int]) -> Tensor:
        return x


class FramesFirst(SampleLayout):
    """CogVideoX's: `(b t c h w)`."""

    def pack(self, x: Tensor) -> Tensor:
        return x.movedim(1, 2)

    def unpack(self, x: Tensor, shape: Sequence[int]) -> Tensor:
        return x.movedim(2, 1)


class Tokens(SampleLayout):
    """LTX's: `(b, t h w, c)`, a latent for each token."""

    def pack(self, x: Tensor) -> Tensor:
        return rearrange(x, "b c t h w -> b (t h w) c")

    def unpack(self, x: Tensor, shape: Sequence[int]) -> Tensor:
        _, _, t, h, w = shape
        return rearrange(x, "b (t h w) c -> b c t h w", t=t, h=h, w=w)


LAYOUTS = {
    "wan": SameLayout(),
    "wan_vace": SameLayout(),
    "anyflow": SameLayout(),
    "cogvideox": FramesFirst(),
    "ltx": Tokens(),
}


def layout_of(family: Family) -> SampleLayout:
    """The layout of a family's pipeline. Raises UsageError for one that is not known."""
    if family.name not in LAYOUTS:
        raise UsageError(f"vidcm exports no pipeline of {family.name} ({', '.join(LAYOUTS)})")
    return LAYOUTS[family.name]
