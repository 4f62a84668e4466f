"""LPC clips encoded ahead of training, and read with captions that are composed anew each time."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vidcm.data.latents import LatentShards
from vidcm.data.source import Clips
from vidcm.errors import UsageError
from vidcm.lpc.captions import CaptionComposer, complete_caption
from vidcm.lpc.combinations import Combination, Combinations
from vidcm.lpc.dataset import LPC


class LPCLatents(LatentShards):
    """A cache of `vidcm encode --data lpc`; the cached captions are not used.

    Args:
        path: Folder of the cache.
        batch_size: Positions of a training step.
        partial: Share of captions, 0 to 1, that omit attributes.
        complete: Share of captions that are the sentence to which prompts are completed.

    Raises:
        UsageError: The folder is no cache of LPC clips, or a share is out of range.
        VidcmError: The cache is damaged.
    """

    def __init__(
        self, path: str | Path, batch_size: int = 1, partial: float = 0.3, complete: float = 0.3
    ):
        super().__init__(path, batch_size, cached_text=False)
        if not (0 <= partial <= 1 and 0 <= complete <= 1):
            raise UsageError(f"partial {partial}, complete {complete}: shares are 0 to 1")
        if self.index.get("data") != "lpc" or len(self.shapes) != 1:
            raise UsageError(f"{path} holds no LPC clips of one shape; use the data latents")
        attributes = self.index["attributes"]
        if unseen := {"cape", "weapon"} & set(attributes):  # only the art says where they are drawn
            raise UsageError(f"{path} has {', '.join(sorted(unseen))}; use the data latents")
        self.combinations = Combinations(attributes, self.index["split"])
        self.partial, self.complete = partial, complete

    def combination(self, row: int) -> Combination:
        """The combination of a cached clip, as `vidcm encode` drew it."""
        return self.combinations.sample(np.random.default_rng([self.index["seed"], row]))

    def caption(self, seed: int, position: int, shape: int, row: int) -> str:
        """A caption composed for the position."""
        rng = np.random.default_rng([seed, position, row])
        combination, words = self.combination(row), self.combinations.words
        if rng.random() < self.complete:
            return complete_caption(combination, words)
        visible = {k: v for k, v in combination.items() if v != "none"}
        return CaptionComposer(visible, words, rng, self.partial).compose()


class LPCSource:
    """LPC clips as a source of `encode_cache`: clip `i` is the combination that seed and `i` draw.

    Args:
        data: Composes them.
        count: Number of clips.
        seed: Of the combinations and captions.
        captions_per_clip: Captions of each clip in the cache.
    """

    def __init__(self, data: LPC, count: int, seed: int, captions_per_clip: int):
        self.data, self.seed, self.captions_per_clip = data, seed, captions_per_clip
        self.counts: Sequence[int] = [count]
        self.duplicate_bits: int | None = None
        self.facts: Mapping[str, Any] = {
            "data": "lpc",
            "seed": seed,
            "attributes": data.attributes,
            "split": data.split,
            "captions_per_clip": captions_per_clip,
        }

    def read(self, numbers: range) -> Clips:
        """As in `Source`."""
        combinations, captions = [], []
        for i in numbers:
            rng = np.random.default_rng([self.seed, i])
            combinations.append(self.data.sample(rng))
            drawn = range(self.captions_per_clip)
            captions.append([self.data.caption(combinations[-1], rng) for _ in drawn])
        return Clips(self.data.render(combinations), captions, [str(i) for i in numbers], {})
