"""Latents of LPC clips computed ahead of training, with captions composed anew each time."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from vidcm.data.batch import Batch
from vidcm.data.latents import LatentShards
from vidcm.data.order import one_shape
from vidcm.errors import UsageError
from vidcm.lpc.captions import CaptionComposer, complete_caption
from vidcm.lpc.combinations import Combination, Combinations


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
        super().__init__(path, batch_size)
        if not (0 <= partial <= 1 and 0 <= complete <= 1):
            raise UsageError(f"partial {partial}, complete {complete}: shares are 0 to 1")
        if self.index.get("data") != "lpc" or len(self.latents) != 1:
            raise UsageError(f"{path} holds no LPC clips of one shape; use the data latents")
        attributes = self.index["attributes"]
        if unseen := {"cape", "weapon"} & set(attributes):  # only the art says where they are drawn
            raise UsageError(f"{path} has {', '.join(sorted(unseen))}; use the data latents")
        self.combinations = Combinations(attributes, self.index["split"])
        self.partial, self.complete = partial, complete

    def batch(self, seed: int, positions: Iterable[int]) -> Batch:
        """As in `LatentShards`, with captions of the position."""
        rows, captions, shapes = [], [], set()
        for position in positions:
            shape, row = self.order.at(seed, position)
            rng = np.random.default_rng([seed, position, row])
            rows.append(row)
            captions.append(self.caption(self.combination(row), rng))
            shapes.add(shape)
        return Batch(captions, latents=self.latents[one_shape(shapes)][rows].float())

    def combination(self, row: int) -> Combination:
        """The combination of a cached clip, as `vidcm encode` drew it."""
        return self.combinations.sample(np.random.default_rng([self.index["seed"], row]))

    def caption(self, combination: Combination, rng: np.random.Generator) -> str:
        """A caption of a combination."""
        words = self.combinations.words
        if rng.random() < self.complete:
            return complete_caption(combination, words)
        visible = {k: v for k, v in combination.items() if v != "none"}
        return CaptionComposer(visible, words, rng, self.partial).compose()
