"""Latents computed ahead of training: shards with an index that names their codec."""

import json
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch

from vidcm.data.batch import Batch
from vidcm.data.order import Order, one_shape
from vidcm.data.shards import Shard
from vidcm.errors import UsageError, VidcmError
from vidcm.files import write_text
from vidcm.rng import mix

INDEX = "index.json"
OPEN_SHARDS = 512  # mapped at once


def read_index(path: str | Path) -> dict[str, Any]:
    """The index of a latent cache.

    Raises:
        UsageError: The folder is no latent cache.
        VidcmError: The index is damaged.
    """
    path = Path(path)
    try:
        index = json.loads((path / INDEX).read_text("utf-8"))
        for shard in index["shards"]:
            shard |= {key: shard[key] for key in ("name", "clips", "shape", "bytes")}
    except FileNotFoundError:
        raise UsageError(
            f"{path} holds no latents ({INDEX} is missing); make them with vidcm encode"
        ) from None
    except (ValueError, KeyError, TypeError):
        raise VidcmError(f"{path / INDEX} is damaged; encode again") from None
    return index


def write_index(folder: Path, shards: Sequence[Mapping], codec: str, about: Mapping) -> None:
    """Write the index, which makes a folder of shards a cache.

    Args:
        folder: Of the shards.
        shards: `name`, `clips`, `shape` and `bytes` of each.
        codec: sha256 of the codec's weights.
        about: Further facts.
    """
    clips = sum(shard["clips"] for shard in shards)
    index = {"codec": codec, "clips": clips, "shards": list(shards), **about}
    write_text(folder / INDEX, json.dumps(index, indent=1))


def stored_captions(path: str | Path) -> Iterator[str]:
    """Yield every caption of a latent cache, without loading its latents."""
    for entry in read_index(path)["shards"]:
        shard = Shard(Path(path) / entry["name"])
        for row in range(entry["clips"]):
            yield from shard.captions(row)


class LatentShards:
    """A latent cache, written by `vidcm encode`.

    Epochs are permutations of all clips; a clip with several captions gets one of them at random.
    Shards are mapped and not loaded, so memory does not grow with the cache.

    Args:
        path: Folder of the cache.
        batch_size: Positions of a training step, which have the same shape.

    Raises:
        UsageError: The folder is not a latent cache.
        VidcmError: The cache is damaged.
    """

    def __init__(self, path: str | Path, batch_size: int = 1):
        self.path, self.index = Path(path), read_index(path)
        by_shape: dict[tuple[int, ...], list[dict]] = {}
        for entry in self.index["shards"]:
            file = self.path / entry["name"]
            if not file.is_file() or file.stat().st_size != entry["bytes"]:
                raise VidcmError(f"{file} is missing or damaged; encode again")
            by_shape.setdefault(tuple(entry["shape"]), []).append(entry)
        if not by_shape:
            raise UsageError(f"{path} holds no clips; encode some")
        self.shapes = list(by_shape)
        self._files = [[self.path / e["name"] for e in entries] for entries in by_shape.values()]
        self._ends = [list(accumulate(e["clips"] for e in es)) for es in by_shape.values()]
        self._open = lru_cache(maxsize=OPEN_SHARDS)(Shard)
        self.order = Order([ends[-1] for ends in self._ends], batch_size)

    def __len__(self) -> int:
        return sum(ends[-1] for ends in self._ends)

    def check_codec(self, fingerprint: str) -> None:
        """Raise UsageError for latents of another codec than that with this hash."""
        if self.index["codec"] != fingerprint:
            raise UsageError(
                f"the latents in {self.path} were made by codec {self.index['codec'][:12]}, not "
                f"{fingerprint[:12]}; encode again or name the codec they were made with"
            )

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
        return choices[mix(seed, position, 1) % len(choices)]

    def _shard(self, shape: int, row: int) -> tuple[Shard, int]:
        """The shard of a clip, and the clip's row in it."""
        ends = self._ends[shape]
        place = bisect_right(ends, row)
        return self._open(self._files[shape][place]), row - (ends[place - 1] if place else 0)

    def batch(self, seed: int, positions: Iterable[int]) -> Batch:
        """Clips at positions of the endless sequence of shuffled epochs.

        Raises:
            UsageError: The positions belong to steps of different shapes.
        """
        latents, captions, shapes = [], [], set()
        for position in positions:
            shape, row = self.order.at(seed, position)
            latents.append(self.latents(shape, row))
            captions.append(self.caption(seed, position, shape, row))
            shapes.add(shape)
        one_shape(shapes)
        return Batch(captions, latents=torch.stack(latents))
