"""Near duplicates among all clips of a cache, by perceptual hashes, once all clips are there."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vidcm.data.shards import Shard, write_shard
from vidcm.diffusion.control import joined
from vidcm.files import file_hash, write_text

REASON = "near-duplicate"


def near_duplicates(fingerprints: Sequence[str], distance: int) -> dict[int, int]:
    """Which clips are near an earlier one that is kept.

    Two hashes that differ in at most d bits are equal in one of d + 1 parts, so only those that
    share a part are compared.

    Args:
        fingerprints: hexadecimal, of one length; the order decides which is kept.
        distance: number of bits that may differ.

    Returns:
        Index of the kept one by that of each near it.
    """
    found: dict[int, int] = {}
    kept: dict[tuple[int, int], list[tuple[int, int]]] = {}  # by part and its bits
    for i, text in enumerate(fingerprints):
        bits, length = int(text, 16), 4 * len(text)
        ends = [length * k // (distance + 1) for k in range(distance + 2)]
        parts = [(a, bits >> a & ((1 << b - a) - 1)) for a, b in zip(ends, ends[1:], strict=False)]
        near = {
            j for part in parts for j, other in kept.get(part, ()) if within(bits, other, distance)
        }
        if near:
            found[i] = min(near)
        else:
            for part in parts:
                kept.setdefault(part, []).append((i, bits))
    return found


def within(a: int, b: int, distance: int) -> bool:
    """Whether two bit strings differ in at most so many bits."""
    return (a ^ b).bit_count() <= distance


def drop_duplicates(folder: Path, records: Mapping[str, dict[str, Any]], distance: int) -> None:
    """Take near duplicates out of the shards of a cache that is not in place yet.

    A clip is left out only if an earlier one stays that is near it, so that a run that was stopped
    in the middle goes on to the same files.

    Args:
        folder: of the shards.
        records: by the name of each shard, in order; they are changed, here and in the folder.
        distance: as in `near_duplicates`.
    """
    fingerprints = [text for record in records.values() for text in record.get("fingerprints", [])]
    names = [name for record in records.values() for name in record["names"]]
    near, first = near_duplicates(fingerprints, distance), 0
    for shard, record in records.items():
        numbers = range(first, first + len(record["names"]))
        first = numbers.stop
        kept = [n - numbers.start for n in numbers if n not in near]
        if len(kept) == len(numbers):
            continue
        file = folder / f"{shard}.safetensors"
        if not kept:
            file.unlink(missing_ok=True)
        else:
            before = Shard(file)
            if len(before.latents) == len(numbers):
                captions = [before.captions(row) for row in kept]
                control = joined([before.control(row) for row in kept])
                write_shard(file, before.latents[kept], captions, control, before.prompts())
            record |= {"bytes": file.stat().st_size, "sha256": file_hash(file)}
        dropped = {names[n]: names[near[n]] for n in numbers if n in near}
        record["duplicates"] = record.get("duplicates", {}) | dropped
        record["left_out"] |= dict.fromkeys(dropped, REASON)
        record["clips"] = len(kept)
        for key in ("names", "fingerprints"):
            record[key] = [record[key][row] for row in kept]
        write_text(folder / f"{shard}.json", json.dumps(record))
