"""Edits whose truth is known: a true clip, what of it is given, and what a user would do without a
model."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from vidcm.editing.operators import luminance

NOISE = 30.0  # grey levels, of the denoising case


@dataclass(frozen=True)
class Case:
    """spec, clips: what the task is told. kept: bool `(t h w)`, pixels of the truth that are given
    whole. baseline: uint8 `(t h w 3)`. method: what the baseline is called."""

    spec: Mapping[str, Any]
    clips: list[np.ndarray]
    kept: np.ndarray
    baseline: np.ndarray
    method: str


def inpaint(truth: np.ndarray) -> Case:
    kept = ~_centre(truth)
    spec = {"name": "inpaint", "mask": ~kept}
    return Case(spec, [truth], kept, _constant(truth, kept), "constant fill")


def outpaint(truth: np.ndarray) -> Case:
    kept, (height, width) = _centre(truth), truth.shape[1:3]
    y, x = height // 4, width // 4
    clip = truth[:, y : height - y, x : width - x]
    spec = {"name": "outpaint", "place": (x, y, width - 2 * x, height - 2 * y)}
    return Case(spec, [clip], kept, _constant(truth, kept), "constant fill")


def colorize(truth: np.ndarray) -> Case:
    clip = luminance(torch.from_numpy(truth)).numpy()[..., None].repeat(3, -1)
    return Case({"name": "colorize"}, [clip], _none(truth), clip, "luminance only")


def upscale(truth: np.ndarray) -> Case:
    blocks = truth.reshape(len(truth), truth.shape[1] // 4, 4, truth.shape[2] // 4, 4, 3)
    small = blocks.mean((2, 4)).round().astype(np.uint8)
    video = torch.from_numpy(small).permute(0, 3, 1, 2).float()
    large = F.interpolate(video, scale_factor=4, mode="bicubic", align_corners=False)
    large = large.round().clamp(0, 255).byte().permute(0, 2, 3, 1).numpy()
    return Case({"name": "upscale", "factor": 4}, [small], _none(truth), large, "bicubic")


def interpolate_frames(truth: np.ndarray) -> Case:
    kept = _frames(truth, slice(None, None, 2))
    spec = {"name": "interpolate_frames", "factor": 2}
    return Case(spec, [truth[::2]], kept, _blended(truth, kept), "linear blending")


def extend(truth: np.ndarray) -> Case:
    count = (len(truth) - 1) // 8 * 4 + 1
    kept = _frames(truth, slice(count))
    return Case({"name": "extend"}, [truth[:count]], kept, _blended(truth, kept), "last frame held")


def extend_backward(truth: np.ndarray) -> Case:
    count = max((len(truth) - 1) // 8 * 4, 1)
    kept, clip = _frames(truth, slice(-count, None)), truth[-count:]
    spec = {"name": "extend_backward", "given": count}
    return Case(spec, [clip], kept, _blended(truth, kept), "first frame held")


def inbetween(truth: np.ndarray) -> Case:
    kept = _frames(truth, slice(None, None, len(truth) - 1))
    ends = [truth[:1], truth[-1:]]
    return Case({"name": "inbetween"}, ends, kept, _blended(truth, kept), "linear blending")


def animate(truth: np.ndarray) -> Case:
    kept = _frames(truth, slice(1))
    return Case({"name": "animate"}, [truth[:1]], kept, _blended(truth, kept), "picture held")


def denoise(truth: np.ndarray) -> Case:
    noise = np.random.default_rng(0).normal(0, NOISE, truth.shape)
    clip = (truth + noise).round().clip(0, 255).astype(np.uint8)
    return Case({"name": "denoise", "noise": NOISE}, [clip], _none(truth), clip, "left noisy")


CASES: dict[str, Callable[[np.ndarray], Case]] = {
    case.__name__: case
    for case in (
        inpaint,
        outpaint,
        colorize,
        upscale,
        interpolate_frames,
        extend,
        extend_backward,
        inbetween,
        animate,
        denoise,
    )
}


def _none(truth: np.ndarray) -> np.ndarray:
    return np.zeros(truth.shape[:3], bool)


def _centre(truth: np.ndarray) -> np.ndarray:
    """The middle half of both sides."""
    mask, (height, width) = _none(truth), truth.shape[1:3]
    mask[:, height // 4 : height - height // 4, width // 4 : width - width // 4] = True
    return mask


def _frames(truth: np.ndarray, part: slice) -> np.ndarray:
    mask = _none(truth)
    mask[part] = True
    return mask


def _constant(truth: np.ndarray, kept: np.ndarray) -> np.ndarray:
    """The mean of what is kept, wherever nothing is."""
    colour = truth[kept].mean(0).round().astype(np.uint8)
    return np.where(kept[..., None], truth, colour)


def _blended(truth: np.ndarray, kept: np.ndarray) -> np.ndarray:
    """Frames mixed of the nearest given ones; before the first and after the last, held."""
    known = np.flatnonzero(kept.all((1, 2)))
    flat = truth[known].reshape(len(known), -1).astype(float)
    at = np.interp(np.arange(len(truth)), known, np.arange(len(known)))
    low, share = np.floor(at).astype(int), (at % 1)[:, None]
    high = np.ceil(at).astype(int)
    mixed = (1 - share) * flat[low] + share * flat[high]
    return mixed.round().astype(np.uint8).reshape(truth.shape)
