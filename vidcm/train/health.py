"""What a sick run's samples look like, said in sentences: a loss may fall while clips freeze.

The thresholds lie between what clips made on purpose measure (tests/train/test_health.py), sick and
healthy; they are for collapse, not for quality. Grey levels are of 0 to 255.
"""

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from vidcm.errors import VidcmError
from vidcm.metrics.motion import motion, motion_ratio

LEAST_MOTION = 0.8  # of a student's clips over the teacher's from the same noise
STILL = 0.1  # grey levels; one in ten pixels off by one is 0.1, a 2x2 dot crossing 64x64 is 0.35
FLAT = 2.0  # grey levels; rounding is below 0.5, a still 2x2 dot on 64x64 is 4.7
NOISE = 0.25  # correlation; white noise has 0, 2x2 dots 0.5, squares of 8x8 about 0.87
ALIKE = 1.0, 0.25  # grey levels; share of the reference's


class Vitals(NamedTuple):
    """motion, spread, smooth: of every clip, float64 `(n,)`: grey levels between neighbouring
    frames; deviation over a frame's pixels, in grey levels; correlation of neighbouring pixels (1
    where all are equal). apart: mean grey levels between a clip and the next, nan of one clip."""

    motion: np.ndarray
    spread: np.ndarray
    smooth: np.ndarray
    apart: float


@torch.no_grad()
def vitals(frames: Tensor) -> Vitals:
    """Measure uint8 frames `(n t h w c)`. Raises ValueError for anything else."""
    if frames.dtype != torch.uint8 or frames.ndim != 5 or not frames.numel():
        raise ValueError(f"got {frames.dtype} {tuple(frames.shape)}, expected uint8 (n t h w c)")
    frames = frames.cpu()
    spread, smooth = [], []
    for clip in frames:
        x = clip.double()
        x = x - x.mean((1, 2), keepdim=True)
        power = x.square().mean()
        pairs = (x[:, 1:] * x[:, :-1]).mean() + (x[:, :, 1:] * x[:, :, :-1]).mean()
        spread.append(float(power.sqrt()))
        smooth.append(float(pairs / 2 / power) if power else 1.0)
    apart = [float((a.int() - b.int()).abs().double().mean()) for a, b in _neighbours(frames)]
    mean = float(np.mean(apart)) if apart else float("nan")
    return Vitals(motion(frames), np.array(spread), np.array(smooth), mean)


def _neighbours(frames: Tensor) -> zip:
    return zip(frames[:-1], frames[1:], strict=True)


def diagnose(frames: Tensor, reference: Tensor | None = None) -> list[str]:
    """One sentence for each sickness that uint8 frames `(n t h w c)` show, of what was seen and
    what usually causes it; none when they look healthy.

    A sickness of single clips (solid colour, noise, standing still) counts when half of them have
    it: data may hold a wall or two. reference: the teacher's clips of the same prompts and noise,
    in the same shape, against which motion and variety are measured. One-frame clips do not move,
    and one clip has no variety. Raises ValueError for other types or shapes."""
    now, count = vitals(frames), len(frames)
    before = None if reference is None else vitals(reference)
    if reference is not None and reference.shape != frames.shape:
        raise ValueError(f"got {tuple(frames.shape)}, the reference is {tuple(reference.shape)}")
    moving = frames.shape[1] > 1
    found = []

    def half(name: str, sick: np.ndarray, too: np.ndarray | None, seen: str, cause: str) -> bool:
        if 2 * sick.sum() < count:
            return False
        if too is not None and 2 * too.sum() >= count:
            cause = "so are the teacher's: look at the teacher's run and the codec first"
        found.append(f"{sick.sum()} of {count} clips {name} ({seen}); {cause}")
        return True

    flat = now.spread < FLAT
    half(
        "are one solid colour",
        flat,
        None if before is None else before.spread < FLAT,
        f"pixels deviate by {now.spread.mean():.2f} grey levels",
        "usually a network that has hardly trained, or went back to the mean of the data: train "
        "on while the loss falls, else lower optimizer.lr",
    )
    half(
        "are noise",
        ~flat & (now.smooth < NOISE),
        None if before is None else (before.spread >= FLAT) & (before.smooth < NOISE),
        f"neighbouring pixels correlate by {now.smooth.mean():.2f}",
        "usually sampling starts at noise that training hardly drew, or the codec is not the one "
        "of the latents: move the law of noise up (mean, std), or check codec",
    )
    if moving:
        still = ~flat & (now.motion < STILL)
        stood = half(
            "stand still",
            still,
            None if before is None else (before.spread >= FLAT) & (before.motion < STILL),
            f"frames differ by {now.motion.mean():.2f} grey levels",
            "usually a student whose stage of distribution matching is too long, or still data: "
            "stop earlier, or keep a consistency loss beside it",
        )
        ratio = 1.0 if before is None else motion_ratio(now.motion, before.motion).overall
        if ratio < LEAST_MOTION and not stood and before.motion.mean() >= STILL:
            found.append(
                f"clips move {ratio:.2f} times as much as the teacher's, below {LEAST_MOTION}; "
                "usually too little training yet, or too much of distribution matching: train on "
                "while the ratio rises, else stop earlier"
            )
    return found + _alike(now.apart, None if before is None else before.apart)


def _alike(apart: float, reference: float | None) -> list[str]:
    least, share = ALIKE
    least = max(least, share * (reference or 0.0))
    if not apart < least:
        return []
    return [f"clips of all prompts and seeds are alike ({apart:.2f} grey levels apart)"]
