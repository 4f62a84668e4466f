"""Tasks in time: go on, go back, connect, close a loop, bring a picture to life, add frames."""

from dataclasses import replace

from vidcm.editing.scene import TIMING, InputClip, OutputSpec, Scene, Task, blank, from_start
from vidcm.errors import UsageError


class Overlapping(Task):
    """A task that takes clips of any length and shows the model a few frames at their ends.

    Args:
        given: How many frames; None for a share of what the model generates.
    """

    def __init__(self, given: int | None = None):
        self.given = given

    def max_input_frames(self, spec: OutputSpec, alone: bool) -> int | None:
        return None


class Extend(Overlapping):
    """Go on after the end of a clip; the clip stays.

    Args:
        given: How many of its last frames the model sees (default: about half of its output).
    """

    example = '--input clip.mp4 --prompt "a woman walks left"'
    decides = frozenset({TIMING})

    def place(self, given: list[InputClip], spec: OutputSpec) -> Scene:
        clip = given[0]
        count = _overlap(self.given, (spec.frames - 1) // 8 * 4 + 1, len(clip), spec)
        scene = _ends(spec, clip[len(clip) - count :], clip[:0])
        return replace(scene, before=clip.frames[: len(clip) - count])


class ExtendBackward(Extend):
    """Make what came before a clip; the clip stays.

    Args:
        given: How many of its first frames the model sees (default: about half of its output).
    """

    def place(self, given: list[InputClip], spec: OutputSpec) -> Scene:
        clip = given[0]
        count = _overlap(self.given, (spec.frames - 1) // 8 * 4, len(clip), spec)
        scene = _ends(spec, clip[:0], clip[:count])
        return replace(scene, after=clip.frames[count:])


class Inbetween(Overlapping):
    """Connect two pictures or two clips; both stay.

    Args:
        given: How many frames of a clip the model sees at each end (default: a fifth of what it
            generates).
    """

    example = '--input first.png --input last.png --prompt "a man slashes"'
    clips = (2, 2)
    min_frames = 1
    decides = frozenset({TIMING})

    def place(self, given: list[InputClip], spec: OutputSpec) -> Scene:
        left, right = given
        return _bridge(left, right, self.given, spec)


class Loop(Overlapping):
    """Close a clip to a loop, or make one from a prompt alone; the clip stays.

    Args:
        given: How many frames of the clip the model sees at each end (default: a fifth of what it
            generates).
    """

    example = '--input clip.mp4 --prompt "a woman walks left" --output loop.gif'
    clips = (0, 1)

    def max_input_frames(self, spec: OutputSpec, alone: bool) -> int | None:
        return None if alone else spec.frames - spec.stride

    def place(self, given: list[InputClip], spec: OutputSpec) -> Scene:
        if not given:
            return from_start(given, spec)
        scene = _bridge(given[0], given[0], self.given, spec)
        assert scene.after is not None
        seen_again = len(given[0]) - len(scene.after)
        return replace(scene, after=None, length=spec.frames - seen_again, blend_ends=True)

    def finish(self, scene: Scene, spec: OutputSpec) -> Scene:
        """Unless a clip was bridged to itself: the last frame is the first again, and left out."""
        if scene.before is not None:
            return scene
        return replace(scene, periodic=True, length=spec.frames - 1)


class Animate(Task):
    """Bring a picture to life; it stays as the first or last frame.

    Args:
        at: "first" or "last". Two pictures are first and last.
    """

    example = '--input picture.png --at first --prompt "a man walks left"'
    clips = (1, 2)
    min_frames = 1
    decides = frozenset({TIMING})

    def __init__(self, at: str = "first"):
        if at not in ("first", "last"):
            raise UsageError(f"at is {at!r}; use first or last")
        self.at = at

    def max_input_frames(self, spec: OutputSpec, alone: bool) -> int | None:
        return None

    def place(self, given: list[InputClip], spec: OutputSpec) -> Scene:
        for clip in given:
            if len(clip) > 1:
                raise UsageError(
                    f"animate takes pictures, and this is a clip of {len(clip)} frames; "
                    "use extend, extend_backward or inbetween"
                )
        if len(given) == 2:
            return _ends(spec, *given)
        nothing = given[0][:0]
        return _ends(spec, *((given[0], nothing) if self.at == "first" else (nothing, given[0])))


class InterpolateFrames(Task):
    """More frames for a slow clip; its own frames stay, each of them.

    Args:
        factor: Frames generated for each input frame, 2 or more.
    """

    example = '--input slow.gif --factor 2 --prompt "an orc walks right"'
    min_frames = 2
    follows_input = True
    decides = frozenset({TIMING})

    def __init__(self, factor: int = 2):
        if factor < 2:
            raise UsageError(f"factor is {factor}; use 2 or more")
        self.factor = factor

    def frames_per_input(self) -> int:
        return self.factor

    def max_input_frames(self, spec: OutputSpec, alone: bool) -> int | None:
        return (spec.frames - 1) // self.factor + 1

    def place(self, given: list[InputClip], spec: OutputSpec) -> Scene:
        clip, most = given[0], (spec.frames - 1) // self.factor + 1
        if most < 2:
            raise UsageError(
                f"factor {self.factor} leaves room for one given frame in {spec.frames}; "
                f"use at most {spec.frames - 1}"
            )
        if not 2 <= len(clip) <= most:
            raise UsageError(
                f"the clip has {len(clip)} frames; with factor {self.factor} give 2 to {most}"
            )
        scene = blank(clip, spec)
        end = (len(clip) - 1) * self.factor + 1
        scene.frames[: end : self.factor] = clip.frames
        scene.known[: end : self.factor] = clip.known
        return replace(scene, length=end)


def _overlap(requested: int | None, default: int, have: int, spec: OutputSpec) -> int:
    """How many given frames the model sees at one end."""
    count = min(default or 1, have) if requested is None else requested
    if not 1 <= count < spec.frames:
        raise UsageError(f"given is {count}; use 1 to {spec.frames - 1} frames")
    if count > have:
        raise UsageError(f"given is {count} and the clip has {have} frames; use at most {have}")
    return count


def _bridge(left: InputClip, right: InputClip, requested: int | None, spec: OutputSpec) -> Scene:
    default = max(spec.frames // 5, 1)
    one, two = (_overlap(requested, default, len(clip), spec) for clip in (left, right))
    if one + two >= spec.frames:
        raise UsageError(
            f"given is {requested}, so {one + two} of {spec.frames} frames are known and no room "
            f"is left between; use at most {(spec.frames - 1) // 2}"
        )
    scene = _ends(spec, left[len(left) - one :], right[:two])
    return replace(scene, before=left.frames[: len(left) - one], after=right.frames[two:])


def _ends(spec: OutputSpec, left: InputClip, right: InputClip) -> Scene:
    """Frames at the beginning and at the end of the output; either may be empty."""
    scene = blank(left if len(left) else right, spec)
    start = spec.frames - len(right)
    scene.frames[: len(left)], scene.known[: len(left)] = left.frames, left.known
    scene.frames[start:], scene.known[start:] = right.frames, right.known
    return scene
