"""Prompts in anybody's words to combinations of LPC attributes, and back to one kind of sentence.

The reference task knows its vocabulary: a prompt is read as attributes, by words (some of several
tokens, with one slip of the fingers allowed), and colours are matched with the nearest noun that
can have them. Needs no torch.
"""

from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property, lru_cache
from importlib import resources
from typing import Any

import numpy as np
import yaml

from vidcm.conditioning.completion import Completion
from vidcm.conditioning.prompts import words_of
from vidcm.lpc.captions import complete_caption
from vidcm.lpc.combinations import Combination, Combinations

PRONOUNS = frozenset({"he", "his", "him", "she", "her"})
STOPS = frozenset(".;:!?")
REACH = 7.0  # largest cost of a colour's way to its noun
STYLE_REACH = 9.0
BEFORE, COMMA, STOP, NOUN = 1.5, 1.5, 6.0, 4.0  # costs of a way, in words
PLACES = ("on", "against", "over", "in front", "onto")  # a colour after them is the background's


@lru_cache
def prompt_words() -> dict[str, Any]:
    """The parsed `prompt_words.yaml`."""
    text = resources.files("vidcm.lpc").joinpath("prompt_words.yaml").read_text("utf-8")
    return yaml.safe_load(text)


class PromptReader:
    """Reads prompts as attributes, by words and their distances, and completes them.

    Args:
        attributes: Attributes that are read (default: the vocabulary's `core`).

    Raises:
        UsageError: Unknown attribute.
    """

    def __init__(self, attributes: Sequence[str] | None = None):
        self.combinations, words = Combinations(attributes), prompt_words()
        self.fillers = frozenset(words["fillers"])
        self.qualifiers = frozenset(words["qualifiers"])
        self.colors = {w: color for color, group in words["colors"].items() for w in group}
        self.garments: list[Mapping[str, Any]] = words["garments"]
        self.nouns = {w: i for i, g in enumerate(self.garments) for w in g["nouns"]}
        self.meanings: dict[str, list[tuple[str, str, float]]] = {}
        for attribute, values in words["words"].items():
            for value, weights in values.items():
                if attribute == "action":
                    weights = {f: n for w, n in weights.items() for f in _forms(w)} | weights
                for word, weight in weights.items():
                    self.meanings.setdefault(word, []).append((attribute, value, weight))
        hair = words["hair"]
        self.styles = {w: style for style, group in hair["anywhere"].items() for w in group}
        self.near_hair = {
            w: (rank, style) for rank, (style, group) in enumerate(hair["near"]) for w in group
        }

    # -- reading --------------------------------------------------------------------------------

    def read(self, prompt: str) -> Combination:
        """The attributes that a prompt names, as far as the vocabulary has them."""
        tokens = self._tokens(prompt)
        found = self._matched(tokens)
        scores = self._scores(tokens)
        scores |= {k: v for k, v in found.items() if k not in scores or scores[k][1] < 1}
        named = {attribute: value for attribute, (value, _) in scores.items()}
        if style := self._style(tokens):
            named["hair"] = style
        return self._possible(named)

    def complete(
        self, prompt: str, seed: int, before: Mapping[str, str] | None = None
    ) -> Completion:
        """As in `PromptReader`; every attribute has a draw of its own."""
        named = self.read(prompt)
        rng = np.random.default_rng([seed, 0x1FC])
        start = dict(before or {}) | named
        if "sex" not in named and str(named.get("torso", "")).endswith("_dress"):
            start["sex"] = "female"
        combination: Combination = {}
        for attribute in self.combinations.attributes:
            draw = float(rng.random())
            allowed = self.combinations.values(attribute, combination)
            value = start.get(attribute)
            combination[attribute] = (
                value if value in allowed else allowed[int(draw * len(allowed))]
            )
        named = {k: v for k, v in named.items() if combination[k] == v}
        drawn = {k: v for k, v in combination.items() if k not in named}
        return Completion(self.caption(combination), named, drawn)

    def caption(self, combination: Mapping[str, str]) -> str:
        """The sentence that models read."""
        return complete_caption(combination, self.combinations.words)

    def knows(self, word: str) -> bool:
        """Whether a word of a prompt means something here, or needs no meaning."""
        return word in PRONOUNS | self.fillers or self._corrected(word) in self._words

    def _possible(self, named: Combination) -> Combination:
        """What the vocabulary can show of what is named."""
        if named.get("action") == "hurt":
            named.pop("direction", None)
        female = str(named.get("torso", "")).endswith("_dress")
        if female and named.get("sex") == "male":
            del named["torso"]
        known = self.combinations.words
        return {
            k: named[k] for k in self.combinations.attributes if named.get(k) in known.get(k, {})
        }

    def _tokens(self, prompt: str) -> list[str]:
        """Words and stops without fillers, multi-word terms joined, near misses corrected."""
        words = [self._corrected(w.lstrip("0123456789") or w) for w in words_of(_plain(prompt))]
        words = [w for w in words if w not in self.fillers or w in PRONOUNS]
        tokens: list[str] = []
        while words:
            for length in range(min(4, len(words)), 0, -1):
                # Pronouns stay as words, but do not part a term ("turned her back").
                run = words[: length + sum(w in PRONOUNS for w in words[:length])]
                term = " ".join(w for w in run if w not in PRONOUNS)
                if length == 1 or term in self._terms:
                    break
            if length == 1:
                tokens.append(words.pop(0))
                continue
            tokens += [w for w in run if w in PRONOUNS] + [term]
            del words[: len(run)]
        return tokens

    @cached_property
    def _terms(self) -> frozenset[str]:
        """All terms, of one word or several."""
        every = (self.colors, self.nouns, self.meanings, self.styles, self.near_hair, PLACES)
        return frozenset(term for group in every for term in group)

    @cached_property
    def _words(self) -> frozenset[str]:
        """The words of all terms."""
        return frozenset(word for term in self._terms for word in term.split())

    def _corrected(self, word: str) -> str:
        """A word of the vocabulary that differs by one slip of the fingers, or the word itself."""
        if len(word) < 5 or word in self._words or word in self.fillers:
            return word
        return next((w for w in sorted(self._words) if _one_slip(word, w)), word)

    def _scores(self, tokens: Sequence[str]) -> dict[str, tuple[str, float]]:
        """attribute -> (value, weight) by the words that say a value by themselves."""
        sums: dict[str, dict[str, float]] = {}
        for token in tokens:
            for attribute, value, weight in self.meanings.get(token, ()):
                values = sums.setdefault(attribute, {})
                values[value] = values.get(value, 0) + weight
        best = {a: max(values, key=values.__getitem__) for a, values in sums.items()}
        return {a: (value, sums[a][value]) for a, value in best.items()}

    def _matched(self, tokens: Sequence[str]) -> dict[str, tuple[str, float]]:
        """attribute -> (value, weight) by colours, each given to the noun it is nearest to."""
        pairs: list[tuple[float, int, int, str, str]] = []
        for i, token in enumerate(tokens):
            color = self.colors.get(token)
            if color is None:
                continue
            for j, garment in self._nouns_of(tokens, i):
                if value := garment["values"].get(color):
                    cost = self._cost(tokens, i, j)
                    if cost <= REACH:
                        pairs.append((cost, i, j, garment["attribute"], value))
        found: dict[str, tuple[str, float]] = {}
        colors, nouns = set[int](), set[int]()
        for _, i, j, attribute, value in sorted(pairs):
            if i in colors or j in nouns or attribute in found:
                continue
            colors.add(i)
            nouns.add(j)
            found[attribute] = value, 1.0
        return found

    def _nouns_of(
        self, tokens: Sequence[str], color: int
    ) -> Iterable[tuple[int, Mapping[str, Any]]]:
        """Places of the nouns that the colour at a place may belong to."""
        for j, token in enumerate(tokens):
            if token in self.nouns:
                yield j, self.garments[self.nouns[token]]
        last = color + 1 == len(tokens) or not tokens[color + 1][0].isalnum()
        place = color - 1
        while place > 0 and tokens[place] in self.qualifiers:
            place -= 1
        if last and place >= 0 and tokens[place] in PLACES:
            yield place, self.garments[self.nouns["background"]]

    def _cost(self, tokens: Sequence[str], color: int, noun: int) -> float:
        """Words between a colour and a noun, and what lies between them."""
        low, high = sorted((color, noun))
        between = tokens[low + 1 : high]
        cost = float(sum(t[0].isalnum() and t not in PRONOUNS for t in between))
        if noun < color and tokens[noun] not in PLACES:
            cost += BEFORE
        for token in between:
            if token == ",":
                cost += COMMA
            elif token == ":" and noun < color:
                cost -= 0.5
            elif token in STOPS:
                cost += STOP
            elif token in self.nouns:
                cost += NOUN
        return cost

    def _style(self, tokens: Sequence[str]) -> str | None:
        """The style of the hair."""
        for token in tokens:
            if token in self.styles:
                return self.styles[token]
        hair = [
            i
            for i, t in enumerate(tokens)
            if t in self.nouns and self.garments[self.nouns[t]]["attribute"] == "hair_color"
        ]
        near = {
            self.near_hair[t]
            for i, t in enumerate(tokens)
            if t in self.near_hair and any(self._cost(tokens, i, j) <= STYLE_REACH for j in hair)
        }
        return min(near)[1] if near else None


def _plain(prompt: str) -> str:
    """A prompt with brackets and bars as stops, and signs of equality as colons."""
    return prompt.translate(
        str.maketrans({c: " . " for c in "[]|+"} | {"=": ": ", "/": " ", "(": ", ", ")": ", "})
    )


def _forms(verb: str) -> list[str]:
    """A verb with its regular endings."""
    stem = verb.removesuffix("e")
    doubled = verb + verb[-1] if verb[-1] in "bgpt" and verb[-2] in "aeiou" else stem
    s = verb + ("es" if verb.endswith(("sh", "ch", "s", "x", "o")) else "s")
    return [verb, s, f"{doubled}ing", f"{stem}ing", f"{doubled}ed", f"{stem}ed"]


def _one_slip(word: str, other: str) -> bool:
    """Whether words differ by two letters swapped, or one too many, missing or wrong."""
    if abs(len(word) - len(other)) > 1 or word[0] != other[0] or len(other) < 5:
        return False
    i = next((i for i, (a, b) in enumerate(zip(word, other, strict=False)) if a != b), len(other))
    a, b = word[i:], other[i:]
    swapped = len(a) > 1 and len(b) > 1 and a[0] == b[1] and a[1] == b[0] and a[2:] == b[2:]
    wrong = len(word) > 6 and a[1:] == b[1:]
    return swapped or a[1:] == b or a == b[1:] or wrong
