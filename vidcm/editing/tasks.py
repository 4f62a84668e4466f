"""Tasks on what a frame shows: fill in, go beyond its borders, colour, enlarge, vary, denoise."""

from dataclasses import replace

import numpy as np

from vidcm.arguments import integer
from vidcm.editing.scene import BEGIN, OPERATOR, SIZE, TIMING, InputClip, OutputSpec, Scene, Task
from vidcm.errors import UsageError
from vidcm.settings import MAX_SIDE


class Inpaint(Task):
    """Fill in what a mask covers; every other pixel stays.

    Args:
        mask: bool or uint8 `(h w)` or `(t h w)`, in the size of the clip; what is not 0 is filled.
    """

    example = '--input clip.mp4 --mask 72,40,112,88 --prompt "a woman with blue hair"'
    follows_input = True

    def __init__(self, mask: np.ndarray):
        try:
            found = np.asarray(mask)
        except ValueError:  # lists of several lengths
            found = np.empty(0, object)
        if found.dtype.kind not in "buif" or found.ndim not in (2, 3):
            raise UsageError(
                f"the mask is {found.dtype} {found.shape}; give numbers (h w) or (t h w), not 0 "
                "where to fill"
            )
        self.mask = found != 0

    def known_region(self, given: InputClip) -> InputClip:
        mask = self.mask if self.mask.ndim == 3 else self.mask[None]
        if mask.shape[1:] != given.known.shape[1:] or len(mask) not in (1, len(given)):
            raise UsageError(
                f"the mask is {_size(mask)} and the clip {_size(given.known)}; draw a mask of the "
                "clip's size, with one frame or as many"
            )
        if not mask.any():
            raise UsageError(
                f"the mask covers none of {mask[0].size} pixels; mark what to fill in white"
            )
        if mask.all():
            raise UsageError(
                f"the mask covers all of {mask[0].size} pixels, so nothing is kept; mark only what "
                "to fill, or make a clip with generate"
            )
        return InputClip(given.frames, given.known & ~mask)


class Outpaint(Task):
    """Go on beyond the borders of a clip; the clip stays.

    Args:
        place: `(x, y, width, height)`, where in the picture the clip goes, in pixels.
    """

    example = '--input clip.mp4 --place 16,16,32,32 --prompt "an orc walks left"'
    follows_input = True
    decides = frozenset({SIZE})

    def __init__(self, place: tuple):
        if len(place) != 4:
            raise UsageError(f"place is {place}; give x, y, width and height")
        self.box = tuple(integer("place", number, -MAX_SIDE, MAX_SIDE) for number in place)

    def input_size(self, spec: OutputSpec) -> tuple[int, int]:
        x, y, width, height = self.box
        if width < 1 or height < 1 or min(x, y) < 0:
            raise UsageError(f"place {_box(self.box)} is no x,y,width,height inside the picture")
        if x + width > spec.width or y + height > spec.height:
            raise UsageError(
                f"place {_box(self.box)} reaches beyond the picture of {spec.width}x"
                f"{spec.height}; make x + width and y + height fit"
            )
        if (width, height) == (spec.width, spec.height):
            raise UsageError(f"place {_box(self.box)} is the whole picture; leave a border to fill")
        return height, width

    def finish(self, scene: Scene, spec: OutputSpec) -> Scene:
        x, y, width, height = self.box
        border = ((0, 0), (y, spec.height - y - height), (x, spec.width - x - width))
        frames = np.pad(scene.frames, (*border, (0, 0)))
        return replace(scene, frames=frames, known=np.pad(scene.known, border))


class Colorize(Task):
    """Colour a grey clip; its luminance stays."""

    example = '--input grey.mp4 --prompt "a man with red hair in a green shirt"'
    follows_input = True
    decides = frozenset({OPERATOR})

    def finish(self, scene: Scene, spec: OutputSpec) -> Scene:
        return replace(scene, operator="luminance")


class Upscale(Task):
    """Enlarge a small clip; the mean of every block stays.

    Args:
        factor: How many times, 2 or more.
    """

    example = '--input small.gif --factor 4 --prompt "a woman walks left"'
    follows_input = True
    decides = frozenset({OPERATOR, SIZE})

    def __init__(self, factor: int = 4):
        if factor < 2:
            raise UsageError(f"factor is {factor}; use 2 or more")
        self.factor = factor

    def input_size(self, spec: OutputSpec) -> tuple[int, int]:
        n = self.factor
        if spec.height % n or spec.width % n:
            raise UsageError(
                f"factor {n} does not divide the picture of {spec.width}x{spec.height}; "
                "use 2, 4 or 8"
            )
        return spec.height // n, spec.width // n

    def finish(self, scene: Scene, spec: OutputSpec) -> Scene:
        return replace(scene, operator="block_mean", size=self.factor)


class Variation(Task):
    """Another clip like this one, or a clip from a rough one (SDEdit, arXiv 2108.01073).

    Args:
        strength: In [0, 1], how much noise is put on it: 0 gives it back, 1 forgets it.
    """

    example = '--input clip.mp4 --strength 0.7 --prompt "an orc walks left"'
    follows_input = True
    decides = frozenset({BEGIN})

    def __init__(self, strength: float = 0.7):
        if not 0 <= strength <= 1:
            raise UsageError(f"strength is {strength:g}; use 0 (as it is) to 1 (all new)")
        self.strength = float(strength)

    def finish(self, scene: Scene, spec: OutputSpec) -> Scene:
        return replace(scene, strength=self.strength)


class Denoise(Task):
    """Clean a clip with noise of a known level.

    Args:
        noise: Standard deviation of the noise in grey levels, above 0 and at most 255.
    """

    example = '--input noisy.mp4 --noise 30 --prompt "a man walks right"'
    follows_input = True
    decides = frozenset({BEGIN})

    def __init__(self, noise: float):
        if not 0 < noise <= 255:
            raise UsageError(f"noise is {noise:g}; use a standard deviation above 0, at most 255")
        self.noise = float(noise)

    def finish(self, scene: Scene, spec: OutputSpec) -> Scene:
        return replace(scene, noise=self.noise)


class Interpolate(Task):
    """Clips between two seeds, two prompts or two clips; both ends stay.

    Args:
        count: Number of clips with both ends, 2 to 64.
        strength: In [0, 1], how much noise is put on a mixture of two clips.
    """

    example = '--prompt "a man walks left" --prompt "an orc walks left" --count 5 --output way.gif'
    clips = (0, 2)
    decides = frozenset({BEGIN, OPERATOR, SIZE, TIMING})

    def __init__(self, count: int = 5, strength: float = 0.7):
        if not 2 <= count <= 64:
            raise UsageError(f"count is {count}; use 2 to 64 clips")
        if not 0 <= strength <= 1:
            raise UsageError(f"strength is {strength:g}; use 0 (mixed) to 1 (all new)")
        self.count, self.strength = count, float(strength)


class Image(Task):
    """A picture from a prompt: a clip of one frame."""

    example = '--prompt "a man in golden armor" --output man.png'
    clips = (0, 0)

    def output_spec(self, spec: OutputSpec) -> OutputSpec:
        return replace(spec, frames=1)


def _size(mask: np.ndarray) -> str:
    frames = "1 frame" if len(mask) == 1 else f"{len(mask)} frames"
    return f"{mask.shape[2]}x{mask.shape[1]}, {frames}"


def _box(box: tuple) -> str:
    return ",".join(map(str, box))
