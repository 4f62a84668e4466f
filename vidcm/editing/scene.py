"""A scene: the clip a model will make, and what is known of it. Tasks compose scenes.

Needs no torch, so that commands can explain the tasks at once.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from vidcm.errors import UsageError


@dataclass(frozen=True)
class Canvas:
    """The clip that a model generates.

    Attributes:
        frames: Number of frames.
        height: In pixels.
        width: In pixels.
        stride: Frames of a latent frame.
        fit: Smallest number of frames, at least its argument, that latent frames and windows fill.
        most: Frames that memory holds.
    """

    frames: int
    height: int
    width: int
    stride: int
    fit: Callable[[int], int]
    most: int


@dataclass(frozen=True)
class Given:
    """A clip of the user's, uint8 `(t h w 3)`, and where it is known, bool `(t h w)`."""

    frames: np.ndarray
    seen: np.ndarray

    def __len__(self) -> int:
        return len(self.frames)

    def __getitem__(self, part: slice) -> "Given":
        return Given(self.frames[part], self.seen[part])


@dataclass(frozen=True)
class Scene:
    """What is known of the frames that a model generates, and how generation begins.

    Attributes:
        frames: uint8 `(t h w 3)`, the input frames in their places on the canvas; for the operator
            "block_mean" at 1 / `size` of its height and width.
        seen: bool, `(t h w)` of `frames`, True where a pixel is known.
        keeps: The operator whose value of a seen pixel is known.
        size: Side of a block for "block_mean".
        ring: Whether the last frame equals the first.
        strength: In [0, 1]: begin from the input frames with that much noise; None for pure noise.
        noise: Begin from the input frames, which have noise of that many grey levels.
        before: Frames that the result has before the generated ones.
        after: Frames that the result has after them.
        last: Number of generated frames in the result.
        closes: Whether the last of them leads to the first of the result.
    """

    frames: np.ndarray
    seen: np.ndarray
    keeps: str = "pixels"
    size: int = 1
    ring: bool = False
    strength: float | None = None
    noise: float | None = None
    before: np.ndarray | None = None
    after: np.ndarray | None = None
    last: int | None = None
    closes: bool = False


TIMING = "where the given frames go in time"
SIZE = "the size of the given clip"
KEEPS = "what is known of a pixel"
BEGIN = "what it begins from"


class Task:
    """An edit of clips.

    The arguments of a task's constructor are its options, and the first line of its docstring is its
    line in `vidcm edit --help`.

    Attributes:
        clips: Smallest and largest number of clips.
        least: Smallest number of frames in a clip; None for those of a latent frame.
        grows: Whether the model generates as many frames as the clip asks for. Several tasks follow the
            input only if each of them does.
        decides: Facts that only one of several tasks may decide.
        example: What follows `vidcm edit NAME`.
    """

    clips: tuple[int, int] = (1, 1)
    least: int | None = None
    grows: bool = False
    decides: frozenset[str] = frozenset()
    example: str = ""

    def canvas(self, canvas: Canvas) -> Canvas:
        """What the model is to make."""
        return canvas

    def input_size(self, canvas: Canvas) -> tuple[int, int]:
        """Height and width of the clips it takes. Raises UsageError when there is none."""
        return canvas.height, canvas.width

    def pace(self) -> int:
        """How many frames are made for each given one."""
        return 1

    def most(self, canvas: Canvas, alone: bool) -> int | None:
        """How many frames of a clip it takes at most; None for all there are."""
        return canvas.frames

    def look(self, given: Given) -> Given:
        """What is known of a clip."""
        return given

    def place(self, given: list[Given], canvas: Canvas) -> Scene:
        """Where given frames go in time: at the beginning, and as many as there are."""
        return whole(given, canvas)

    def finish(self, scene: Scene, canvas: Canvas) -> Scene:
        """What else is known."""
        return scene


def whole(given: list[Given], canvas: Canvas) -> Scene:
    """A clip from the first frame on. Frames that the canvas has beyond it are made and dropped."""
    if not given:
        size = (canvas.frames, canvas.height, canvas.width)
        return Scene(np.zeros((*size, 3), np.uint8), np.zeros(size, bool))
    count = len(given[0])
    if count > canvas.frames:
        raise UsageError(
            f"the clip has {count} frames and the model makes {canvas.frames}; give at most so many"
        )
    scene = blank(given[0], canvas)
    scene.frames[:count], scene.seen[:count] = given[0].frames, given[0].seen
    scene.frames[count:] = given[0].frames[-1]  # not seen; what a variation begins from
    return replace(scene, last=count)


def blank(given: Given, canvas: Canvas) -> Scene:
    """Nothing known, at the size of a given clip."""
    size = (canvas.frames, *given.frames.shape[1:3])
    return Scene(np.zeros((*size, 3), np.uint8), np.zeros(size, bool))


def compose(
    tasks: Mapping[str, Task],
    clips: Sequence[np.ndarray],
    canvas: Canvas,
    frames: int | None = None,
) -> tuple[Canvas, Scene]:
    """The canvas and the scene of several tasks at once.

    The result of several tasks is what the model generates, without the frames of a clip that it does
    not see.

    Args:
        tasks: By name, in any order.
        clips: uint8 `(t h w 3)` each.
        canvas: What the model generates by itself.
        frames: How many it is to generate; None for as many as a clip asks for, or the canvas has.

    Raises:
        UsageError: Tasks contradict each other, or clips do not fit them.
    """
    check(tasks, len(clips))
    alone = len(tasks) == 1
    canvas = grown(tasks, [len(clip) for clip in clips], canvas, frames)
    height, width = input_size(tasks, canvas)
    least = min((t.least for t in tasks.values() if t.least), default=canvas.stride)
    given = []
    forgets = all(BEGIN in t.decides for t in tasks.values())
    for clip in clips:
        if clip.shape[1:] != (height, width, 3):
            raise UsageError(
                f"a clip is {clip.shape[2]}x{clip.shape[1]}; {', '.join(tasks)} takes "
                f"{width}x{height} here"
            )
        if len(clip) < least:
            raise UsageError(
                f"a clip has {len(clip)} frames, fewer than the {least} of one latent frame; give a "
                "longer one, or a picture to animate"
            )
        part = Given(clip, np.full(clip.shape[:3], not forgets))
        for task in tasks.values():
            part = task.look(part)
        given.append(part)
    timing = [t for t in tasks.values() if TIMING in t.decides]
    placer = timing[0] if timing else next(iter(tasks.values())) if alone else Task()
    scene = placer.place(given, canvas)
    if not alone:
        scene = replace(scene, before=None, after=None)
    for task in tasks.values():
        scene = task.finish(scene, canvas)
    return canvas, scene


def check(tasks: Mapping[str, Task], clips: int) -> None:
    """Raise UsageError for tasks that contradict each other or for the wrong number of clips."""
    decided_by: dict[str, str] = {}
    for name, task in tasks.items():
        for what in sorted(task.decides):
            if what in decided_by:
                raise UsageError(
                    f"{decided_by[what]} and {name} both decide {what}; do one, then the other with its "
                    "result"
                )
            decided_by[what] = name
    low, high = (f(t.clips[i] for t in tasks.values()) for i, f in enumerate((max, min)))
    names = ", ".join(tasks)
    if low > high:
        raise UsageError(f"{names} cannot be combined: they take different numbers of clips")
    if not low <= clips <= high:
        wanted = str(low) if low == high else f"{low} or {high}"
        raise UsageError(f"{names} takes {wanted} input clips, not {clips}")


def grown(
    tasks: Mapping[str, Task], lengths: Sequence[int], canvas: Canvas, frames: int | None
) -> Canvas:
    """The canvas of tasks, from what the model generates by itself.

    Args:
        tasks: By name.
        lengths: Frames of the clips; tasks along whole clips generate as many.
        canvas: What the model generates by itself.
        frames: How many it is to generate; None for as many as the tasks ask for.

    Raises:
        UsageError: The tasks do not generate so many.
    """
    made = canvas
    for task in tasks.values():
        made = task.canvas(made)
    names, needed = ", ".join(tasks), frames or made.frames
    if grows(tasks):
        longest = max(lengths)
        needed = (longest - 1) * pace(tasks) + 1
        if frames is not None and needed > frames:
            raise UsageError(
                f"{names} of {longest} frames makes {needed} and frames is {frames}; ask for more, "
                "or give a shorter clip"
            )
        made = replace(made, frames=max(made.frames, made.fit(needed)))
    elif frames is not None:
        if made.frames != canvas.frames:
            raise UsageError(f"{names} always makes {made.frames} frames; leave frames out")
        if (more := made.fit(frames)) != frames:
            less = max((n for n in range(1, frames) if made.fit(n) == n), default=more)
            raise UsageError(f"{names} cannot make {frames} frames; use {less} or {more}")
        made = replace(made, frames=frames)
    if needed > made.most:
        limit = f"take at most {made.most} at a time" if made.most else "use a smaller size"
        raise UsageError(
            f"{needed} frames of {made.width}x{made.height} are more than memory should hold; "
            + limit
        )
    return made


def grows(tasks: Mapping[str, Task]) -> bool:
    """Whether the model makes as many frames as the clip of tasks asks for."""
    return all(task.grows for task in tasks.values())


def input_size(tasks: Mapping[str, Task], canvas: Canvas) -> tuple[int, int]:
    """Height and width of the clips that tasks take."""
    sizes = [t.input_size(canvas) for t in tasks.values()]
    return min(sizes)


def pace(tasks: Mapping[str, Task]) -> int:
    """How many frames are made for each given one."""
    return max(t.pace() for t in tasks.values())


def most_frames(tasks: Mapping[str, Task], canvas: Canvas) -> int | None:
    """How many frames of a clip tasks take at most; None for all there are."""
    alone = len(tasks) == 1
    timing = [t for t in tasks.values() if TIMING in t.decides]
    counts = [t.most(canvas, alone) for t in timing or tasks.values()]
    return min((n for n in counts if n is not None), default=None)
