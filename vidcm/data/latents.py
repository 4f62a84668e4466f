"""Latents computed ahead of training: shards with an index that names their codec."""

import json
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch

from vidcm.conditioning.embedded import EmbeddedPrompt
from vidcm.data.batch import Batch
from vidcm.data.clip_control import check_control
from vidcm.data.order import Order, one_shape
from vidcm.data.shard_folder import ShardFolder, shard_folder
from vidcm.data.shards import Shard
from vidcm.diffusion.control import joined
from vidcm.errors import UsageError, VidcmError
from vidcm.families.cached_text import CachedText
from vidcm.families.control import ControlSource
from vidcm.families.text import PipelineText
from vidcm.files import write_text
from vidcm.rng import mix

INDEX = "index.json"
CACHE_GB = 20.0


def read_index(folder: ShardFolder) -> dict[str, Any]:
    """The index of a latent cache.

    Raises:
        UsageError: The folder is no latent cache.
        VidcmError: The index is damaged.
    """
    try:
        index = json.loads(folder.index(INDEX))
        known = isinstance(index["codec"], str) and all(map(_is_entry, index["shards"]))
        if not known or not _is_text(index.get("text")):
            raise TypeError
    except (FileNotFoundError, NotADirectoryError):
        raise UsageError(
            f"{folder} holds no latents ({INDEX} is missing); make them with vidcm encode"
        ) from None
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        raise VidcmError(f"{folder}/{INDEX} is damaged; encode again") from None
    return index


def _is_entry(shard: Mapping[str, Any]) -> bool:
    """Whether an entry of the index is one that `write_index` may have written."""
    name, clips, shape = shard["name"], shard["clips"], shard["shape"]
    numbers = [clips, shard["bytes"], *shape]
    # A name leads to no other folder.
    plain = isinstance(name, str) and Path(name).name == name and "\0" not in name
    return plain and len(shape) == 4 and all(type(n) is int and n > 0 for n in numbers)


def _is_text(text: Mapping[str, Any] | None) -> bool:
    """Whether a key `text` of the index is one that `CaptionTokens` may have written."""
    return text is None or (isinstance(text["tower"], str) and type(text["length"]) is int)


def write_index(folder: Path, shards: Sequence[Mapping], codec: str, about: Mapping) -> None:
    """Write the index, which makes a folder of shards a cache.

    Args:
        folder: Of the shards.
        shards: `name`, `clips`, `shape`, `bytes` and `sha256` of each.
        codec: sha256 of the codec's weights.
        about: Further facts.
    """
    clips = sum(shard["clips"] for shard in shards)
    index = {"codec": codec, "clips": clips, "shards": list(shards), **about}
    write_text(folder / INDEX, json.dumps(index, indent=1))


def stored_captions(path: str | Path, cache_gb: float = CACHE_GB) -> Iterator[str]:
    """Yield every caption of a latent cache, without loading its latents."""
    folder = shard_folder(path, cache_gb)
    for entry in read_index(folder)["shards"]:
        shard = folder.open(entry)
        for row in range(entry["clips"]):
            yield from shard.captions(row)


class LatentShards:
    """A latent cache, written by `vidcm encode`.

    Epochs are permutations of all clips; a clip with several captions gets one of them at random.
    Shards are mapped and not loaded, so memory does not grow with the cache.

    Args:
        path: Folder of the cache, or a URL that fsspec reads, such as s3://bucket/latents. Remote
            shards are copied as they are needed, and checked against the hashes of the index.
        batch_size: Positions of a training step, which have the same shape.
        cache_gb: Bound of the local copies of remote shards, in GB.
        cached_text: Use text tokens where the cache holds some, instead of running a frozen text
            tower in training.

    Attributes:
        text: What the tokens depend on; None where none are used.

    Raises:
        UsageError: The folder is not a latent cache.
        VidcmError: The cache is damaged.
    """

    def __init__(
        self,
        path: str | Path,
        batch_size: int = 1,
        cache_gb: float = CACHE_GB,
        cached_text: bool = True,
    ):
        self.folder = shard_folder(path, cache_gb)
        self.index = read_index(self.folder)
        self.text: dict[str, Any] | None = self.index.get("text") if cached_text else None
        by_shape: dict[tuple[int, ...], list[dict]] = {}
        for entry in self.index["shards"]:
            self.folder.check(entry)
            by_shape.setdefault(tuple(entry["shape"]), []).append(entry)
        if not by_shape:
            raise UsageError(f"{path} holds no clips; encode some")
        self.shapes = list(by_shape)
        self._entries = list(by_shape.values())
        self._ends = [list(accumulate(e["clips"] for e in es)) for es in by_shape.values()]
        largest = max(entry["bytes"] for entry in self.index["shards"])
        self._open = lru_cache(self.folder.most_open(largest))(self._opened)
        self.order = Order([ends[-1] for ends in self._ends], batch_size)

    def __len__(self) -> int:
        return sum(ends[-1] for ends in self._ends)

    def check_codec(self, fingerprint: str) -> None:
        """Raise UsageError for latents of another codec than that with this hash."""
        if self.index["codec"] != fingerprint:
            raise UsageError(
                f"the latents in {self.folder} were made by codec {self.index['codec'][:12]}, not "
                f"{fingerprint[:12]}; encode again or name the codec they were made with"
            )

    def check_control(self, source: ControlSource | None) -> None:
        """Raise UsageError for latents without the control of a network, or with another's."""
        check_control(self.index.get("control"), source, str(self.folder))

    def cached_tower(self, tower: PipelineText) -> CachedText | None:
        """What takes the place of a frozen text tower; None where no tokens are used.

        Raises:
            UsageError: The tokens are another tower's, or of another length.
        """
        if self.text is None:
            return None
        fix = "encode again with --text, or set data.cached_text=false to run the tower in training"
        if self.text["length"] != tower.family.text_length:
            raise UsageError(
                f"the text tokens in {self.folder} are {self.text['length']} a prompt, and "
                f"{tower.family.name} models read {tower.family.text_length}; {fix}"
            )
        if self.text["tower"] != (own := tower.fingerprint()):
            raise UsageError(
                f"the text tokens in {self.folder} were made by the tower "
                f"{self.text['tower'][:12]}, and that of {tower.root} is {own[:12]}; {fix}"
            )
        known = [prompt.in_memory() for prompt in self._open(0, 0).prompts()]
        return CachedText(tower, known, str(self.folder))

    @property
    def size(self) -> int:
        return len(self)

    def latents(self, shape: int, row: int) -> torch.Tensor:
        """Latents `(c t h w)` of a clip, float32.

        Args:
            shape: Index of its shape in `shapes`.
            row: Of the clip among those of the shape.
        """
        shard, row = self._shard(shape, row)
        return shard.latents[row].float()

    def captions(self, shape: int, row: int) -> list[str]:
        """All captions of a clip; arguments as of `latents`."""
        shard, row = self._shard(shape, row)
        return shard.captions(row)

    def caption(self, seed: int, position: int, shape: int, row: int) -> str:
        """The caption of a clip at a position."""
        choices = self.captions(shape, row)
        found = choices[mix(seed, position, 1) % len(choices)]
        return found.in_memory() if isinstance(found, EmbeddedPrompt) else found

    def place(self, shape: int, row: int) -> tuple[dict[str, Any], int]:
        """The index entry of the shard of a clip, and the clip's row in it."""
        number, row = self._place(shape, row)
        return self._entries[shape][number], row

    def _place(self, shape: int, row: int) -> tuple[int, int]:
        ends = self._ends[shape]
        number = bisect_right(ends, row)
        return number, row - (ends[number - 1] if number else 0)

    def _shard(self, shape: int, row: int) -> tuple[Shard, int]:
        """The shard of a clip, and the clip's row in it."""
        number, row = self._place(shape, row)
        return self._open(shape, number), row

    def _opened(self, shape: int, number: int) -> Shard:
        """A shard, whose latents must have the size that the index says."""
        entry = self._entries[shape][number]
        shard, size = self.folder.open(entry), (entry["clips"], *self.shapes[shape])
        if tuple(shard.latents.shape) != size:
            raise VidcmError(
                f"{shard.path} holds latents of {tuple(shard.latents.shape)}, and the index says "
                f"{size}; encode again"
            )
        return shard

    def batch(self, seed: int, positions: Iterable[int]) -> Batch:
        """Clips at positions of the endless sequence of shuffled epochs.

        Raises:
            UsageError: The positions belong to steps of different shapes.
        """
        latents, captions, controls, shapes = [], [], [], set()
        for position in positions:
            shape, row = self.order.at(seed, position)
            latents.append(self.latents(shape, row))
            captions.append(self.caption(seed, position, shape, row))
            shard, place = self._shard(shape, row)
            controls.append(shard.control(place))
            shapes.add(shape)
        one_shape(shapes)
        return Batch(captions, latents=torch.stack(latents), control=joined(controls))
