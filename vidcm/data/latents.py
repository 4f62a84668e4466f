"""Latents computed ahead of time: safetensors shards beside an index that names their codec."""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from vidcm.data.batch import Batch
from vidcm.errors import UsageError, VidcmError
from vidcm.rng import mix
from vidcm.store import replacing

INDEX = "index.json"


class LatentShards:
    """A folder written by `tools/encode.py`. Epochs are permutations of all clips; a clip with
    several captions gives one of them at random. Everything is a function of (seed, position).

    Raises UsageError when the folder is not a latent cache or (see `check_codec`) not this codec's.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self._last: tuple[tuple[int, int], np.ndarray] | None = None
        try:
            self.index = json.loads((self.path / INDEX).read_text("utf-8"))
            shards = self.index["shards"]
        except FileNotFoundError:
            raise UsageError(
                f"{path} holds no latents ({INDEX} is missing); make them with tools/encode.py"
            ) from None
        except (ValueError, KeyError, TypeError):
            raise VidcmError(f"{self.path / INDEX} is damaged; encode again") from None
        parts, self.captions = [], []
        for name in shards:
            try:
                with safe_open(str(self.path / f"{name}.safetensors"), "pt") as file:
                    parts.append(file.get_tensor("latents"))
                self.captions += json.loads((self.path / f"{name}.json").read_text("utf-8"))
            except Exception as error:
                raise VidcmError(
                    f"the shard {name} of {path} cannot be read ({error}); encode again"
                ) from None
        if not parts:
            raise UsageError(f"{path} holds no clips; encode some")
        self.latents: Tensor = torch.cat(parts)
        if len(self.captions) != len(self.latents):
            raise VidcmError(
                f"{path} has {len(self.latents)} clips but {len(self.captions)} captions; encode again"
            )

    def __len__(self) -> int:
        return len(self.latents)

    def check_codec(self, fingerprint: str) -> None:
        """Refuse latents of another codec."""
        if self.index["codec"] != fingerprint:
            raise UsageError(
                f"the latents in {self.path} were made by codec {self.index['codec'][:12]}, not "
                f"{fingerprint[:12]}; encode again or name the codec they were made with"
            )

    def batch(self, seed: int, positions: Iterable[int]) -> Batch:
        """Clips at positions of the endless sequence of epochs."""
        rows, captions = [], []
        for position in positions:
            epoch, place = divmod(position, len(self))
            row = int(self._order(seed, epoch)[place])
            choices = self.captions[row]
            rows.append(row)
            captions.append(choices[mix(seed, position, 1) % len(choices)])
        return Batch(captions, latents=self.latents[rows].float())

    def _order(self, seed: int, epoch: int) -> np.ndarray:
        found = self._last  # read once: loader threads share it
        if found is None or found[0] != (seed, epoch):
            order = np.random.default_rng([seed, epoch]).permutation(len(self))
            found = self._last = ((seed, epoch), order)
        return found[1]


def write_shards(
    folder: str | Path,
    clips: Iterator[tuple[Tensor, list[list[str]]]],
    *,
    codec: str,
    about: dict,
    shard_size: int = 4096,
) -> int:
    """Write (latents `(b c t h w)`, captions of each) to a new folder, whole or not at all;
    returns the number of clips. codec: fingerprint. about: facts for the index."""
    names: list[str] = []
    count = 0
    with replacing(Path(folder)) as part:
        latents: list[Tensor] = []
        captions: list[list[str]] = []

        def flush() -> None:
            if not latents:
                return
            names.append(f"shard-{len(names):05d}")
            save_file(
                {"latents": torch.cat(latents).contiguous()}, part / f"{names[-1]}.safetensors"
            )
            (part / f"{names[-1]}.json").write_text(json.dumps(captions), "utf-8")
            latents.clear()
            captions.clear()

        for x, said in clips:
            if not x.isfinite().all():
                raise VidcmError(
                    f"the codec gave values that are not finite for clips {count} to {count + len(x)}"
                )
            latents.append(x.half().cpu())
            captions.extend(said)
            count += len(x)
            if len(captions) >= shard_size:
                flush()
        flush()
        index = {"codec": codec, "clips": count, "shards": names, **about}
        (part / INDEX).write_text(json.dumps(index, indent=1), "utf-8")
    return count
