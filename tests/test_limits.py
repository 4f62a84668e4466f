"""Clips that cannot fit into memory are refused with an estimate."""

import pytest

from vidcm import limits
from vidcm.errors import UsageError


def test_the_memory_of_this_machine_is_known():
    assert 2**28 < limits.memory() < 2**50


@pytest.mark.parametrize(
    "shape, fits",
    [
        ((1, 9, 64, 64), True),
        ((100_000, 9, 64, 64), False),
        ((1, 9, 65536, 65536), False),
        ((1, 99_997, 64, 64), False),
        ((64, 9, 64, 64), True),
    ],
)
def test_more_than_memory_is_refused_with_an_estimate(shape, fits, monkeypatch):
    monkeypatch.setattr(limits, "memory", lambda: 8 * 2**30)
    if fits:
        limits.check_memory(*shape)
    else:
        with pytest.raises(
            UsageError, match=r"need about \S+ GiB of memory and this machine has 8;"
        ):
            limits.check_memory(*shape)


def test_a_larger_batch_needs_more(monkeypatch):
    monkeypatch.setattr(limits, "memory", lambda: 2**30)
    limits.check_memory(64, 9, 256, 256)
    with pytest.raises(UsageError, match="64 clips of 9 frames of 256x256"):
        limits.check_memory(64, 9, 256, 256, batch_size=64)
