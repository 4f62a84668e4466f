"""What a run would need, and what to change where that is too much, as text."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

from vidcm.config import LoraConfig, TrainConfig
from vidcm.errors import UsageError
from vidcm.train.memory import Memory, estimate

CARDS = (24, 40, 80, 140)  # GiB
USABLE = 0.9  # of a card: the rest is for the driver, work space of kernels and fragments


def report(
    config: TrainConfig, world: int, clip: Sequence[int] | None, *, foreach: bool
) -> Iterator[str]:
    """Lines: memory by part, where it fits, and changes of the config one after the other.

    Args:
        config: Of the run, with precision fp32 or bf16.
        world: Number of ranks.
        clip: Frames, height and width; None for the data's.
        foreach: As in `estimate`.

    Raises:
        UsageError: The parts of the config do not fit together.
    """
    found = estimate(config, world, clip, foreach=foreach)
    yield f"memory per rank, {world} rank{'s' * (world > 1)}, {config.precision}"
    for name, size in [*found.parts.items(), ("activations, work space", found.work)]:
        yield f"  {name:<24}{_gib(size)}"
    yield f"  {'peak of a step':<24}{_gib(found.step)}"
    yield f"  {'peak of a preview':<24}{_gib(found.preview)}   (rank 0, every sample_every steps)"
    if config.async_checkpoints:
        copy = "memory of rank 0's host, beside these; none with async_checkpoints=false"
        yield f"  {'copy for a checkpoint':<24}{_gib(found.checkpoint)}   ({copy})"
    spare = f"{1 - USABLE:.0%} of a card is left for the driver, work space and fragments"
    yield f"{_fits(found)}; {spare}"
    if _smallest(found) == CARDS[0]:
        return
    yield "with one change after the other:"
    for name, changed in _changes(config, world):
        try:
            found = estimate(changed, world, clip, foreach=foreach)
        except UsageError as error:
            yield f"  {name}: {error}"
            continue
        config = changed
        yield f"  {name:<34}{_gib(found.peak)}   {_fits(found)}"
        if _smallest(found) == CARDS[0]:
            return
    more = "more ranks (--world)" if world > 1 else "ranks to share (--world 8) with zero=2"
    yield f"and beyond: {more}, a shorter or smaller clip (--clip), lora"


def _changes(config: TrainConfig, world: int) -> Iterator[tuple[str, TrainConfig]]:
    """Changes that save memory, each on top of those before."""
    if config.precision != "bf16":
        config = replace(config, precision="bf16")
        yield "precision=bf16", config
    if not config.activation_checkpointing:
        config = replace(config, activation_checkpointing=True)
        yield "activation_checkpointing=true", config
    parts = config.batch_size // world
    if parts > config.gradient_accumulation_steps:
        config = replace(config, gradient_accumulation_steps=parts)
        yield f"gradient_accumulation_steps={parts}", config
    for stage in range(max(config.zero + 1, 2), 4) if world > 1 else ():
        config = replace(config, zero=stage)
        yield f"zero={stage}", config
    if config.start and not config.lora and not config.init_text:
        yield "lora={rank: 16}", replace(config, lora=LoraConfig())


def _smallest(found: Memory) -> int | None:
    """The smallest card that a run fits on."""
    return next((card for card in CARDS if found.peak <= USABLE * card * 2**30), None)


def _fits(found: Memory) -> str:
    card = _smallest(found)
    return f"fits on {card} GB" if card else f"does not fit on {CARDS[-1]} GB"


def _gib(size: int) -> str:
    return f"{size / 2**30:9.2f} GiB"
