"""A scene: the clip a model will make, and what is known of it. Tasks compose scenes.

Needs no torch, so that commands can explain the tasks at once.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from vidcm.errors import UsageError


@dataclass(frozen=True)
class OutputSpec:
    """The clip that a model generates.

    Attributes:
        frames: Number of frames.
        height: In pixels.
        width: In pixels.
        stride: Frames of a latent frame.
        padded_frames: Smallest number of frames, at least its argument, that latent frames and
            windows fill.
        max_frames: Frames that memory holds.
    """

    frames: int
    height: int
    width: int
    stride: int
    padded_frames: Callable[[int], int]
    max_frames: int


@dataclass(frozen=True)
class InputClip:
    """A clip of the user's, uint8 `(t h w 3)`, and where it is known, bool `(t h w)`."""

    frames: np.ndarray
    known: np.ndarray

    def __len__(self) -> int:
        return len(self.frames)

    def __getitem__(self, part: slice) -> "InputClip":
        return InputClip(self.frames[part], self.known[part])


@dataclass(frozen=True)
class Scene:
    """What is known of the frames that a model generates, and how generation begins.

    Attributes:
        frames: uint8 `(t h w 3)`, the input frames in their places in the output; for the operator
            "block_mean" at 1 / `size` of its height and width.
        known: bool, `(t h w)` of `frames`, True where a pixel is known.
        operator: The operator whose value of a known pixel is known.
        size: Side of a block for "block_mean".
        periodic: Whether the last frame equals the first.
        strength: In [0, 1]: begin from the input frames with that much noise; None for pure noise.
        noise: Begin from the input frames, which have noise of that many grey levels.
        before: Frames that the result has before the generated ones.
        after: Frames that the result has after them.
        length: Number of generated frames in the result.
        blend_ends: Whether the last of them leads to the first of the result.
    """

    frames: np.ndarray
    known: np.ndarray
    operator: str = "pixels"
    size: int = 1
    periodic: bool = False
    strength: float | None = None
    noise: float | None = None
    before: np.ndarray | None = None
    after: np.ndarray | None = None
    length: int | None = None
    blend_ends: bool = False


TIMING = "where the given frames go in time"
SIZE = "the size of the given clip"
OPERATOR = "what is known of a pixel"
BEGIN = "what it begins from"


class Task:
    """An edit of clips.

    The arguments of a task's constructor are its options, and the first line of its docstring is
    its line in `vidcm edit --help`.

    Attributes:
        clips: Smallest and largest number of clips.
        min_frames: Smallest number of frames in a clip; None for those of a latent frame.
        follows_input: Whether the model generates as many frames as the clip asks for. Several
            tasks follow the input only if each of them does.
        decides: Facts that only one of several tasks may decide.
        example: What follows `vidcm edit NAME`.
    """

    clips: tuple[int, int] = (1, 1)
    min_frames: int | None = None
    follows_input: bool = False
    decides: frozenset[str] = frozenset()
    example: str = ""

    def output_spec(self, spec: OutputSpec) -> OutputSpec:
        """What the model is to make."""
        return spec

    def input_size(self, spec: OutputSpec) -> tuple[int, int]:
        """Height and width of the clips it takes. Raises UsageError when there is none."""
        return spec.height, spec.width

    def frames_per_input(self) -> int:
        """How many frames are made for each given one."""
        return 1

    def max_input_frames(self, spec: OutputSpec, alone: bool) -> int | None:
        """How many frames of a clip it takes at most; None for all there are."""
        return spec.frames

    def known_region(self, given: InputClip) -> InputClip:
        """What is known of a clip."""
        return given

    def place(self, given: list[InputClip], spec: OutputSpec) -> Scene:
        """Where given frames go in time: at the beginning, and as many as there are."""
        return from_start(given, spec)

    def finish(self, scene: Scene, spec: OutputSpec) -> Scene:
        """What else is known."""
        return scene


def from_start(given: list[InputClip], spec: OutputSpec) -> Scene:
    """A clip from the first frame on. Frames of the output beyond it are generated and dropped."""
    if not given:
        size = (spec.frames, spec.height, spec.width)
        return Scene(np.zeros((*size, 3), np.uint8), np.zeros(size, bool))
    count = len(given[0])
    if count > spec.frames:
        raise UsageError(
            f"the clip has {count} frames and the model makes {spec.frames}; give at most so many"
        )
    scene = blank(given[0], spec)
    scene.frames[:count], scene.known[:count] = given[0].frames, given[0].known
    scene.frames[count:] = given[0].frames[-1]  # not known; what a variation begins from
    return replace(scene, length=count)


def blank(given: InputClip, spec: OutputSpec) -> Scene:
    """Nothing known, at the size of a given clip."""
    size = (spec.frames, *given.frames.shape[1:3])
    return Scene(np.zeros((*size, 3), np.uint8), np.zeros(size, bool))


def compose(
    tasks: Mapping[str, Task],
    clips: Sequence[np.ndarray],
    spec: OutputSpec,
    frames: int | None = None,
) -> tuple[OutputSpec, Scene]:
    """The output and the scene of several tasks at once.

    The result of several tasks is what the model generates, without the frames of a clip that it
    does not see.

    Args:
        tasks: By name, in any order.
        clips: uint8 `(t h w 3)` each.
        spec: What the model generates by itself.
        frames: How many it is to generate; None for as many as a clip asks for, or the model by
            itself.

    Raises:
        UsageError: Tasks contradict each other, or clips do not fit them.
    """
    check(tasks, len(clips))
    alone = len(tasks) == 1
    spec = resolve_output(tasks, [len(clip) for clip in clips], spec, frames)
    height, width = input_size(tasks, spec)
    min_frames = min((t.min_frames for t in tasks.values() if t.min_frames), default=spec.stride)
    given = []
    forgets = all(BEGIN in t.decides for t in tasks.values())
    for clip in clips:
        if clip.shape[1:] != (height, width, 3):
            raise UsageError(
                f"a clip is {clip.shape[2]}x{clip.shape[1]}; {', '.join(tasks)} takes "
                f"{width}x{height} here"
            )
        if len(clip) < min_frames:
            raise UsageError(
                f"a clip has {len(clip)} frames, fewer than the {min_frames} of one latent frame; "
                "give a longer one, or a picture to animate"
            )
        part = InputClip(clip, np.full(clip.shape[:3], not forgets))
        for task in tasks.values():
            part = task.known_region(part)
        given.append(part)
    timing = [t for t in tasks.values() if TIMING in t.decides]
    placer = timing[0] if timing else next(iter(tasks.values())) if alone else Task()
    scene = placer.place(given, spec)
    if not alone:
        scene = replace(scene, before=None, after=None)
    for task in tasks.values():
        scene = task.finish(scene, spec)
    return spec, scene


def check(tasks: Mapping[str, Task], clips: int) -> None:
    """Raise UsageError for tasks that contradict each other or for the wrong number of clips."""
    decided_by: dict[str, str] = {}
    for name, task in tasks.items():
        for what in sorted(task.decides):
            if what in decided_by:
                raise UsageError(
                    f"{decided_by[what]} and {name} both decide {what}; do one, then the other "
                    "with its result"
                )
            decided_by[what] = name
    low, high = (f(t.clips[i] for t in tasks.values()) for i, f in enumerate((max, min)))
    names = ", ".join(tasks)
    if low > high:
        raise UsageError(f"{names} cannot be combined: they take different numbers of clips")
    if not low <= clips <= high:
        wanted = str(low) if low == high else f"{low} or {high}"
        raise UsageError(f"{names} takes {wanted} input clips, not {clips}")


def resolve_output(
    tasks: Mapping[str, Task], lengths: Sequence[int], spec: OutputSpec, frames: int | None
) -> OutputSpec:
    """The output of tasks, from what the model generates by itself.

    Args:
        tasks: By name.
        lengths: Frames of the clips; tasks along whole clips generate as many.
        spec: What the model generates by itself.
        frames: How many it is to generate; None for as many as the tasks ask for.

    Raises:
        UsageError: The tasks do not generate so many.
    """
    made = spec
    for task in tasks.values():
        made = task.output_spec(made)
    names, needed = ", ".join(tasks), frames or made.frames
    if follows_input(tasks):
        longest = max(lengths)
        needed = (longest - 1) * frames_per_input(tasks) + 1
        if frames is not None and needed > frames:
            raise UsageError(
                f"{names} of {longest} frames makes {needed} and frames is {frames}; ask for more, "
                "or give a shorter clip"
            )
        made = replace(made, frames=max(made.frames, made.padded_frames(needed)))
    elif frames is not None:
        if made.frames != spec.frames:
            raise UsageError(f"{names} always makes {made.frames} frames; leave frames out")
        if (more := made.padded_frames(frames)) != frames:
            less = max((n for n in range(1, frames) if made.padded_frames(n) == n), default=more)
            raise UsageError(f"{names} cannot make {frames} frames; use {less} or {more}")
        made = replace(made, frames=frames)
    if needed > made.max_frames:
        limit = (
            f"take at most {made.max_frames} at a time" if made.max_frames else "use a smaller size"
        )
        raise UsageError(
            f"{needed} frames of {made.width}x{made.height} are more than memory should hold; "
            + limit
        )
    return made


def follows_input(tasks: Mapping[str, Task]) -> bool:
    """Whether the model makes as many frames as the clip of tasks asks for."""
    return all(task.follows_input for task in tasks.values())


def input_size(tasks: Mapping[str, Task], spec: OutputSpec) -> tuple[int, int]:
    """Height and width of the clips that tasks take."""
    sizes = [t.input_size(spec) for t in tasks.values()]
    return min(sizes)


def frames_per_input(tasks: Mapping[str, Task]) -> int:
    """How many frames are made for each given one."""
    return max(t.frames_per_input() for t in tasks.values())


def max_input_frames(tasks: Mapping[str, Task], spec: OutputSpec) -> int | None:
    """How many frames of a clip tasks take at most; None for all there are."""
    alone = len(tasks) == 1
    timing = [t for t in tasks.values() if TIMING in t.decides]
    counts = [t.max_input_frames(spec, alone) for t in timing or tasks.values()]
    return min((n for n in counts if n is not None), default=None)
