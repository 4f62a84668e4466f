"""What a latent cache is made of: numbered clips, read in batches of one shape."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor


@dataclass
class Clips:
    """Clips of a source that could be read, all of one shape.

    Attributes:
        frames: uint8 `(b t h w c)`.
        captions: One or more of each clip.
        names: Where each comes from, as `a.mp4 at 2.125 s`.
        left_out: name -> reason of the clips that could not be read, or that a filter left out.
        fingerprints: Of each clip, hexadecimal, if near duplicates are looked for.
    """

    frames: Tensor
    captions: list[list[str]]
    names: list[str]
    left_out: dict[str, str]
    fingerprints: list[str] = field(default_factory=list)


class Source(Protocol):
    """What is encoded: numbered clips, those of one shape in a row.

    Attributes:
        facts: What the clips depend on; they stay in the index, and a partial cache of others is
            refused.
        counts: Number of clips of each shape.
        duplicate_bits: Of clips whose fingerprints differ in at most so many bits, the first is
            kept; None for clips without.
    """

    facts: Mapping[str, Any]
    counts: Sequence[int]
    duplicate_bits: int | None

    def read(self, numbers: range) -> Clips:
        """Read clips of one shape."""
        ...
