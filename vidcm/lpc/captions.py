"""Sentences for LPC combinations: varied in order, words and completeness."""

import numpy as np

# What a sentence may leave out; sex and action always stay, for they carry the grammar.
OPTIONAL = [
    "skin",
    "hair",
    "torso",
    "legs",
    "feet",
    "background",
    "facial_hair",
    "headwear",
    "cape",
    "weapon",
]


def speak(
    combination: dict[str, str],
    words: dict[str, dict[str, dict]],
    rng: np.random.Generator,
    *,
    partial: float,
) -> str:
    """A caption for a combination. partial: probability of leaving some attributes out."""

    def pick(options: list) -> str:
        return options[int(rng.integers(len(options)))]

    def chance(probability: float) -> bool:
        return bool(rng.random() < probability)

    def entry(attribute: str) -> dict:
        return words[attribute][combination[attribute]]

    shown = [name for name in OPTIONAL if name in combination]
    if chance(partial):
        keep = rng.random()
        shown = [name for name in shown if chance(keep)]

    who, skin = pick(entry("sex")["say"]), None
    if "skin" in shown:
        look = pick(entry("skin")["say"])
        nouns = entry("skin").get("noun")
        if nouns and chance(0.4):
            kind = pick(nouns)
            who = pick([f"{combination['sex']} {kind}", f"{kind} {who}"])
        elif chance(0.5):
            who = f"{look}-skinned {who}"
        else:
            skin = pick([f"{look} skin"])
    if chance(0.1):
        who = pick(["pixel art ", "small "]) + who
    article = pick(["a", "a", "a", "the", "one", ""])
    subject = f"{_article(who) if article == 'a' else article} {who}".strip()

    has, wears = [skin] if skin else [], []
    if "hair" in shown:
        has.append(pick(entry("hair")["say"]).replace("{color}", pick(entry("hair_color")["say"])))
    for name in ("facial_hair", "weapon"):
        if name in shown:
            has.append(pick(entry(name)["say"]))
    for name in ("torso", "legs", "feet", "headwear", "cape"):
        if name in shown:
            phrase = pick(entry(name)["say"])
            bare = combination[name] == "barefoot"
            (has if bare else wears).append(phrase)
    rng.shuffle(has)
    rng.shuffle(wears)

    direction = words["direction"][combination["direction"]]
    does = pick(entry("action")["say"])
    if chance(0.9) or "{toward}" in does:
        does = does.replace("{toward}", pick(direction["toward"]))
        does = does.replace("{facing}", pick(direction["facing"]))
    does = does.replace("{facing}", "").strip()

    phrases = []
    if has:
        phrases.append(f"{pick(['with', 'with', 'who has', 'having'])} {_list(has, pick)}")
    if wears:
        phrases.append(
            f"{pick(['wearing', 'in', 'dressed in', 'who wears', 'clad in'])} {_list(wears, pick)}"
        )
    rng.shuffle(phrases)
    where = ""
    if "background" in shown:
        color = pick(entry("background")["say"])
        where = pick(
            [
                f"on a {color} background",
                f"against a {color} background",
                f"in front of {color}",
                f"{color} background",
                f"over {color}",
            ]
        )

    form = int(rng.integers(4))
    if form == 0:
        text = " ".join([subject, *phrases, does])
    elif form == 1:
        text = f"{subject} {does}" + (", " + ", ".join(phrases) if phrases else "")
    elif form == 2:
        text = ", ".join([subject, *has, *wears, does])
    else:
        text = f"{subject} {does}. " + " ".join(
            filter(
                None,
                [
                    f"{pick(['has', 'with'])} {_list(has, pick)}." if has else "",
                    f"{pick(['wears', 'wearing', 'dressed in'])} {_list(wears, pick)}."
                    if wears
                    else "",
                ],
            )
        )
        text = text.strip()
    if where:
        text = (
            f"{where}, {text}"
            if chance(0.2)
            else f"{text.rstrip('.')}, {where}"
            if chance(0.7)
            else f"{text} {where}"
        )
    if chance(0.3):
        text = text[0].upper() + text[1:] + ("" if text.endswith(".") else ".")
    return text


def _article(noun: str) -> str:
    return "an" if noun[0] in "aeiou" else "a"


def _list(items: list[str], pick) -> str:
    if len(items) == 1:
        return items[0]
    joint = pick([" and ", ", ", ", and "])
    return ", ".join(items[:-1]) + joint + items[-1]
