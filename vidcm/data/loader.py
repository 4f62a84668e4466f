"""Batches of a run, prepared ahead; step, rank and world determine the samples."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

from vidcm.data.batch import Dataset, MicroBatch
from vidcm.errors import UsageError


def positions(step: int, batch_size: int, parts: int, part: int) -> list[int]:
    """Positions of one of `parts` equal parts of the global batch of a step.

    Raises:
        UsageError: `parts` does not divide `batch_size`.
    """
    if batch_size % parts:
        raise UsageError(
            f"batch_size {batch_size} does not divide into {parts} micro-batches (ranks x "
            f"gradient_accumulation_steps); use {batch_size // parts * parts or parts} or "
            f"{(batch_size // parts + 1) * parts}"
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
    """Yield the micro-batches of this rank, step by step.

    Args:
        data: the data set.
        seed: of the order and of all draws.
        start: first step.
        stop: step after the last.
        batch_size: samples of a step on all ranks together.
        gradient_accumulation_steps: micro-batches of a step and rank.
        rank: of this process.
        world: number of processes.
        num_workers: threads that prepare batches ahead; 0 prepares them when they are needed.
    """
    count = world * gradient_accumulation_steps

    def load(step: int) -> list[MicroBatch]:
        parts = [positions(step, batch_size, count, k) for k in range(rank, count, world)]
        return [MicroBatch(data.batch(seed, part), seed, part) for part in parts]

    if num_workers == 0:
        yield from map(load, range(start, stop))
        return
    with ThreadPoolExecutor(num_workers) as pool:
        ahead = []
        for step in range(start, stop):
            while len(ahead) < num_workers + 1 and step + len(ahead) < stop:
                ahead.append(pool.submit(load, step + len(ahead)))
            yield ahead.pop(0).result()
