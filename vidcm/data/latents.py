"""Latents computed ahead of training: safetensors shards with an index that names their codec."""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from vidcm.data.batch import Batch
from vidcm.data.order import Order, one_shape
from vidcm.errors import UsageError, VidcmError
from vidcm.files import replacing
from vidcm.rng import mix
from vidcm.store import save_tensors

INDEX = "index.json"


def stored_captions(path: str | Path) -> Iterator[str]:
    """Yield every caption of a latent cache, without loading its latents."""
    index = json.loads((Path(path) / INDEX).read_text("utf-8"))
    for name in index["shards"]:
        for captions in json.loads((Path(path) / f"{name}.json").read_text("utf-8")):
            yield from captions


class LatentShards:
    """A latent cache, written by `vidcm encode`.

    Epochs are permutations of all clips; a clip with several captions gets one of them at random.

    Args:
        path: folder of the cache.
        batch_size: positions of a training step, which have the same shape.

    Raises:
        UsageError: the folder is not a latent cache.
        VidcmError: the cache is damaged.
    """

    def __init__(self, path: str | Path, batch_size: int = 1):
        self.path = Path(path)
        try:
            self.index = json.loads((self.path / INDEX).read_text("utf-8"))
            shards = self.index["shards"]
        except FileNotFoundError:
            raise UsageError(
                f"{path} holds no latents ({INDEX} is missing); make them with vidcm encode"
            ) from None
        except (ValueError, KeyError, TypeError):
            raise VidcmError(f"{self.path / INDEX} is damaged; encode again") from None
        shapes: dict[tuple[int, ...], list[Tensor]] = {}
        captions: dict[tuple[int, ...], list[list[str]]] = {}
        for name in shards:
            try:
                with safe_open(str(self.path / f"{name}.safetensors"), "pt") as file:
                    latents = file.get_tensor("latents")
                shape = tuple(latents.shape[1:])
                shapes.setdefault(shape, []).append(latents)
                texts = json.loads((self.path / f"{name}.json").read_text("utf-8"))
                captions.setdefault(shape, []).extend(texts)
            except Exception as error:
                raise VidcmError(
                    f"the shard {name} of {path} cannot be read ({error}); encode again"
                ) from None
        if not shapes:
            raise UsageError(f"{path} holds no clips; encode some")
        self.latents: list[Tensor] = [torch.cat(parts) for parts in shapes.values()]
        self.captions: list[list[list[str]]] = list(captions.values())
        for latents, texts in zip(self.latents, self.captions, strict=True):
            if len(texts) != len(latents):
                raise VidcmError(
                    f"{path} has {len(latents)} clips but {len(texts)} captions; encode again"
                )
        self.order = Order([len(latents) for latents in self.latents], batch_size)

    def __len__(self) -> int:
        return sum(map(len, self.latents))

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

    def batch(self, seed: int, positions: Iterable[int]) -> Batch:
        """Clips at positions of the endless sequence of shuffled epochs.

        Raises:
            UsageError: the positions belong to steps of different shapes.
        """
        rows, captions, shapes = [], [], set()
        for position in positions:
            shape, row = self.order.at(seed, position)
            choices = self.captions[shape][row]
            rows.append(row)
            captions.append(choices[mix(seed, position, 1) % len(choices)])
            shapes.add(shape)
        return Batch(captions, latents=self.latents[one_shape(shapes)][rows].float())


def write_shards(
    folder: str | Path,
    clips: Iterator[tuple[Tensor, list[list[str]]]],
    *,
    codec: str,
    about: dict,
    shard_size: int = 4096,
) -> int:
    """Write a latent cache atomically.

    Args:
        folder: the folder to write.
        clips: latents `(b c t h w)` and the captions of each clip. A shard has one shape, so clips
            of the same shape should be consecutive.
        codec: sha256 of the codec's weights.
        about: facts for the index.
        shard_size: clips of a shard, about.

    Returns:
        Number of clips.

    Raises:
        VidcmError: latents are not finite, there are none, or the folder cannot be written.
    """
    names: list[str] = []
    count = 0
    with replacing(folder) as part:
        part.mkdir()
        latents: list[Tensor] = []
        captions: list[list[str]] = []

        def flush() -> None:
            if not latents:
                return
            names.append(f"shard-{len(names):05d}")
            save_tensors({"latents": torch.cat(latents)}, part / f"{names[-1]}.safetensors")
            (part / f"{names[-1]}.json").write_text(json.dumps(captions), "utf-8")
            latents.clear()
            captions.clear()

        for x, texts in clips:
            if not x.isfinite().all():
                raise VidcmError(
                    f"the codec gave values that are not finite for clips {count} to "
                    f"{count + len(x)}"
                )
            if latents and latents[0].shape[1:] != x.shape[1:]:
                flush()
            latents.append(x.half().cpu())
            captions.extend(texts)
            count += len(x)
            if len(captions) >= shard_size:
                flush()
        flush()
        if not count:
            raise VidcmError(f"no clip is left to write into {folder}; give clips of enough frames")
        index = {"codec": codec, "clips": count, "shards": names, **about}
        (part / INDEX).write_text(json.dumps(index, indent=1), "utf-8")
    return count
