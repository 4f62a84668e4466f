"""Joins in time: a made picture drawn to the given one beside it, as little as makes the step
between them no larger than the steps around it.

What a codec decodes is a little off, so a made frame differs from a given one by more than their
motion; and a loop ends where its action does. Pictures are `b 3 h w`, clips `b 3 t h w`, both in
[-1, 1]; what is mixed is whole grey levels, so that rounding brings no step back.
"""

from collections.abc import Sequence

import torch
from torch import Tensor


def drawn(before: Tensor, last: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """Of four pictures in turn the second, mixed with the third: as little of it as makes the step
    between them no larger than the mean of the steps beside it, to 1 / 256; none where it is no
    larger by itself. About 2/3 at most: the step before grows by no more than this one loses, and
    counts half."""
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
    """A clip, its made frames drawn to given ones. given: `(t,)`, which frames are. Only a made
    frame between another made one and two given ones moves: one alone says nothing of motion."""
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
