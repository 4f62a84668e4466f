"""Shuffled epochs as a pure function of position, so that ranks share steps and runs resume."""

from collections.abc import Collection, Sequence
from functools import lru_cache

import numpy as np

from vidcm.errors import UsageError


class Order:
    """The clip at each position of an endless, shuffled sequence.

    With one shape, epochs are permutations of all clips. With several (buckets), all positions of a
    step have the same shape; an epoch has as many steps of a shape as its clips fill, at least one,
    in random order, and leaves out different clips each time.

    Args:
        counts: number of clips of each shape.
        batch_size: positions of a training step.
    """

    def __init__(self, counts: Sequence[int], batch_size: int):
        self.counts, self.batch_size = list(counts), batch_size
        steps = [max(n // batch_size, 1) for n in counts]
        self.steps = [(shape, i) for shape, count in enumerate(steps) for i in range(count)]

    def at(self, seed: int, position: int, skip: int = 0) -> tuple[int, int]:
        """Index of the shape, and of the clip within it, `skip` clips after the position."""
        if len(self.counts) == 1:
            epoch, place = divmod(position, self.counts[0])
            return 0, self._clip(0, place + skip, seed, epoch)
        step, place = divmod(position, self.batch_size)
        epoch, step = divmod(step, len(self.steps))
        shape, i = self.steps[_shuffled(len(self.steps), seed, epoch)[step]]
        place += i * self.batch_size + skip
        # Trailing zeros do not change numpy's seeds, so shapes count from one.
        return shape, self._clip(shape, place, seed, epoch, shape + 1)

    def _clip(self, shape: int, place: int, *seed: int) -> int:
        count = self.counts[shape]
        return int(_shuffled(count, *seed)[place % count])


@lru_cache(maxsize=32)  # threads of a loader use the same few
def _shuffled(count: int, *seed: int) -> np.ndarray:
    return np.random.default_rng(seed).permutation(count)


def one_shape(shapes: Collection[int]) -> int:
    """The shape of a batch. Raises UsageError for several."""
    if len(shapes) > 1:
        raise UsageError(
            f"clips of {len(shapes)} shapes cannot be one batch; only denoisers train on several "
            "shapes, a batch at a time: give other models data of one"
        )
    return next(iter(shapes))
