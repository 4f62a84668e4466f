"""The rows of a results table: ways of making the clip of a prompt."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from tqdm import tqdm

from vidcm.errors import VidcmError
from vidcm.media.pixels import to_frames, to_video

if TYPE_CHECKING:
    from vidcm.pipeline import VideoPipeline

ROWS = ("codec", "teacher-50", "teacher-8", "student-1", "student-2", "student-4", "student-8")


@dataclass(frozen=True)
class Made:
    """frames: uint8 `(n t h w c)`. evaluations: network forwards per clip, None for the codec.
    seconds: by stage, over all clips."""

    frames: Tensor
    evaluations: int | None
    seconds: dict[str, float]


# (prompts, true clips uint8 (n t h w c), seeds) -> clips
Maker = Callable[[Sequence[str], Tensor, Sequence[int]], Made]


def place(row: str) -> tuple[int, int]:
    """Sorts rows: the codec, teachers from many steps to few, students from few to many."""
    role, _, steps = row.partition("-")
    return ("codec", "teacher", "student").index(role), int(steps or 0) * (
        1 - 2 * (role == "teacher")
    )


def maker(pipe: "VideoPipeline", row: str, batch: int) -> Maker:
    """How a row makes clips: `codec` sends the true ones through the codec (the ceiling of the
    others), `teacher-N` and `student-N` draw them in N steps."""
    role, _, steps = row.partition("-")

    def one(prompts: Sequence[str], truth: Tensor, seeds: Sequence[int]) -> Made:
        if role == "codec":
            start = time.perf_counter()
            frames = rebuild(pipe, truth)
            return Made(frames, None, {"codec": time.perf_counter() - start})
        clips = pipe(list(prompts), steps=int(steps), teacher=role == "teacher", seed=list(seeds))
        return Made(torch.from_numpy(clips.frames), clips.evaluations, clips.seconds)

    def make(prompts: Sequence[str], truth: Tensor, seeds: Sequence[int]) -> Made:
        frames: list[Tensor] = []
        seconds: dict[str, float] = {}
        evaluations = None
        with tqdm(total=len(prompts), desc=row, unit="clip", leave=False) as bar:
            for start in range(0, len(prompts), batch):
                part = slice(start, start + batch)
                made = one(prompts[part], truth[part], seeds[part])
                if made.frames.shape != truth[part].shape:
                    raise VidcmError(
                        f"{row} made clips (n t h w c) of {tuple(made.frames.shape)}, and the true "
                        f"ones are {tuple(truth[part].shape)}; evaluate a model of the lpc task"
                    )
                frames.append(made.frames)
                evaluations = made.evaluations
                for stage, spent in made.seconds.items():
                    seconds[stage] = seconds.get(stage, 0.0) + spent
                bar.update(len(made.frames))
        return Made(torch.cat(frames), evaluations, seconds)

    return make


@torch.no_grad()
def rebuild(pipe: "VideoPipeline", frames: Tensor) -> Tensor:
    """Clips uint8 `(b t h w c)` through the codec and back."""
    return to_frames(pipe.codec.decode(pipe.codec.encode(to_video(frames).to(pipe.device)))).cpu()
