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
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vidcm.data.caption_tokens import CaptionTokens
from vidcm.data.clip_control import ClipControl
from vidcm.data.duplicates import drop_duplicates
from vidcm.data.latents import write_index
from vidcm.data.partial_cache import PLAN, begin, is_complete, owned, put_in_place, restore
from vidcm.data.shards import write_shard
from vidcm.data.source import Source
from vidcm.diffusion.control import joined
from vidcm.errors import UsageError, VidcmError
from vidcm.files import file_hash, write_text


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
    text: CaptionTokens | None = None,
    progress: Callable[[int], object] = lambda count: None,
    control: ClipControl | None = None,
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
        text: Gives captions the tokens of a text tower, which are kept beside the latents.
        progress: Called with a number of clips, also of those of an earlier run.
        control: Makes what the network reads beside captions, which is kept too.

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
    about = dict(source.facts) | ({} if control is None else {"control": control.facts})
    about |= {} if text is None else {"text": text.key}
    plan = json.loads(json.dumps({**plan, **about}))
    restore(partial, output)
    before = output.exists()  # asked first: another rank may be making it
    if is_complete(output, plan, world):
        return None
    if before and not overwrite:
        raise UsageError(f"{output} exists; give another --output, or --overwrite")
    with owned(partial, rank):
        begin(partial, plan)
        for name, numbers in shards[rank::world]:
            if (partial / f"{name}.json").is_file():
                progress(len(numbers))
            elif not is_complete(output, plan, world):
                _encode_shard(
                    source, encode, partial, name, numbers, batch_size, progress, control, text
                )
        found = _finish(source, partial, output, [name for name, _ in shards], codec, about)
        late = found is None and is_complete(output, plan, world)
        if late and not list(partial.glob("shard-*")):
            shutil.rmtree(partial, ignore_errors=True)  # begun after it had become the cache
        return found


def _shards(counts: Sequence[int], size: int) -> list[tuple[str, range]]:
    """Names of shards, and the numbers of their clips, which have one shape."""
    found, start = [], 0
    for count in counts:
        for first in range(start, start + count, size):
            numbers = range(first, min(first + size, start + count))
            found.append((f"shard-{len(found):06d}", numbers))
        start += count
    return found


def _encode_shard(
    source: Source,
    encode: Callable[[Tensor], Tensor],
    partial: Path,
    name: str,
    numbers: range,
    batch_size: int,
    progress: Callable[[int], object],
    control: ClipControl | None,
    text: CaptionTokens | None,
) -> None:
    """Write a shard, then its record: the shard is complete, of these clips, without those."""
    latents, captions, names, fingerprints, controls = [], [], [], [], []
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
            if control is not None:
                controls.append(control(clips.frames).map(lambda x: x.half().cpu()))
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
        if text is None:
            write_shard(file, every, captions, joined(controls))
        else:
            write_shard(file, every, text(captions), joined(controls), text.prompts)
        record |= {
            "shape": list(every.shape[1:]),
            "bytes": file.stat().st_size,
            "sha256": file_hash(file),
        }
    write_text(partial / f"{name}.json", json.dumps(record))


def _finish(
    source: Source,
    partial: Path,
    output: Path,
    names: Sequence[str],
    codec: str,
    about: Mapping[str, Any],
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
        write_index(partial, shards, codec, {**about, "left_out": reasons})
        put_in_place(partial, output)
        return {"clips": sum(r["clips"] for r in full.values()), **reasons}
    finally:
        os.close(lock)
