"""Positions to batches. No state: step, rank and world say which samples come next."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

from vidcm.data.batch import Dataset, MicroBatch
from vidcm.errors import UsageError


def positions(step: int, batch_size: int, parts: int, part: int) -> list[int]:
    """The part-th of `parts` equal pieces of the global batch of a step."""
    if batch_size % parts:
        raise UsageError(
            f"batch_size {batch_size} does not divide into {parts} micro-batches (ranks x gradient_accumulation_steps); "
            f"use {batch_size // parts * parts or parts} or {(batch_size // parts + 1) * parts}"
        )
    size = batch_size // parts
    start = step * batch_size + part * size
    return list(range(start, start + size))


def batches(
    data: Dataset,
    *,
    seed: int,
    start: int,
    stop: int,
    batch_size: int,
    gradient_accumulation_steps: int,
    rank: int,
    world: int,
    num_workers: int,
) -> Iterator[list[MicroBatch]]:
    """The micro-batches of this rank for steps `start..stop`, prepared ahead by threads."""

    def one(step: int) -> list[MicroBatch]:
        parts = []
        for turn in range(gradient_accumulation_steps):
            at = positions(
                step, batch_size, world * gradient_accumulation_steps, turn * world + rank
            )
            parts.append(MicroBatch(data.batch(seed, at), seed, at))
        return parts

    if num_workers == 0:
        yield from map(one, range(start, stop))
        return
    with ThreadPoolExecutor(num_workers) as pool:
        ahead = []
        for step in range(start, stop):
            while len(ahead) < num_workers + 1 and step + len(ahead) < stop:
                ahead.append(pool.submit(one, step + len(ahead)))
            yield ahead.pop(0).result()
