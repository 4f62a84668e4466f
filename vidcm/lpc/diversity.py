"""How much seeds differ where a prompt leaves attributes open, relative to the true clips."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations as pairs

import numpy as np
from torch import Tensor

from vidcm.lpc.captions import OPTIONAL, CaptionComposer
from vidcm.lpc.combinations import Combination
from vidcm.lpc.dataset import LPC

VERSION = 1
NUM_OPEN = 2  # attributes that a prompt leaves open
NUM_TRUE_CLIPS = 16  # drawn to measure how far apart true clips are
MIN_DISTANCE = 1.0  # grey levels


def mean_pairwise_distance(frames: Tensor) -> float:
    """Mean absolute difference over all pairs of clips uint8 `(n t h w c)`, in grey levels."""
    clips = frames.int().flatten(1)
    distances = [
        float((clips[i] - clips[j]).abs().double().mean()) for i, j in pairs(range(len(clips)), 2)
    ]
    return float(np.mean(distances))


def partial_caption(
    lpc: LPC, combination: Combination, open_attributes: Sequence[str], rng: np.random.Generator
) -> str:
    """A caption without `open_attributes`, as far as captions may leave these out."""
    named = {
        k: v
        for k, v in combination.items()
        if v != "none" and not (k in open_attributes and k in OPTIONAL)
    }
    return CaptionComposer(named, lpc.words, rng, partial=0.0).compose()


@dataclass(frozen=True)
class OpenPrompt:
    """A prompt that leaves attributes open.

    Attributes:
        prompt: the text.
        true_clips: uint8 `(n t h w c)`, clips that fit it, the open attributes drawn at random.
    """

    prompt: str
    true_clips: Tensor


def draw_open_prompt(lpc: LPC, rng: np.random.Generator) -> OpenPrompt:
    """A held-out prompt that leaves `NUM_OPEN` attributes open.

    Drawn anew until its true clips are `MIN_DISTANCE` apart: a dress hides the legs, for example.
    """
    while True:
        base = lpc.sample(rng, "heldout")
        able = [name for name in OPTIONAL if name in base]
        open_attributes = [able[i] for i in rng.choice(len(able), NUM_OPEN, replace=False)]
        free = [*open_attributes, "hair_color"] if "hair" in open_attributes else open_attributes
        allowed = {name: lpc.values(name, base) for name in free}
        fitting = [
            base | {name: v[int(rng.integers(len(v)))] for name, v in allowed.items()}
            for _ in range(NUM_TRUE_CLIPS)
        ]
        prompt = partial_caption(lpc, base, open_attributes, rng)
        found = OpenPrompt(prompt, lpc.render(fitting).cpu())
        if mean_pairwise_distance(found.true_clips) >= MIN_DISTANCE:
            return found


def diversity_ratio(generated: Sequence[float], true: Sequence[float]) -> float:
    """Generated over true distance, mean over prompts; 1 is right, below 1 seeds are too alike.

    The ratio is taken by prompt, since an open background outweighs all other attributes in pixels.
    """
    return float(np.mean([g / t for g, t in zip(generated, true, strict=True)]))
