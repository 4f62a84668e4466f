"""A source of numbered clips for latent caches, and how it is encoded."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from vidcm.data.encoding import encode_cache
from vidcm.data.source import Clips

COUNTS = (13, 4)  # clips of two shapes


class Numbers:
    """Clip i is filled with i; every fifth cannot be read."""

    def __init__(self, counts: Sequence[int] = COUNTS, mark: str = "a"):
        self.counts: Sequence[int] = counts
        self.facts: Mapping[str, Any] = {"data": "numbers", "mark": mark}
        self.duplicate_bits: int | None = None
        self.reads: list[int] = []

    def read(self, numbers: range) -> Clips:
        good = [i for i in numbers if i % 5 != 3]
        self.reads += numbers
        width = 2 if numbers.start < self.counts[0] else 3
        frames = (
            torch.tensor(good, dtype=torch.uint8).view(-1, 1, 1, 1, 1).expand(-1, 1, 2, width, 3)
        )
        bad = {f"clip {i}": "decode-error" for i in numbers if i not in good}
        return Clips(frames, [[f"a{i}", f"b{i}"] for i in good], [f"clip {i}" for i in good], bad)


def as_latents(frames: torch.Tensor) -> torch.Tensor:
    return frames.permute(0, 4, 1, 2, 3).float() / 8


def run(output: Path, source: Numbers, encode=as_latents, **options: Any) -> dict | None:
    return encode_cache(source, encode, output, codec="c", batch_size=2, shard_size=3, **options)


def files(folder: Path) -> dict[str, bytes]:
    return {f.name: f.read_bytes() for f in sorted(folder.iterdir())}
