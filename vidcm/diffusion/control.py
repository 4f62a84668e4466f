"""What a network reads beside noisy latents and text: pictures, masks, control clips."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class Region:
    """A part of a clip.

    Attributes:
        frames: Its latent frames, in order; the first of the clip is always one of them.
        rows: Its latents along the height.
        columns: Its latents along the width.
        place: The middle of its frames along the clip, frame 0 left out.
    """

    frames: list[int]
    rows: slice
    columns: slice
    place: float

    def of(self, x: Tensor) -> Tensor:
        """The part of `x (b, c, t, h, w)`; of one that has only the first frames, those of it."""
        frames = [frame for frame in self.frames if frame < x.shape[2]]
        return x[:, :, frames, self.rows, self.columns]


@dataclass(frozen=True)
class Control:
    """What a network is given beside text; a family of models makes it and its network reads it.

    Guidance, samplers, objectives and windows pass it on with the condition.

    Attributes:
        channels: Latents `(b, c, t, h, w)` that the network reads beside the noisy ones.
        tokens: Tokens of pictures `(b, n, d)` that it attends to beside the text.
        given: The first latent frames `(b, c, k, h, w)`, which it sees clean, at time 0 of their
            own, and which every prediction has.
        scales: Weights `(b, layers)` of what each layer of a control branch adds; None for 1.
    """

    channels: Tensor | None = None
    tokens: Tensor | None = None
    given: Tensor | None = None
    scales: Tensor | None = None

    def tensors(self) -> dict[str, Tensor]:
        """Those that there are, by name."""
        return {name: x for name, x in vars(self).items() if x is not None}

    def map(self, function: Callable[[Tensor], Tensor]) -> "Control":
        """A function of each tensor."""
        return Control(**{name: function(x) for name, x in self.tensors().items()})

    def rows(self, part: slice | Tensor) -> "Control":
        """Some samples of the batch."""
        return self.map(lambda x: x[part])

    def inside(self, region: Region) -> "Control":
        """That of a part of the clip."""
        latents = {n: x for n, x in self.tensors().items() if n in ("channels", "given")}
        return replace(self, **{name: region.of(x) for name, x in latents.items()})


def joined(controls: Sequence[Control | None]) -> Control | None:
    """Controls of one kind as one batch; None where no sample has one."""
    found = [c for c in controls if c is not None]
    if not found:
        return None
    assert len(found) == len(controls), "a batch is of one kind"
    names = found[0].tensors()
    return Control(**{n: torch.cat([c.tensors()[n] for c in found]) for n in names})
