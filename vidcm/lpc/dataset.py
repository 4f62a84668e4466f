"""The LPC reference task: layered pixel art composed into captioned 64x64 character animations.

A *combination* names one value per attribute (`{"sex": "female", "hair": "mohawk", ...}`) and has
exactly one true clip. The art (Liberated Pixel Cup, CC-BY-SA-3.0 or GPL-3.0) is read from a folder
or tar of sheets. Everything specific to the art is in `lpc.yaml`. Composition is one gather and a
few blends, so batches are composed on the device that holds the sheets.
"""

import threading
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from vidcm.data.batch import Batch
from vidcm.lpc.captions import CaptionComposer
from vidcm.lpc.combinations import Combination, Combinations, available
from vidcm.lpc.wardrobe import CELL, ROWS, Sheets, Wardrobe, premultiply

FPS = 8.0


class LPC(Combinations):
    """The reference data set; endless, and sample `i` of seed `s` is the same on every machine.

    Args:
        art: folder or tar of the layers (default: the path in VIDCM_LPC_ART).
        attributes: attributes that vary (default: the vocabulary's `core`); the others keep their
            first value.
        num_frames: frames per clip.
        split: "train" or "heldout".
        partial: share of captions, 0 to 1, that omit attributes.

    Raises:
        UsageError: unknown attribute or split, or no art.
        VidcmError: incomplete or unreadable art, when clips are first rendered.
    """

    def __init__(
        self,
        art: str | Path | None = None,
        *,
        attributes: Sequence[str] | None = None,
        num_frames: int = 9,
        split: str = "train",
        partial: float = 0.3,
    ):
        super().__init__(attributes, split)
        self.num_frames, self.partial = num_frames, partial
        self.sheets = Sheets(art)
        self.device = torch.device("cpu")
        self._wardrobe: Wardrobe | None = None
        self._loading = threading.Lock()

    def caption(
        self, combination: Combination, rng: np.random.Generator, *, full: bool = False
    ) -> str:
        """A caption for a combination; full: without omitting attributes."""
        visible = {
            k: v for k, v in combination.items() if v != "none" and self._visible(k, combination)
        }
        partial = 0.0 if full else self.partial
        return CaptionComposer(visible, self.words, rng, partial).compose()

    # -- pixels ---------------------------------------------------------------------------------

    @property
    def wardrobe(self) -> Wardrobe:
        """All sheets of the attributes (3 MB each), loaded on first use by one thread."""
        with self._loading:
            if self._wardrobe is None:
                self._wardrobe = self._load()
            return self._wardrobe

    def _load(self) -> Wardrobe:
        paths = sorted(set(self._all_paths()))
        shape = (len(paths) + 1, ROWS, 4, self.num_frames, CELL, CELL)
        cells = torch.zeros(shape, dtype=torch.uint8)
        clip = np.arange(self.num_frames)
        last = max(self.num_frames - 1, 1)
        for number, sheet in enumerate(self.sheets.load(paths), start=1):
            for action in self.words["action"].values():
                at = (clip * (action["frames"] - 1) * 2 + last) // (2 * last)
                rows = slice(action["row"], action["row"] + (1 if "direction" in action else 4))
                cells[number, rows] = torch.from_numpy(premultiply(sheet[rows][:, at]))
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

    size = None  # samples are composed

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
        """int64 `(b, attributes)`: the index of each value in the vocabulary."""
        index = {a: {v: i for i, v in enumerate(self.words[a])} for a in self.attributes}
        return torch.tensor([[index[a][c[a]] for a in self.attributes] for c in combinations])

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
                        if available(entry, sex):
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
    """`LPC` without clips: the same sequence of captions and labels."""

    def batch(self, seed: int, positions: Iterable[int]) -> Batch:
        combinations, captions = self._draw(seed, positions)
        return Batch(captions, labels=self.labels(combinations))
