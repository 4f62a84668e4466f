"""Captions of LPC combinations, varied in order, words and completeness."""

from collections.abc import Mapping, Sequence

import numpy as np

# Attributes that a caption may omit; sex and action always stay, as subject and verb.
OPTIONAL = ["skin", "hair", "torso", "legs", "feet", "background"]
OPTIONAL += ["facial_hair", "headwear", "cape", "weapon"]

PLACES = ["on a {} background", "against a {} background", "in front of {}", "{} background"]
PLACES += ["over {}"]

Words = Mapping[str, Mapping[str, Mapping]]


class CaptionComposer:
    """Composes one caption.

    Args:
        combination: attribute -> value, without the values that draw nothing.
        words: the `attributes` of `lpc.yaml`.
        rng: source of every choice.
        partial: probability, 0 to 1, of omitting some of the `OPTIONAL` attributes.

    Attributes:
        named: the optional attributes that it mentions.
    """

    def __init__(
        self, combination: Mapping[str, str], words: Words, rng: np.random.Generator, partial: float
    ):
        self.combination, self.words, self.rng = combination, words, rng
        self.named = [name for name in OPTIONAL if name in combination]
        if self.chance(partial):
            keep = rng.random()
            self.named = [name for name in self.named if self.chance(keep)]

    def compose(self) -> str:
        """A sentence or a list of phrases."""
        subject, has = self.subject()
        wears = self.attributes(has)
        text = self.sentence(subject, has, wears, self.action())
        if self.chance(0.3):
            text = text[0].upper() + text[1:] + ("" if text.endswith(".") else ".")
        return text

    def pick(self, options: Sequence) -> str:
        return options[int(self.rng.integers(len(options)))]

    def chance(self, probability: float) -> bool:
        return bool(self.rng.random() < probability)

    def entry(self, attribute: str) -> Mapping:
        return self.words[attribute][self.combination[attribute]]

    def phrase(self, attribute: str) -> str:
        return self.pick(self.entry(attribute)["phrases"])

    def subject(self) -> tuple[str, list[str]]:
        """Noun phrase, and the skin if it is no part of it."""
        noun, has = self.phrase("sex"), []
        if "skin" in self.named:
            look = self.phrase("skin")
            kinds = self.entry("skin").get("noun")
            if kinds and self.chance(0.4):
                kind = self.pick(kinds)
                noun = self.pick([f"{self.combination['sex']} {kind}", f"{kind} {noun}"])
            elif self.chance(0.5):
                noun = f"{look}-skinned {noun}"
            else:
                has = [f"{look} skin"]
        if self.chance(0.1):
            noun = self.pick(["pixel art ", "small "]) + noun
        article = self.pick(["a", "a", "a", "the", "one", ""])
        if article == "a" and noun[0] in "aeiou":
            article = "an"
        return f"{article} {noun}".strip(), has

    def attributes(self, has: list[str]) -> list[str]:
        """Add features to `has`; returns the garments."""
        wears = []
        if "hair" in self.named:
            has.append(self.phrase("hair").replace("{color}", self.phrase("hair_color")))
        for name in ("facial_hair", "weapon", "torso", "legs", "feet", "headwear", "cape"):
            if name in self.named:
                garment = name not in ("facial_hair", "weapon")
                bare = self.combination[name] == "barefoot"
                (wears if garment and not bare else has).append(self.phrase(name))
        self.rng.shuffle(has)
        self.rng.shuffle(wears)
        return wears

    def action(self) -> str:
        direction = self.words["direction"][self.combination["direction"]]
        verb = self.phrase("action")
        if self.chance(0.9) or "{toward}" in verb:
            verb = verb.replace("{toward}", self.pick(direction["toward"]))
            verb = verb.replace("{facing}", self.pick(direction["facing"]))
        return verb.replace("{facing}", "").strip()

    def sentence(self, subject: str, has: list[str], wears: list[str], verb: str) -> str:
        clauses = []
        if has:
            clauses.append(f"{self.pick(['with', 'with', 'who has', 'having'])} {self.join(has)}")
        if wears:
            words = ["wearing", "in", "dressed in", "who wears", "clad in"]
            clauses.append(f"{self.pick(words)} {self.join(wears)}")
        self.rng.shuffle(clauses)
        place = ""
        if "background" in self.named:
            color = self.phrase("background")
            place = self.pick(PLACES).format(color)
        form = int(self.rng.integers(4))
        if form == 0:
            text = " ".join([subject, *clauses, verb])
        elif form == 1:
            text = f"{subject} {verb}" + (", " + ", ".join(clauses) if clauses else "")
        elif form == 2:
            text = ", ".join([subject, *has, *wears, verb])
        else:
            text = f"{subject} {verb}."
            if has:
                text += f" {self.pick(['has', 'with'])} {self.join(has)}."
            if wears:
                text += f" {self.pick(['wears', 'wearing', 'dressed in'])} {self.join(wears)}."
        if not place:
            return text
        if self.chance(0.2):
            return f"{place}, {text}"
        return f"{text.rstrip('.')}, {place}" if self.chance(0.7) else f"{text} {place}"

    def join(self, items: Sequence[str]) -> str:
        if len(items) == 1:
            return items[0]
        return ", ".join(items[:-1]) + self.pick([" and ", ", ", ", and "]) + items[-1]


def complete_caption(combination: Mapping[str, str], words: Words) -> str:
    """The one sentence of a combination, which names every attribute."""
    entries = {name: words[name][value] for name, value in combination.items()}
    first = {n: e["phrases"][0] for n, e in entries.items() if e.get("phrases")}
    has, wears = [first["hair"].replace("{color}", first["hair_color"])], []
    for name in ("torso", "legs", "feet", "facial_hair", "weapon", "headwear", "cape"):
        if name in first:
            worn = name not in ("facial_hair", "weapon") and combination[name] != "barefoot"
            (wears if worn else has).append(first[name])
    direction = entries["direction"]
    verb = first["action"].replace("{toward}", direction["toward"][0])
    verb = verb.replace("{facing}", direction["facing"][0])
    return (
        f"a {first['skin']}-skinned {first['sex']} with {_listed(has)} wearing {_listed(wears)} "
        f"{verb}, {first['background']} background"
    )


def _listed(items: Sequence[str]) -> str:
    return " and ".join(filter(None, [", ".join(items[:-1]), items[-1]]))
