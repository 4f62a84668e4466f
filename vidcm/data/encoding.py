"""Clips to a latent cache, shard by shard: resumable after any kill, by any number of processes.

The work lies in `<output>.partial` until every shard is there; then it becomes the cache. Which
clips a shard holds follows from the source alone, so a resumed run, or another number of processes,
writes the same files. Beside each shard a record accounts for its clips: what each row was made of,
and what was left out for which reason.
"""

import fcntl
import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from vidcm.data.duplicates import drop_duplicates
from vidcm.data.latents import write_index
from vidcm.data.shards import write_shard
from vidcm.errors import UsageError, VidcmError
from vidcm.files import file_hash, replacing, write_text

PLAN = "plan.json"


@dataclass
class Clips:
    """Clips of a source that could be read, all of one shape.

    Attributes:
        frames: uint8 `(b t h w c)`.
        captions: One or more of each clip.
        names: Where each comes from, as `a.mp4 at 2.125 s`.
        left_out: name -> reason of the clips that could not be read, or that a filter left out.
        fingerprints: Of each clip, hexadecimal, if near duplicates are looked for.
    """

    frames: Tensor
    captions: list[list[str]]
    names: list[str]
    left_out: dict[str, str]
    fingerprints: list[str] = field(default_factory=list)


class Source(Protocol):
    """What is encoded: numbered clips, those of one shape in a row.

    Attributes:
        facts: What the clips depend on; they stay in the index, and a partial cache of others is
            refused.
        counts: Number of clips of each shape.
        duplicate_bits: Of clips whose fingerprints differ in at most so many bits, the first is
            kept; None for clips without.
    """

    facts: Mapping[str, Any]
    counts: Sequence[int]
    duplicate_bits: int | None

    def read(self, numbers: range) -> Clips:
        """Read clips of one shape."""
        ...


def encode_cache(
    source: Source,
    encode: Callable[[Tensor], Tensor],
    output: Path,
    *,
    codec: str,
    batch_size: int,
    shard_size: int,
    rank: int = 0,
    world: int = 1,
    overwrite: bool = False,
    progress: Callable[[int], object] = lambda count: None,
) -> dict[str, int] | None:
    """Encode this rank's shards; the last rank to end makes the cache.

    Args:
        source: The clips.
        encode: Frames uint8 `(b t h w c)` to latents `(b c t h w)`.
        output: Folder of the cache.
        codec: sha256 of the codec's weights.
        batch_size: Clips at a time.
        shard_size: Clips of a shard.
        rank: Of this process.
        world: Number of processes, on one or several machines with one file system.
        overwrite: Replace an existing cache, at the end.
        progress: Called with a number of clips, also of those of an earlier run.

    Returns:
        Number of clips of the cache, and of those left out by reason; None while other ranks are
        still at work.

    Raises:
        UsageError: A cache, or a partial one of other clips or settings, is in the way.
        VidcmError: Latents are not finite, no clip is left, or the file system refuses.
    """
    partial = output.with_name(output.name + ".partial")
    shards = _shards(source.counts, shard_size)
    plan = {"codec": codec, "counts": list(source.counts), "shard_size": shard_size}
    plan = json.loads(json.dumps({**plan, **source.facts}))
    if _made(output, plan, world):
        return None
    if output.exists() and not overwrite:
        raise UsageError(f"{output} exists; give another --output, or --overwrite")
    with _owned(partial, rank):
        _begin(partial, plan)
        for name, numbers in shards[rank::world]:
            if (partial / f"{name}.json").is_file():
                progress(len(numbers))
            elif not _made(output, plan, world):
                _encode_shard(source, encode, partial, name, numbers, batch_size, progress)
        found = _finish(source, partial, output, [name for name, _ in shards], codec)
        late = found is None and _made(output, plan, world)
        if late and not list(partial.glob("shard-*")):
            shutil.rmtree(partial, ignore_errors=True)  # begun after it had become the cache
        return found


def _made(output: Path, plan: Mapping[str, Any], world: int) -> bool:
    """Whether other ranks have made the cache already, of shards of an earlier run."""
    try:
        return world > 1 and json.loads((output / PLAN).read_text("utf-8")) == plan
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return False


def _shards(counts: Sequence[int], size: int) -> list[tuple[str, range]]:
    """Names of shards, and the numbers of their clips, which have one shape."""
    found, start = [], 0
    for count in counts:
        for first in range(start, start + count, size):
            numbers = range(first, min(first + size, start + count))
            found.append((f"shard-{len(found):06d}", numbers))
        start += count
    return found


@contextmanager
def _owned(partial: Path, rank: int) -> Iterator[None]:
    """Hold the lock of a rank, so that two runs do not do the same work."""
    partial.mkdir(parents=True, exist_ok=True)
    lock = os.open(partial / f"rank-{rank}.lock", os.O_CREAT | os.O_RDWR)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UsageError(
                f"another process encodes into {partial} as rank {rank}; wait for it, or give each "
                "process a --rank of its own"
            ) from None
        yield
    finally:
        os.close(lock)


def _begin(partial: Path, plan: Mapping[str, Any]) -> None:
    """Write the plan, or compare it with that of an earlier run."""
    file = partial / PLAN
    try:
        before = json.loads(file.read_text("utf-8"))
    except FileNotFoundError:
        write_text(file, json.dumps(plan))
        return
    except ValueError:
        raise VidcmError(f"{file} is damaged; delete {partial} and encode again") from None
    changed = [k for k in {**before, **plan} if before.get(k) != plan.get(k)]
    if changed:
        raise UsageError(
            f"{partial} was begun with another {', '.join(changed)}; go on with the same command, "
            "give another --output, or delete the folder"
        )


def _encode_shard(
    source: Source,
    encode: Callable[[Tensor], Tensor],
    partial: Path,
    name: str,
    numbers: range,
    batch_size: int,
    progress: Callable[[int], object],
) -> None:
    """Write a shard, then its record: the shard is complete, of these clips, without those."""
    latents, captions, names, fingerprints = [], [], [], []
    left_out: dict[str, str] = {}
    for start in range(0, len(numbers), batch_size):
        part = numbers[start : start + batch_size]
        clips = source.read(part)
        left_out |= clips.left_out
        if clips.captions:
            x = encode(clips.frames)
            if not x.isfinite().all():
                raise VidcmError(
                    f"the codec gave values that are not finite for clips {part.start} to "
                    f"{part.stop}"
                )
            latents.append(x.half().cpu())
            captions += clips.captions
            names += clips.names
            fingerprints += clips.fingerprints
        progress(len(part))
    record: dict[str, Any] = {"names": names, "left_out": left_out, "clips": len(captions)}
    if fingerprints:
        record["fingerprints"] = fingerprints
    if captions:
        file = partial / f"{name}.safetensors"
        every = torch.cat(latents)
        write_shard(file, every, captions)
        record |= {
            "shape": list(every.shape[1:]),
            "bytes": file.stat().st_size,
            "sha256": file_hash(file),
        }
    write_text(partial / f"{name}.json", json.dumps(record))


def _finish(
    source: Source, partial: Path, output: Path, names: Sequence[str], codec: str
) -> dict[str, int] | None:
    """Make the cache if all shards are there. One process does, whichever comes first."""
    try:
        lock = os.open(partial / PLAN, os.O_RDONLY)
    except FileNotFoundError:  # another process has made it
        return None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not all((partial / f"{name}.json").is_file() for name in names):
            return None
        records = {n: json.loads((partial / f"{n}.json").read_text("utf-8")) for n in names}
        if source.duplicate_bits is not None:
            drop_duplicates(partial, records, source.duplicate_bits)
        full = {n: record for n, record in records.items() if record["clips"]}
        if not full:
            shutil.rmtree(partial)
            raise VidcmError(f"no clip is left to encode, so {output} is not written")
        reasons = dict(Counter(why for r in records.values() for why in r["left_out"].values()))
        shards = [
            {"name": f"{n}.safetensors", **{k: r[k] for k in ("clips", "shape", "bytes", "sha256")}}
            for n, r in full.items()
        ]
        write_index(partial, shards, codec, {**source.facts, "left_out": reasons})
        if output.exists():
            with replacing(output) as part:
                os.replace(partial, part)
        else:
            os.replace(partial, output)
        for lock_file in output.glob("rank-*.lock"):
            lock_file.unlink()
        return {"clips": sum(r["clips"] for r in full.values()), **reasons}
    finally:
        os.close(lock)
