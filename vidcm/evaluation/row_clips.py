"""Clips of the rows of a results table."""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from tqdm import tqdm

from vidcm.errors import VidcmError
from vidcm.evaluation.rows import Row
from vidcm.media.pixels import to_frames, to_video
from vidcm.pipeline import VideoPipeline


@dataclass(frozen=True)
class GeneratedClips:
    """Clips of a row.

    Attributes:
        frames: uint8 `(n t h w c)`.
        evaluations: network forwards per clip, None for the codec.
        seconds: by stage, over all clips.
    """

    frames: Tensor
    evaluations: int | None
    seconds: dict[str, float]


class ClipGenerator(Protocol):
    """Generates the clips of a row."""

    def __call__(
        self,
        prompts: Sequence[str],
        true_clips: Tensor,
        seeds: Sequence[int],
        *,
        complete_prompt: bool = False,
    ) -> GeneratedClips:
        """Clips of prompts.

        Args:
            prompts: One for each clip.
            true_clips: Their true clips, uint8 `(n t h w c)`.
            seeds: One for each clip.
            complete_prompt: Complete the prompts, instead of measuring the model alone.
        """
        ...


def clip_generator(pipe: VideoPipeline, row: Row, batch_size: int) -> ClipGenerator:
    """A function that generates the clips of a row, `batch_size` at a time.

    It raises VidcmError where they have another shape than the true clips.
    """

    def generate(
        prompts: Sequence[str],
        true_clips: Tensor,
        seeds: Sequence[int],
        *,
        complete_prompt: bool = False,
    ) -> GeneratedClips:
        if row.role == "codec":
            start = time.perf_counter()
            frames = torch.cat([codec_roundtrip(pipe, c) for c in true_clips.split(batch_size)])
            found = GeneratedClips(frames, None, {"codec": time.perf_counter() - start})
        else:
            steps = row.num_inference_steps * math.ceil(len(prompts) / batch_size)
            with tqdm(total=steps, desc=str(row), unit="step", leave=False) as bar:

                def tick(*_: object) -> None:
                    bar.update()

                clips = pipe(
                    list(prompts),
                    num_inference_steps=row.num_inference_steps,
                    use_teacher=row.role == "teacher",
                    seed=list(seeds),
                    batch_size=batch_size,
                    complete_prompt=complete_prompt,
                    callback_on_step_end=tick,
                )
            frames = torch.from_numpy(clips.frames)
            found = GeneratedClips(frames, clips.evaluations, clips.seconds)
        if found.frames.shape != true_clips.shape:
            raise VidcmError(
                f"{row} generated clips (n t h w c) of {tuple(found.frames.shape)}, and true clips "
                f"are {tuple(true_clips.shape)}; evaluate a model of the LPC task"
            )
        return found

    return generate


@torch.no_grad()
def codec_roundtrip(pipe: VideoPipeline, frames: Tensor) -> Tensor:
    """Clips uint8 `(b t h w c)` through the codec and back."""
    return to_frames(pipe.codec.decode(pipe.codec.encode(to_video(frames).to(pipe.device)))).cpu()
