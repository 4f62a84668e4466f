"""Which clip stands at a position of an endless, shuffled sequence: a pure function, so that any
rank finds its share of any step, and a run resumes anywhere."""

from collections.abc import Collection, Sequence
from functools import lru_cache

import numpy as np

from vidcm.errors import UsageError


class Order:
    """counts: clips of each shape. batch_size: positions of a training step.

    With one shape, epochs are permutations of all clips. With several (buckets), the positions of a
    step share one: an epoch is as many steps of each shape as its clips fill, at least one, in
    random order. What is left over of a shape differs from epoch to epoch."""

    def __init__(self, counts: Sequence[int], batch_size: int):
        self.counts, self.batch_size = list(counts), batch_size
        turns = [max(n // batch_size, 1) for n in counts]
        self.steps = [(k, turn) for k, count in enumerate(turns) for turn in range(count)]

    def at(self, seed: int, position: int, skip: int = 0) -> tuple[int, int]:
        """(shape, number among the clips of that shape). skip: how many after it."""
        if len(self.counts) == 1:
            epoch, place = divmod(position, self.counts[0])
            return 0, self._clip(0, place + skip, seed, epoch)
        step, place = divmod(position, self.batch_size)
        epoch, step = divmod(step, len(self.steps))
        shape, turn = self.steps[_shuffled(len(self.steps), seed, epoch)[step]]
        place += turn * self.batch_size + skip
        # Trailing zeros do not change numpy's seeds, so shapes count from one.
        return shape, self._clip(shape, place, seed, epoch, shape + 1)

    def _clip(self, shape: int, place: int, *seed: int) -> int:
        count = self.counts[shape]
        return int(_shuffled(count, *seed)[place % count])


@lru_cache(maxsize=32)  # threads of a loader ask for the same few
def _shuffled(count: int, *seed: int) -> np.ndarray:
    return np.random.default_rng(seed).permutation(count)


def one_shape(shapes: Collection[int]) -> int:
    """The shape that a batch shares. Raises UsageError for several."""
    if len(shapes) > 1:
        raise UsageError(
            f"clips of {len(shapes)} shapes cannot be one batch; only denoisers train on several "
            "shapes, a batch at a time: give other models data of one"
        )
    return next(iter(shapes))
