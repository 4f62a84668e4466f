"""Diagnoses of a run's samples as sentences: a loss may fall while clips freeze.

The thresholds lie between measurements of sick and healthy clips, which tests/train/test_health.py
has by construction; they detect collapse, not poor quality. Grey levels are 0 to 255.
"""

import json
import math
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from vidcm.errors import VidcmError
from vidcm.metrics.motion import motion, motion_ratio

RATIO = "preview/motion_ratio_"  # of the log's names; the number of steps follows
DRIFT = "preview/drift_"  # likewise
LEAST_MOTION = 0.8  # of a student's clips over its teacher's from the same noise (RECIPES)
MOST_MOTION = 2.0  # the same: noise in latents decodes to blotches, smooth but restless
STILL = 0.1  # grey levels: one pixel in ten off by one, less than a 2x2 dot's way across 64x64
FLAT = 2.0  # grey levels: above the 0.5 of rounding, below the 4.7 of one such dot
NOISE = 0.25  # correlation: white noise has 0, 2x2 dots 0.5, 8x8 squares 0.89
ALIKE = 1.0  # grey levels: above a flicker of single levels, below the 3.1 of two 8x8 squares
VARIETY = 0.25  # of a student's clips over its teacher's: less is a collapse too


class Vitals(NamedTuple):
    """Measurements of clips.

    Attributes:
        motion: Grey levels between neighbouring frames, float64 `(n,)`.
        spread: Deviation over a frame's pixels in grey levels, float64 `(n,)`.
        smooth: Correlation of neighbouring pixels, float64 `(n,)`; 1 where all are equal.
        apart: Mean grey levels between a clip and the next; NaN for one clip.
    """

    motion: np.ndarray
    spread: np.ndarray
    smooth: np.ndarray
    apart: float

    def signs(self, frames: int) -> dict[str, np.ndarray]:
        """Return the clips of `frames` frames that have a sickness: bool `(n,)` by its name."""
        flat = self.spread < FLAT
        still = self.motion < (STILL if frames > 1 else 0.0)
        return {"flat": flat, "noise": ~flat & (self.smooth < NOISE), "still": ~flat & still}


@torch.no_grad()
def vitals(frames: Tensor) -> Vitals:
    """Measure uint8 frames `(n t h w c)`. Raises ValueError for other types or shapes."""
    if frames.dtype != torch.uint8 or frames.ndim != 5 or not frames.numel():
        raise ValueError(f"got {frames.dtype} {tuple(frames.shape)}, expected uint8 (n t h w c)")
    frames = frames.cpu()
    spread, smooth = [], []
    for clip in frames:
        x = clip.double()
        x = x - x.mean((1, 2), keepdim=True)
        power = float(x.square().mean())
        across = [(x[:, 1:] * x[:, :-1]).mean(), (x[:, :, 1:] * x[:, :, :-1]).mean()]
        spread.append(power**0.5)
        smooth.append(float(sum(across)) / 2 / power if power else 1.0)
    apart = [float((a.int() - b.int()).abs().double().mean()) for a, b in pairwise(frames)]
    mean = float(np.mean(apart)) if apart else float("nan")
    return Vitals(motion(frames), np.array(spread), np.array(smooth), mean)


_SEEN = {
    "flat": "{} of {} clips are one solid colour (pixels deviate by {spread:.2f} grey levels)",
    "noise": "{} of {} clips are noise (neighbouring pixels correlate by {smooth:.2f})",
    "still": "{} of {} clips stand still (frames differ by {motion:.2f} grey levels)",
}
_CAUSES = {
    "flat": "usually a network that hardly trained or went back to the mean of the data: train on "
    "while the loss falls, else lower optimizer.lr",
    "noise": "usually sampling starts at noise that training hardly drew, or the latents are of "
    "another codec: raise p_mean of the objective, or set the codec of the latents",
    "still": "usually still data, or a student that distribution matching trained for too long: "
    "look at the data, or stop earlier and keep a consistency loss beside it",
}
_TEACHER = "so are the teacher's: look at its run and at the codec first"


def diagnose(frames: Tensor, reference: Tensor | None = None) -> list[str]:
    """Describe each sickness of clips, with its usual cause.

    A sickness of single clips (solid colour, noise, standing still) counts when half of them have
    it: data may hold a wall or two. One frame does not move, and one clip has no variety.

    Args:
        frames: uint8 `(n t h w c)`.
        reference: The teacher's clips for the same prompts and noise, in the same shape; motion and
            variety are measured against them.

    Returns:
        One sentence per sickness; none for healthy clips.

    Raises:
        ValueError: Types or shapes differ.
    """
    if reference is not None and reference.shape != frames.shape:
        raise ValueError(f"got {tuple(frames.shape)}, the reference is {tuple(reference.shape)}")
    now, teacher = vitals(frames), None if reference is None else vitals(reference)
    count, length = frames.shape[:2]
    means = {name: getattr(now, name).mean() for name in ("motion", "spread", "smooth")}
    too = {} if teacher is None else teacher.signs(length)
    found = {}
    for name, sick in now.signs(length).items():
        if _half(sick):
            cause = _TEACHER if name in too and _half(too[name]) else _CAUSES[name]
            found[name] = f"{_SEEN[name].format(sick.sum(), count, **means)}; {cause}"
    if teacher is not None and not found and teacher.motion.mean() >= STILL:
        found["ratio"] = _unlike(motion_ratio(now.motion, teacher.motion).overall)
    found["alike"] = _alike(now.apart, teacher)
    return [sentence for sentence in found.values() if sentence]


def _half(sick: np.ndarray) -> bool:
    return bool(2 * sick.sum() >= len(sick))


def _unlike(ratio: float) -> str:
    seen = f"clips move {ratio:.2f} times as much as the teacher's"
    if ratio < LEAST_MOTION:
        return (
            f"{seen}, below {LEAST_MOTION}; usually too little training yet, or too much of "
            "distribution matching: train on while the ratio rises, else stop earlier"
        )
    if ratio > MOST_MOTION:
        return (
            f"{seen}, above {MOST_MOTION}; usually noise that is left in the latents: train on, or "
            "check that the objective draws the noise levels that sampling visits"
        )
    return ""


def _alike(apart: float, teacher: Vitals | None) -> str:
    least = ALIKE if teacher is None else max(ALIKE, VARIETY * teacher.apart)
    if not apart < least:
        return ""
    cause = (
        "usually a network that hardly trained or an adversarial or matching loss that collapsed: "
        "train on while the loss falls, else give that loss less weight"
    )
    seen = f"clips of all prompts and seeds are alike ({apart:.2f} grey levels apart)"
    return f"{seen}; {_TEACHER if teacher is not None and teacher.apart < ALIKE else cause}"


def check_finite(latents: Tensor, label: str) -> None:
    """Raises VidcmError where the latents `(n c t h w)` called `label` are not finite."""
    bad = int((~latents.isfinite().flatten(1).all(1)).sum())
    if bad:
        raise VidcmError(
            f"the latents of {bad} of {len(latents)} clips ({label}) are not finite: the weights "
            "diverged; lower optimizer.lr, or go on in fp32, from a checkpoint before that"
        )


def logged_motion(log: Path, step: int | None = None) -> dict[str, float]:
    """Return the last motion ratios of a run, by their full names.

    Torn lines, as of a killed run, and ratios to a teacher that stands still are left out.

    Args:
        log: The run's `metrics.jsonl`.
        step: Of lines up to this step; None for all.

    Returns:
        Empty where there is no such file or line.
    """
    found: dict[str, float] = {}
    if not log.is_file():
        return found
    for text in log.read_text("utf-8", errors="replace").splitlines():
        try:
            line = json.loads(text)
            if step is not None and line["step"] > step:
                continue
            ratios = {k: float(v) for k, v in line.items() if k.startswith(RATIO)}
            ratios = {k: v for k, v in ratios.items() if math.isfinite(v)}
        except (ValueError, KeyError, TypeError, AttributeError):
            continue
        found = ratios or found
    return found
