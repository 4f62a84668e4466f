"""How much seeds differ where the prompt lets them, against how much the truth does."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations as pairs

import numpy as np
from torch import Tensor

from vidcm.lpc.captions import OPTIONAL, speak
from vidcm.lpc.dataset import LPC, Combination

VERSION = 1
LEFT_OPEN = 2  # attributes that a prompt leaves open
TRUE_CLIPS = 16  # drawn to know how far apart the truth lies
LEAST = 1.0  # grey levels


def spread(frames: Tensor) -> float:
    """Mean absolute difference between all pairs of clips uint8 `(n t h w c)`, in grey levels."""
    clips = frames.int().flatten(1)
    return float(
        np.mean(
            [
                float((clips[i] - clips[j]).abs().double().mean())
                for i, j in pairs(range(len(clips)), 2)
            ]
        )
    )


def describe(
    lpc: LPC, combination: Combination, open_: Sequence[str], rng: np.random.Generator
) -> str:
    """A caption that names all but the `open_` attributes (of those it may leave out)."""
    left = {
        k: v for k, v in combination.items() if v != "none" and not (k in open_ and k in OPTIONAL)
    }
    return speak(left, lpc.words, rng, partial=0.0)


@dataclass(frozen=True)
class OpenPrompt:
    """A prompt, and true clips uint8 `(n t h w c)` that fit it, what is open drawn freely."""

    prompt: str
    truth: Tensor


def draw(lpc: LPC, rng: np.random.Generator) -> OpenPrompt:
    """A held-out prompt that leaves `LEFT_OPEN` attributes open, such that it shows: the true clips
    are `LEAST` apart or more (a dress hides the legs)."""
    while True:
        base = lpc.sample(rng, "heldout")
        able = [name for name in OPTIONAL if name in base]
        open_ = [able[i] for i in rng.choice(len(able), LEFT_OPEN, replace=False)]
        free = [*open_, "hair_color"] if "hair" in open_ else open_
        allowed = {name: lpc.values(name, base) for name in free}
        fitting = [
            base | {name: v[int(rng.integers(len(v)))] for name, v in allowed.items()}
            for _ in range(TRUE_CLIPS)
        ]
        found = OpenPrompt(describe(lpc, base, open_, rng), lpc.render(fitting).cpu())
        if spread(found.truth) >= LEAST:
            return found


def ratio(generated: Sequence[float], true: Sequence[float]) -> float:
    """Mean over prompts of generated over true spread: by prompt, for an open background outweighs
    every other attribute in pixels. 1 is right; below, seeds resemble each other."""
    return float(np.mean([g / t for g, t in zip(generated, true, strict=True)]))
