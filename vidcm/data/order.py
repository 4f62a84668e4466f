"""Shuffled epochs as a pure function of position, so that ranks share steps and runs resume."""

from bisect import bisect_right
from collections.abc import Collection, Sequence
from functools import lru_cache
from itertools import accumulate

import numpy as np

from vidcm.errors import UsageError
from vidcm.rng import mix

MAX_TABLE = 2**16  # items of a permutation that is kept as a table
ROUNDS = 6


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
        self._ends = list(accumulate(max(n // batch_size, 1) for n in counts))  # of steps

    @property
    def steps(self) -> int:
        """Steps of an epoch."""
        return self._ends[-1]

    def at(self, seed: int, position: int, skip: int = 0) -> tuple[int, int]:
        """Index of the shape, and of the clip within it, `skip` clips after the position."""
        if len(self.counts) == 1:
            epoch, place = divmod(position, self.counts[0])
            return 0, self._clip(0, place + skip, seed, epoch)
        step, place = divmod(position, self.batch_size)
        epoch, step = divmod(step, self.steps)
        step = shuffled(self.steps, step, seed, epoch)
        shape = bisect_right(self._ends, step)
        i = step - (self._ends[shape - 1] if shape else 0)
        place += i * self.batch_size + skip
        # Trailing zeros do not change numpy's seeds, so shapes count from one.
        return shape, self._clip(shape, place, seed, epoch, shape + 1)

    def _clip(self, shape: int, place: int, *seed: int) -> int:
        count = self.counts[shape]
        return shuffled(count, place % count, *seed)


def shuffled(count: int, place: int, *seed: int) -> int:
    """The item at a place of a random permutation of `count` items, determined by the seed.

    Large permutations are computed item by item, in constant memory: a Feistel network permutes the
    smallest power of 4 that holds `count`, and is applied again while it leads beyond (Black &
    Rogaway 2002, "Ciphers with arbitrary finite domains", cycle walking).
    """
    if count <= MAX_TABLE:
        return int(_table(count, *seed)[place])
    half = (count - 1).bit_length() + 1 >> 1
    key, mask = mix(*seed), (1 << half) - 1
    while True:
        left, right = place >> half, place & mask
        for number in range(ROUNDS):
            left, right = right, left ^ mix(key, number, right) & mask
        place = left << half | right
        if place < count:
            return place


@lru_cache(maxsize=32)  # threads of a loader use the same few
def _table(count: int, *seed: int) -> np.ndarray:
    return np.random.default_rng(seed).permutation(count)


def one_shape(shapes: Collection[int]) -> int:
    """The shape of a batch. Raises UsageError for several."""
    if len(shapes) > 1:
        raise UsageError(
            f"clips of {len(shapes)} shapes cannot be one batch; only denoisers train on several "
            "shapes, a batch at a time: give other models data of one"
        )
    return next(iter(shapes))
