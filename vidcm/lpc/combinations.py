"""Combinations of LPC attributes, without pixels: what exists, draws, labels."""

import hashlib
from collections.abc import Sequence
from functools import lru_cache
from importlib import resources

import numpy as np
import yaml

from vidcm.errors import UsageError

Combination = dict[str, str]


@lru_cache
def vocabulary() -> dict:
    """The parsed `lpc.yaml`: `layers`, `core` and `attributes`."""
    return yaml.safe_load(resources.files("vidcm.lpc").joinpath("lpc.yaml").read_text("utf-8"))


def held_out(combination: Combination) -> bool:
    """Whether a combination belongs to the test split: one in ten, by hash."""
    text = "|".join(sorted(f"{k}={v}" for k, v in combination.items()))
    return int(hashlib.sha256(text.encode()).hexdigest()[:8], 16) % 10 == 0


def available(entry: dict, sex: str) -> bool:
    """Whether a value exists for a sex."""
    by_sex = "male" in entry or "female" in entry
    return sex in entry if by_sex else True


class Combinations:
    """All combinations of some attributes.

    Args:
        attributes: Attributes that vary (default: the vocabulary's `core`); the others keep their
            first value.
        split: "train" or "heldout".

    Raises:
        UsageError: Unknown attribute or split.
    """

    def __init__(self, attributes: Sequence[str] | None = None, split: str = "train"):
        words = vocabulary()
        self.layers: list[str] = words["layers"]
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
        self.split = split

    def values(self, attribute: str, combination: Combination) -> list[str]:
        """The values an attribute may take given the rest of a combination."""
        if attribute == "direction":
            only = self.words["action"][combination["action"]].get("direction")
            return [only] if only else list(self.words[attribute])
        if attribute in ("sex", "action"):
            return list(self.words[attribute])
        sex = combination["sex"]
        return [v for v, entry in self.words[attribute].items() if available(entry, sex)]

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
        """The combination with each possible value of `attribute`, in the vocabulary's order.

        Attributes that the value rules out (clothes of the other sex, directions of a fall) get
        their first valid value.
        """
        others = self.values(attribute, combination)
        return [self.repair({**combination, attribute: value}) for value in others]

    def repair(self, combination: Combination) -> Combination:
        """Replace values that the others rule out by the first that exists, in place."""
        for attribute in self.attributes:
            allowed = self.values(attribute, combination)
            if combination[attribute] not in allowed:
                combination[attribute] = allowed[0]
        return combination
