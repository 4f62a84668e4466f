"""The LPC reference task: layered pixel art composed into captioned 64x64 character animations.

A *combination* names one value per attribute (`{"sex": "female", "hair": "mohawk", ...}`) and has
exactly one true clip. The art (Liberated Pixel Cup, CC-BY-SA-3.0 or GPL-3.0) is read from a folder
or tar of 832x1344 sheets: 13 x 21 cells of 64 pixels, one row per action and direction. Everything
specific to the art is in `lpc.yaml`; composition is one gather and a few blends, so whole batches
are composed wherever the sheets are kept, on a CPU or a GPU.
"""

import hashlib
import io
import tarfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from importlib import resources
from pathlib import Path

import numpy as np
import torch
import yaml
from einops import rearrange
from torch import Tensor

from vidcm.data.batch import Batch
from vidcm.data.captions import speak
from vidcm.errors import UsageError, VidcmError

Combination = dict[str, str]

CELL = 64
ROWS = 21  # five actions x four directions, and the fall
SHEET = (ROWS * CELL, 13 * CELL)
FPS = 8.0


@lru_cache
def vocabulary() -> dict:
    """The parsed `lpc.yaml`: `layers`, `core` and `attributes`."""
    return yaml.safe_load(resources.files("vidcm.data").joinpath("lpc.yaml").read_text("utf-8"))


def held_out(combination: Combination) -> bool:
    """Whether a combination belongs to the test split (one in ten, by hash; never trained on)."""
    text = "|".join(sorted(f"{k}={v}" for k, v in combination.items()))
    return int(hashlib.sha256(text.encode()).hexdigest()[:8], 16) % 10 == 0


class Sheets:
    """Reads sheets from a folder or tar by their path inside it, as uint8 `(21, 13, 64, 64, 4)`."""

    def __init__(self, art: str | Path):
        self.art = Path(art)
        if not self.art.exists():
            raise UsageError(
                f"the LPC art was not found at {self.art}; set data.art or VIDCM_LPC_ART to the "
                "folder or tar of layers (docs/data.md says where to get it)"
            )

    @cached_property
    def _tar(self) -> tuple[tarfile.TarFile, dict[str, tarfile.TarInfo]]:
        try:
            archive = tarfile.open(self.art)
            return archive, {m.name.removeprefix("./"): m for m in archive.getmembers()}
        except tarfile.TarError as error:
            raise UsageError(
                f"{self.art} is neither a folder nor a readable tar: {error}"
            ) from None

    def __getitem__(self, name: str) -> np.ndarray:
        import av
        from av.error import FFmpegError

        if self.art.is_dir():
            path = self.art / name
            blob = path.read_bytes() if path.is_file() else None
        else:
            archive, members = self._tar
            handle = archive.extractfile(members[name]) if name in members else None
            blob = handle.read() if handle else None
        if blob is None:
            raise VidcmError(f"the LPC art at {self.art} lacks the sheet {name}; get it complete")
        try:
            with av.open(io.BytesIO(blob), "r") as container:
                image = next(container.decode(video=0)).to_ndarray(format="rgba")
        except (FFmpegError, StopIteration) as error:
            raise VidcmError(f"cannot read the sheet {name} in {self.art}: {error}") from None
        if image.shape != (*SHEET, 4):
            raise VidcmError(f"the sheet {name} is {image.shape[1]}x{image.shape[0]}, not 832x1344")
        return image.reshape(ROWS, CELL, 13, CELL, 4).transpose(0, 2, 1, 3, 4)


@dataclass(frozen=True)
class Wardrobe:
    """Every sheet of a vocabulary, resampled to clips: `cells` uint8 `(sheets, 21, 4, t, 64, 64)`,
    premultiplied; sheet 0 is empty. `index` maps a path inside the art to its sheet."""

    cells: Tensor
    index: dict[str, int]

    def compose(self, layers: Tensor, rows: Tensor, background: Tensor) -> Tensor:
        """Blend `layers (b, n)` (sheet numbers, bottom first) at `rows (b,)` over `background
        (b, 3)` uint8 -> frames uint8 `(b, t, 64, 64, 3)`; exact 8-bit arithmetic."""
        # A few clips at a time stay in a CPU's cache; a GPU takes the batch whole.
        chunk = len(layers) if self.cells.is_cuda else 2
        parts = zip(layers.split(chunk), rows.split(chunk), background.split(chunk), strict=True)
        return torch.cat([self._compose(*part) for part in parts])

    def _compose(self, layers: Tensor, rows: Tensor, background: Tensor) -> Tensor:
        out = background.to(torch.int32).view(-1, 3, 1, 1, 1)
        for layer in layers.unbind(1):
            if not layer.is_cuda and not layer.any():
                continue
            drawn = self.cells[layer, rows].to(torch.int32)
            out = drawn[:, :3] + (out * (255 - drawn[:, 3:]) + 127) // 255
        out = out.expand(len(layers), 3, *self.cells.shape[3:])
        return rearrange(out.to(torch.uint8), "b c t h w -> b t h w c").contiguous()


class LPC:
    """The reference data set. Endless: sample `i` of seed `s` is the same clip on every machine.

    art: folder or tar of the layers. attributes: the attributes that vary (default: the
    vocabulary's `core`); the others stay at their first value. split: "train" or "heldout".
    partial: share of captions that leave attributes out. Raises UsageError for an unknown
    attribute or split and VidcmError for an incomplete or unreadable art folder.
    """

    def __init__(
        self,
        art: str | Path,
        *,
        attributes: Sequence[str] | None = None,
        num_frames: int = 9,
        split: str = "train",
        partial: float = 0.3,
    ):
        words = vocabulary()
        self.words: dict[str, dict[str, dict]] = words["attributes"]
        chosen = list(attributes or words["core"])
        for name in chosen:
            if name not in self.words:
                raise UsageError(f"unknown LPC attribute {name!r}; one of: {', '.join(self.words)}")
        if split not in ("train", "heldout"):
            raise UsageError(f"unknown split {split!r}; one of: train, heldout")
        missing = [name for name in words["core"] if name not in chosen]
        if missing:
            raise UsageError(f"the attributes {', '.join(missing)} cannot be left out")
        # In the vocabulary's order: what a value may be depends on the attributes before it.
        self.attributes = [name for name in self.words if name in chosen]
        self.layers: list[str] = words["layers"]
        self.num_frames, self.split, self.partial = num_frames, split, partial
        self.sheets = Sheets(art)
        self.device = torch.device("cpu")

    # -- combinations ---------------------------------------------------------------------------

    def values(self, attribute: str, combination: Combination) -> list[str]:
        """The values an attribute may take given the rest of a combination."""
        if attribute == "direction":
            only = self.words["action"][combination["action"]].get("direction")
            return [only] if only else list(self.words[attribute])
        if attribute in ("sex", "action"):
            return list(self.words[attribute])
        sex = combination["sex"]
        return [v for v, entry in self.words[attribute].items() if _exists(entry, sex)]

    def sample(self, rng: np.random.Generator, split: str | None = None) -> Combination:
        """Draw a combination of the split, every attribute uniform over its values."""
        while True:
            combination: Combination = {}
            for attribute in self.attributes:
                allowed = self.values(attribute, combination)
                combination[attribute] = allowed[int(rng.integers(len(allowed)))]
            if held_out(combination) == ((split or self.split) == "heldout"):
                return combination

    def alternatives(self, combination: Combination, attribute: str) -> list[Combination]:
        """The combination with `attribute` at each of its possible values, valid ones only:
        clothes that the other sex lacks are changed to its first, a fall has one direction."""
        others = self.values(attribute, combination)
        return [self._repair({**combination, attribute: value}) for value in others]

    def _repair(self, combination: Combination) -> Combination:
        for attribute in self.attributes:
            allowed = self.values(attribute, combination)
            if combination[attribute] not in allowed:
                combination[attribute] = allowed[0]
        return combination

    def caption(
        self, combination: Combination, rng: np.random.Generator, *, full: bool = False
    ) -> str:
        """A sentence for a combination. full: name every attribute instead of, sometimes, a few."""
        shown = {
            k: v for k, v in combination.items() if v != "none" and self._visible(k, combination)
        }
        return speak(shown, self.words, rng, partial=0.0 if full else self.partial)

    # -- pixels ---------------------------------------------------------------------------------

    @cached_property
    def wardrobe(self) -> Wardrobe:
        """All sheets the attributes can ask for (3 MB each), loaded once on first use."""
        paths = sorted(set(self._all_paths()))
        shape = (len(paths) + 1, ROWS, 4, self.num_frames, CELL, CELL)
        cells = torch.zeros(shape, dtype=torch.uint8)
        clip = np.arange(self.num_frames)
        last = max(self.num_frames - 1, 1)
        for number, path in enumerate(paths, start=1):
            sheet = self.sheets[path]
            for action in self.words["action"].values():
                at = (clip * (action["frames"] - 1) * 2 + last) // (2 * last)
                rows = slice(action["row"], action["row"] + (1 if "direction" in action else 4))
                cells[number, rows] = torch.from_numpy(_premultiply(sheet[rows][:, at]))
        return Wardrobe(cells.to(self.device), {path: i for i, path in enumerate(paths, start=1)})

    def to(self, device: torch.device | str) -> "LPC":
        """Compose on `device` (the sheets move there on first use); returns self."""
        self.device = torch.device(device)
        return self

    def render(self, combinations: Sequence[Combination]) -> Tensor:
        """The true clips, uint8 `(b, t, 64, 64, 3)`."""
        index = self.wardrobe.index
        layers = [[index[p] if p else 0 for p in self._paths(c)] for c in combinations]
        rows = [self._row(c) for c in combinations]
        colors = [self.words["background"][c["background"]]["rgb"] for c in combinations]
        chosen = (torch.tensor(part, device=self.device) for part in (layers, rows, colors))
        return self.wardrobe.compose(*chosen)

    def batch(self, seed: int, positions: Iterable[int]) -> Batch:
        """Clips, captions and labels at positions of the endless sequence of `seed`."""
        combinations, captions = self._draw(seed, positions)
        return Batch(captions, frames=self.render(combinations), labels=self.labels(combinations))

    def _draw(self, seed: int, positions: Iterable[int]) -> tuple[list[Combination], list[str]]:
        combinations, captions = [], []
        for position in positions:
            rng = np.random.default_rng([seed, position])
            combinations.append(self.sample(rng))
            captions.append(self.caption(combinations[-1], rng))
        return combinations, captions

    def labels(self, combinations: Sequence[Combination]) -> Tensor:
        """int64 `(b, attributes)`: the place of each value in the vocabulary's list."""
        places = {a: {v: i for i, v in enumerate(self.words[a])} for a in self.attributes}
        return torch.tensor([[places[a][c[a]] for a in self.attributes] for c in combinations])

    # -- the vocabulary's file names ------------------------------------------------------------

    def _row(self, combination: Combination) -> int:
        action = self.words["action"][combination["action"]]
        if "direction" in action:
            return action["row"]
        return action["row"] + self.words["direction"][combination["direction"]]["offset"]

    def _paths(self, combination: Combination) -> list[str]:
        """One path per layer, bottom first; "" where nothing is drawn."""
        sex = combination["sex"]
        color = self.words["hair_color"][combination["hair_color"]]["color"]
        paths = []
        for layer in self.layers:
            attribute, key = ("cape", "behind") if layer == "cape_behind" else (layer, None)
            if attribute not in combination:
                paths.append("")
                continue
            entry = self.words[attribute][combination[attribute]]
            path = entry.get(key, "") if key else entry.get("file") or entry.get(sex, "")
            paths.append(path.replace("{sex}", sex).replace("{color}", color))
        return paths

    def _all_paths(self) -> Iterable[str]:
        drawn = [a for a in self.attributes if a in self.layers]
        for sex in self.words["sex"]:
            for color in self.words["hair_color"]:
                for attribute in drawn:
                    for value, entry in self.words[attribute].items():
                        if _exists(entry, sex):
                            dressed = {"sex": sex, "hair_color": color, attribute: value}
                            yield from filter(None, self._paths(dressed))

    def _visible(self, attribute: str, combination: Combination) -> bool:
        """Whether an attribute's own layers draw anything in this action and direction."""
        if attribute not in ("weapon", "cape"):
            return True
        worn = {k: combination[k] for k in ("sex", "hair_color", attribute)}
        sheets = [self.wardrobe.index[p] for p in self._paths(worn) if p]
        return bool(self.wardrobe.cells[sheets, self._row(combination), 3].any())


class LPCCaptions(LPC):
    """The same sequence without its clips: captions and labels alone."""

    def batch(self, seed: int, positions: Iterable[int]) -> Batch:
        combinations, captions = self._draw(seed, positions)
        return Batch(captions, labels=self.labels(combinations))


def _premultiply(cells: np.ndarray) -> np.ndarray:
    """uint8 `(r, t, h, w, 4)` -> `(r, 4, t, h, w)` with colours times alpha."""
    cells = np.ascontiguousarray(cells.transpose(0, 4, 1, 2, 3))
    alpha = cells[:, 3:].astype(np.uint16)
    cells[:, :3] = (cells[:, :3] * alpha + 127) // 255
    return cells


def _exists(entry: dict, sex: str) -> bool:
    by_sex = "male" in entry or "female" in entry
    return sex in entry if by_sex else True
