"""Edits whose true result is known: a true clip, its given part, and baselines without a model."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from vidcm.editing.operators import luminance

NOISE = 30.0  # grey levels, of the denoising case
BLANK = 48  # the grey level at which sheets show pixels that are not given
ROUGH = 8  # side in pixels of the blocks of colour that a variation starts from
NUM_INTERPOLATED = 5  # clips of an interpolation, its ends included


@dataclass(frozen=True)
class Case:
    """An edit with a known result.

    Attributes:
        spec: the task and its options.
        clips: its input clips.
        given: uint8 `(t h w 3)`, the known pixels in their places, `BLANK` elsewhere.
        kept: bool `(t h w)`, where the result must equal `given`.
        truth: uint8 `(t h w 3)`, the beginning of a true clip, the right result; None where no true
            clip has so many frames.
        baselines: by name, uint8 `(t h w 3)`; of any length where there is no truth.
        periodic: whether the end leads back to the beginning.
        prompts: instead of the caption, if any.
    """

    spec: Mapping[str, Any]
    clips: list[np.ndarray]
    given: np.ndarray
    kept: np.ndarray
    truth: np.ndarray | None
    baselines: dict[str, np.ndarray] = field(default_factory=dict)
    periodic: bool = False
    prompts: tuple[str, ...] = ()


def inpaint(truth: np.ndarray) -> Case:
    kept = ~_centre_mask(truth)
    baselines = {
        "constant fill": _constant_fill(truth, kept),
        "linear blending": _linear_fill(truth, kept),
    }
    spec = {"name": "inpaint", "mask": ~kept}
    return Case(spec, [truth], _blanked(truth, kept), kept, truth, baselines)


def outpaint(truth: np.ndarray) -> Case:
    kept, (height, width) = _centre_mask(truth), truth.shape[1:3]
    y, x = height // 4, width // 4
    clip = truth[:, y : height - y, x : width - x]
    border = ((0, 0), (y, y), (x, x), (0, 0))
    baselines = {
        "constant fill": _constant_fill(truth, kept),
        "edges repeated": np.pad(clip, border, "edge"),
    }
    spec = {"name": "outpaint", "place": (x, y, width - 2 * x, height - 2 * y)}
    return Case(spec, [clip], _blanked(truth, kept), kept, truth, baselines)


def colorize(truth: np.ndarray) -> Case:
    clip = luminance(torch.from_numpy(truth)).numpy()[..., None].repeat(3, -1)
    baselines = {"luminance only": clip}
    return Case({"name": "colorize"}, [clip], clip, _no_mask(truth), truth, baselines)


def upscale(truth: np.ndarray) -> Case:
    small = _blocks(truth, 4)
    video = torch.from_numpy(small).permute(0, 3, 1, 2).float()
    large = F.interpolate(video, scale_factor=4, mode="bicubic", align_corners=False)
    large = large.round().clamp(0, 255).byte().permute(0, 2, 3, 1).numpy()
    nearest = small.repeat(4, 1).repeat(4, 2)
    spec, baselines = {"name": "upscale", "factor": 4}, {"nearest": nearest, "bicubic": large}
    return Case(spec, [small], nearest, _no_mask(truth), truth, baselines)


def interpolate_frames(truth: np.ndarray) -> Case:
    spec = {"name": "interpolate_frames", "factor": 2}
    return _known_frames(truth, spec, slice(None, None, 2), "frames repeated", blended=True)


def extend(truth: np.ndarray) -> Case:
    count = (len(truth) - 1) // 8 * 4 + 1
    return _known_frames(truth, {"name": "extend"}, slice(count), "last frame repeated")


def extend_backward(truth: np.ndarray) -> Case:
    count = max((len(truth) - 1) // 8 * 4, 1)
    spec = {"name": "extend_backward", "given": count}
    return _known_frames(truth, spec, slice(-count, None), "first frame repeated")


def inbetween(truth: np.ndarray) -> Case:
    ends = slice(None, None, len(truth) - 1)
    spec = {"name": "inbetween"}
    case = _known_frames(truth, spec, ends, "nearest frame repeated", blended=True)
    return replace(case, clips=[truth[:1], truth[-1:]])


def animate(truth: np.ndarray) -> Case:
    return _known_frames(truth, {"name": "animate"}, slice(1), "picture repeated")


def animate_last(truth: np.ndarray) -> Case:
    spec = {"name": "animate", "at": "last"}
    return _known_frames(truth, spec, slice(-1, None), "picture repeated")


def animate_both(truth: np.ndarray) -> Case:
    return replace(inbetween(truth), spec={"name": "animate"})


def loop(truth: np.ndarray) -> Case:
    """The first half of a clip, and frames that lead back to its start; no clip is the truth."""
    clip, more = truth[: len(truth) // 2 + 1], len(truth) - 2
    bridge = np.linspace(0, 1, more + 2)[1:-1, None, None, None]
    blend = ((1 - bridge) * clip[-1] + bridge * clip[0]).round().astype(np.uint8)
    given = np.concatenate([clip, np.full_like(blend, BLANK)])
    kept = np.zeros(given.shape[:3], bool)
    kept[: len(clip)] = True
    baselines = {"cut": clip, "linear blending": np.concatenate([clip, blend])}
    return Case({"name": "loop"}, [clip], given, kept, None, baselines, periodic=True)


def loop_alone(truth: np.ndarray) -> Case:
    short = truth[:-1]
    return Case(
        {"name": "loop"}, [], np.full_like(short, BLANK), _no_mask(short), short, periodic=True
    )


def variation(truth: np.ndarray) -> Case:
    """From blocks of colour to a detailed clip."""
    rough = _blocks(truth, ROUGH).repeat(ROUGH, 1).repeat(ROUGH, 2)
    return Case(
        {"name": "variation"}, [rough], rough, _no_mask(truth), truth, {"left rough": rough}
    )


def denoise(truth: np.ndarray) -> Case:
    noise = np.random.default_rng(0).normal(0, NOISE, truth.shape)
    clip = (truth + noise).round().clip(0, 255).astype(np.uint8)
    baselines = {"left noisy": clip, "median of 3x3": _median(clip)}
    return Case(
        {"name": "denoise", "noise": NOISE}, [clip], clip, _no_mask(truth), truth, baselines
    )


def image(truth: np.ndarray) -> Case:
    first = truth[:1]
    return Case({"name": "image"}, [], np.full_like(first, BLANK), _no_mask(first), first)


def interpolate(one: np.ndarray, two: np.ndarray, prompts: tuple[str, str]) -> Case:
    """Clips from one true clip to another, concatenated."""
    count = len(one)
    shares = np.linspace(0, 1, NUM_INTERPOLATED)[:, None, None, None, None]
    mixed = ((1 - shares) * one + shares * two).round().astype(np.uint8).reshape(-1, *one.shape[1:])
    kept = np.zeros(mixed.shape[:3], bool)
    kept[:count] = kept[-count:] = True
    spec = {"name": "interpolate", "count": NUM_INTERPOLATED}
    baselines = {"linear blending": mixed}
    return Case(spec, [one, two], _blanked(mixed, kept), kept, None, baselines, prompts=prompts)


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
        animate_last,
        animate_both,
        loop,
        loop_alone,
        variation,
        denoise,
        image,
    )
}
NAMES = (*CASES, "interpolate")


def cases_of(name: str, clips: np.ndarray, captions: Sequence[str]) -> list[Case]:
    """A case for each true clip; "interpolate" leads from the clip before to each clip.

    Args:
        name: one of `NAMES`.
        clips: uint8 `(n t h w 3)`.
        captions: of each clip.
    """
    if name != "interpolate":
        return [CASES[name](clip) for clip in clips]
    return [
        interpolate(clips[i - 1], clips[i], (captions[i - 1], captions[i]))
        for i in range(len(clips))
    ]


def _known_frames(
    truth: np.ndarray, spec: dict, part: slice, repeated: str, blended: bool = False
) -> Case:
    """A true clip of which some frames are given.

    Args:
        truth: uint8 `(t h w 3)`.
        spec: the task and its options.
        part: the given frames, which are the input clip.
        repeated: name of the baseline that repeats the nearest given frame.
        blended: whether there is one that blends between given frames, too.
    """
    kept = _no_mask(truth)
    kept[part] = True
    baselines = {repeated: _nearest_frame(truth, kept)}
    if blended:
        baselines["linear blending"] = _linear_blend(truth, kept)
    return Case(spec, [truth[part]], _blanked(truth, kept), kept, truth, baselines)


def _no_mask(truth: np.ndarray) -> np.ndarray:
    return np.zeros(truth.shape[:3], bool)


def _centre_mask(truth: np.ndarray) -> np.ndarray:
    """True in the middle half of both axes."""
    mask, (height, width) = _no_mask(truth), truth.shape[1:3]
    mask[:, height // 4 : height - height // 4, width // 4 : width - width // 4] = True
    return mask


def _blanked(truth: np.ndarray, kept: np.ndarray) -> np.ndarray:
    return np.where(kept[..., None], truth, np.uint8(BLANK))


def _blocks(truth: np.ndarray, size: int) -> np.ndarray:
    """Block means of size x size pixels."""
    t, height, width = truth.shape[:3]
    blocks = truth.reshape(t, height // size, size, width // size, size, 3)
    return blocks.mean((2, 4)).round().astype(np.uint8)


def _constant_fill(truth: np.ndarray, kept: np.ndarray) -> np.ndarray:
    """The mean kept colour at all other pixels."""
    colour = truth[kept].mean(0).round().astype(np.uint8)
    return np.where(kept[..., None], truth, colour)


def _linear_fill(truth: np.ndarray, kept: np.ndarray) -> np.ndarray:
    """A hole in every row, interpolated between the pixels at its ends."""
    filled = truth.astype(float)
    columns = np.flatnonzero(~kept.all((0, 1)))
    left, right = columns[0] - 1, columns[-1] + 1
    share = ((columns - left) / (right - left))[:, None]
    mixed = (1 - share) * filled[:, :, left, None] + share * filled[:, :, right, None]
    filled[:, :, columns] = np.where(kept[:, :, columns, None], filled[:, :, columns], mixed)
    return filled.round().astype(np.uint8)


def _nearest_frame(truth: np.ndarray, kept: np.ndarray) -> np.ndarray:
    """At every time the nearest given frame, the earlier one of two."""
    known = np.flatnonzero(kept.all((1, 2)))
    return truth[known[np.abs(np.arange(len(truth))[:, None] - known).argmin(1)]]


def _linear_blend(truth: np.ndarray, kept: np.ndarray) -> np.ndarray:
    """At every time a blend of the two nearest given frames."""
    known = np.flatnonzero(kept.all((1, 2)))
    flat = truth[known].reshape(len(known), -1).astype(float)
    at = np.interp(np.arange(len(truth)), known, np.arange(len(known)))
    low, share = np.floor(at).astype(int), (at % 1)[:, None]
    high = np.ceil(at).astype(int)
    mixed = (1 - share) * flat[low] + share * flat[high]
    return mixed.round().astype(np.uint8).reshape(truth.shape)


def _median(clip: np.ndarray) -> np.ndarray:
    padded = np.pad(clip, ((0, 0), (1, 1), (1, 1), (0, 0)), "edge")
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), (1, 2))
    return np.median(windows, (-2, -1)).astype(np.uint8)
