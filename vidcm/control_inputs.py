"""Pictures and control clips that a pipeline is called with, as its network reads them."""

import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vidcm.arguments import real_number
from vidcm.diffusion.control import Control
from vidcm.errors import UsageError
from vidcm.generation import Generation
from vidcm.inputs import named
from vidcm.media.fit import fit, fit_mask
from vidcm.media.load import load_clip
from vidcm.media.write import check_clip

Picture = str | os.PathLike[str] | np.ndarray | Image.Image
MAX_SCALE = 10.0


@dataclass(frozen=True)
class ControlArguments:
    """What a call gives beside prompts, as `VideoPipeline.__call__` has it."""

    image: Any = None
    control_video: Any = None
    control_mask: Any = None
    control_scale: Any = None


class ControlInput(ABC):
    """The control of the clips of a call."""

    @abstractmethod
    def control(self, part: slice) -> Control:
        """That of some of the clips."""


class Pictures(ControlInput):
    """Pictures that clips begin with.

    Args:
        generation: Its model and codec.
        pictures: uint8 `(h, w, 3)`, one for all clips or one for each.
        shape: Frames, height and width of the clips.
    """

    def __init__(self, generation: Generation, pictures: list[np.ndarray], shape: Sequence[int]):
        self.generation, self.frames = generation, shape[0]
        fitted = [fit(picture[None], (shape[1], shape[2]))[0] for picture in pictures]
        self.pictures = torch.from_numpy(np.stack(fitted))

    def control(self, part: slice) -> Control:
        if len(self.pictures) > 1:
            return self._encoded(self.pictures[part])
        return _repeated(self._shared, part)

    @cached_property
    def _shared(self) -> Control:
        return self._encoded(self.pictures)

    def _encoded(self, pictures: Tensor) -> Control:
        generation = self.generation
        source, device = generation.model.control, generation.device
        return source.of_pictures(generation.codec, pictures.to(device), self.frames)


@dataclass
class ControlClip(ControlInput):
    """A clip that all clips follow.

    Attributes:
        generation: Its model and codec.
        frames: uint8 `(t, h, w, 3)`, of the clips' frames and size.
        mask: bool `(t, h, w)`, True where pixels are to be generated.
        scales: Weights of the control.
    """

    generation: Generation
    frames: np.ndarray
    mask: np.ndarray
    scales: list[float]

    def control(self, part: slice) -> Control:
        return _repeated(self._shared, part)

    @cached_property
    def _shared(self) -> Control:
        generation = self.generation
        tensors = (
            torch.from_numpy(x)[None].to(generation.device) for x in (self.frames, self.mask)
        )
        source = generation.model.control
        return source.of_control_clips(generation.codec, *tensors, self.scales)


def _repeated(control: Control, part: slice) -> Control:
    """The control of one clip for each of some clips."""
    return control.map(lambda x: x.expand(part.stop - part.start, *x.shape[1:]))


def check_control(
    given: ControlArguments, generation: Generation, prompts: int, copies: int, shape: Sequence[int]
) -> ControlInput | None:
    """What a call gives beside prompts; None for nothing.

    Args:
        given: Arguments of the call.
        generation: Of the model.
        prompts: Number of prompts.
        copies: Clips of each.
        shape: Frames, height and width of the clips.

    Raises:
        UsageError: The model takes none of it or needs some, or what was given does not fit.
        BadClip: A file cannot be read.
    """
    source = generation.model.control
    if given.control_video is None:
        for name in ("control_mask", "control_scale"):
            if vars(given)[name] is not None:
                raise UsageError(f"{name} is of a control_video; give both")
    elif given.image is not None:
        raise UsageError("give either an image or a control_video, whose first frame may be one")
    else:
        if source is None:
            raise UsageError("this model takes no control clip; leave out control_video")
        return _control_clip(given, generation, shape)
    if given.image is None:
        if source is not None and source.required:
            raise UsageError(f"this model needs {source.reads} beside the prompt; give image")
        return None
    if source is None:
        raise UsageError("this model takes no picture beside the prompt; leave out image")
    images = list(given.image) if isinstance(given.image, list | tuple) else [given.image]
    if len(images) not in (1, prompts):
        raise UsageError(
            f"image has {len(images)} pictures for {prompts} prompt{'s' * (prompts != 1)}; give "
            "one, or one for each"
        )
    pictures = [_picture(one) for one in images]
    if len(pictures) > 1:
        pictures = [picture for picture in pictures for _ in range(copies)]
    return Pictures(generation, pictures, shape)


def _picture(image: Any) -> np.ndarray:
    """A picture as uint8 `(h, w, 3)`. Raises UsageError, or BadClip for a file."""
    if isinstance(image, str | os.PathLike):
        return load_clip(Path(image), 1.0, 1, 0.0).frames[0]
    if isinstance(image, Image.Image):
        return np.asarray(image.convert("RGB"))
    if not isinstance(image, np.ndarray):
        raise UsageError(
            f"image is {named(image)}; give a path, a uint8 array (h, w, 3) or a picture of Pillow"
        )
    try:
        check_clip(image[None], (3,))
    except ValueError as error:
        raise UsageError(f"image does not fit: {error}; expected uint8 (h, w, 3)") from None
    return image


def _control_clip(
    given: ControlArguments, generation: Generation, shape: Sequence[int]
) -> ControlClip:
    frames, size = given.control_video, (shape[1], shape[2])
    if isinstance(frames, str | os.PathLike):
        frames = load_clip(Path(frames), generation.settings.fps, shape[0], 0.0).frames
    try:
        check_clip(frames, (3,))
    except (ValueError, AttributeError) as error:
        raise UsageError(
            f"control_video does not fit: {error}; expected a path or uint8 (t, h, w, 3)"
        ) from None
    if len(frames) < shape[0]:
        raise UsageError(
            f"control_video has {len(frames)} frames and the clip {shape[0]}; give as many, or "
            "ask for fewer"
        )
    mask = given.control_mask
    mask = np.ones(frames.shape[:3], bool) if mask is None else np.asarray(mask)
    if mask.ndim == 2:
        mask = mask[None]
    fits = mask.shape[1:] == frames.shape[1:3] and len(mask) in (1, len(frames))
    if mask.dtype != bool or not fits:
        raise UsageError(
            f"control_mask is {mask.dtype} {mask.shape}; expected bool (t, h, w) or (h, w) of the "
            "control_video, True where pixels are to be generated"
        )
    mask = np.broadcast_to(mask, frames.shape[:3])[: shape[0]]
    scales = 1.0 if given.control_scale is None else given.control_scale
    scales = list(scales) if isinstance(scales, list | tuple) else [scales]
    scales = [real_number("control_scale", scale, 0, MAX_SCALE) for scale in scales]
    return ControlClip(generation, fit(frames[: shape[0]], size), fit_mask(mask, size), scales)
