"""Joins in time: a generated picture is blended towards the input picture beside it.

The blend is the smallest for which the step between the two is no larger than the steps around it.
What a codec decodes is a little off, so a generated frame differs from an input one by more than
their motion; and a loop ends where its action does. Pictures are `b 3 h w`, clips `b 3 t h w`, both
in [-1, 1]. Blends are rounded to grey levels, so that rounding brings no step back.
"""

from collections.abc import Sequence

import torch
from torch import Tensor


def drawn(before: Tensor, last: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """The second of four pictures in a row, blended towards the third.

    The weight is the smallest, to 1 / 256, for which the step between them is no larger than the
    mean of the two steps beside it; 0 where it already is. It is about 2/3 at most, since the step
    before grows by at most what this step loses and counts half.
    """
    beside = _step(first, second)

    def mixed(share: Tensor) -> Tensor:
        return ((last + _each(share) * (first - last)) * 127.5 + 127.5).round() / 127.5 - 1

    def joins(made: Tensor) -> Tensor:
        return 2 * _step(made, first) <= beside + _step(before, made)

    low, share = torch.zeros_like(beside), torch.ones_like(beside)
    for _ in range(8):
        middle = (low + share) / 2
        enough = joins(mixed(middle))
        low, share = torch.where(enough, low, middle), torch.where(enough, middle, share)
    return torch.where(_each(joins(last)), last, mixed(share))


def drawn_to_start(video: Tensor) -> Tensor:
    """A loop of 3 frames or more, its last one drawn to its first."""
    before, last, first, second = (video[:, :, i] for i in (-2, -1, 0, 1))
    return torch.cat([video[:, :, :-1], drawn(before, last, first, second)[:, :, None]], 2)


def drawn_to_given(video: Tensor, given: Sequence[bool]) -> Tensor:
    """A clip whose generated frames are blended towards input frames.

    Only a generated frame between another generated one and two input ones moves: one alone tells
    nothing of the motion.

    Args:
        video: `(b 3 t h w)` in [-1, 1].
        given: `(t,)`, True for input frames.
    """
    frames = list(video.unbind(2))
    for t in range(len(frames)):
        for way in (1, -1):
            places = range(t - way, t + 3 * way, way)
            inside = min(places) >= 0 and max(places) < len(frames)
            if inside and [given[i] for i in places] == [False, False, True, True]:
                frames[t] = drawn(*(frames[i] for i in places))
    return torch.stack(frames, 2)


def _each(numbers: Tensor) -> Tensor:
    return numbers.view(-1, 1, 1, 1)


def _step(one: Tensor, two: Tensor) -> Tensor:
    """Mean absolute difference: `(b,)`."""
    return (one - two).abs().mean((1, 2, 3))
