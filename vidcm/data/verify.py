"""Whether a finished latent cache is as its index says."""

import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vidcm.data.latents import INDEX, read_index
from vidcm.data.remote import is_remote
from vidcm.data.shard_folder import LocalShards
from vidcm.data.shards import Shard
from vidcm.errors import UsageError, VidcmError
from vidcm.files import file_hash


@dataclass
class Verified:
    """What was found in a cache.

    Attributes:
        shards: Number of shards.
        clips: Number of clips of the index.
        bad: Name of a file -> what is wrong with it.
        mend: A shell command after which the command that encoded the cache mends it.
    """

    shards: int
    clips: int
    bad: dict[str, str]
    mend: str


def verify_cache(path: str, progress: Callable[[int], object] = lambda count: None) -> Verified:
    """Read every shard of a cache, and compare it with the index.

    Args:
        path: Folder of the cache.
        progress: Called with a number of shards.

    Raises:
        UsageError: It is no latent cache.
        VidcmError: Its index is damaged; the message has the command that mends it.
    """
    if is_remote(path):
        raise UsageError(f"{path} is remote; copy it, remote shards are checked when they are used")
    folder = Path(path)
    try:
        index = read_index(LocalShards(folder))
    except UsageError:
        raise
    except VidcmError:
        raise VidcmError(
            f"{folder / INDEX} is damaged; {_mend(folder, [])}  # then call the command again that "
            "encoded it"
        ) from None
    bad, clips = {}, 0
    for entry in index["shards"]:
        if reason := _reason(
            folder / entry["name"], entry, with_text=index.get("text") is not None
        ):
            bad[entry["name"]] = reason
        clips += entry["clips"]
        progress(1)
    known = {entry["name"] for entry in index["shards"]}
    others = sorted(p.name for p in folder.glob("*.safetensors") if p.name not in known)
    bad |= dict.fromkeys(others, "is not in the index")
    if index.get("clips", clips) != clips:
        bad[INDEX] = f"counts {index['clips']} clips, and its shards have {clips}"
    return Verified(len(known), clips, bad, _mend(folder, list(bad)))


def _reason(file: Path, entry: dict[str, Any], *, with_text: bool) -> str | None:
    """What is wrong with a shard."""
    if not file.is_file():
        return "is missing"
    if (size := file.stat().st_size) != entry["bytes"]:
        return f"has {size} bytes, expected {entry['bytes']}"
    if file_hash(file) != entry.get("sha256"):
        return "has another sha256 than the index says"
    try:
        shard, shape = Shard(file), (entry["clips"], *entry["shape"])
        if tuple(shard.latents.shape) != shape:
            return f"holds latents of {tuple(shard.latents.shape)}, expected {shape}"
        for row in range(entry["clips"]):
            shard.captions(row)
        if with_text and not shard.prompts():
            return "holds no text tokens"
    except VidcmError as error:
        return str(error)
    return None


def _mend(folder: Path, bad: list[str]) -> str:
    """The command that makes a cache a partial one, without the files that are bad."""
    folder = folder.absolute()  # `.` has no name
    partial = folder.with_name(folder.name + ".partial")
    stems = [name.removesuffix(".safetensors") for name in bad if name != INDEX]
    files = [
        shlex.quote(f"{partial}/{stem}.{end}") for stem in stems for end in ("json", "safetensors")
    ]
    move = f"mv {shlex.quote(str(folder))} {shlex.quote(str(partial))}"
    return f"{move} && rm -f {' '.join(files)}" if files else move
