"""Clips of the rows of a results table."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

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


# (prompts, true clips uint8 (n t h w c), seeds) -> clips
ClipGenerator = Callable[[Sequence[str], Tensor, Sequence[int]], GeneratedClips]


def clip_generator(pipe: VideoPipeline, row: Row, batch_size: int) -> ClipGenerator:
    """A function that generates the clips of a row, `batch_size` at a time.

    It raises VidcmError where they have another shape than the true clips.
    """

    def generate_batch(
        prompts: Sequence[str], true_clips: Tensor, seeds: Sequence[int]
    ) -> GeneratedClips:
        if row.role == "codec":
            start = time.perf_counter()
            frames = codec_roundtrip(pipe, true_clips)
            return GeneratedClips(frames, None, {"codec": time.perf_counter() - start})
        clips = pipe(
            list(prompts),
            num_inference_steps=row.num_inference_steps,
            use_teacher=row.role == "teacher",
            seed=list(seeds),
        )
        return GeneratedClips(torch.from_numpy(clips.frames), clips.evaluations, clips.seconds)

    def generate(
        prompts: Sequence[str], true_clips: Tensor, seeds: Sequence[int]
    ) -> GeneratedClips:
        frames: list[Tensor] = []
        seconds: dict[str, float] = {}
        evaluations = None
        with tqdm(total=len(prompts), desc=str(row), unit="clip", leave=False) as bar:
            for start in range(0, len(prompts), batch_size):
                part = slice(start, start + batch_size)
                batch = generate_batch(prompts[part], true_clips[part], seeds[part])
                if batch.frames.shape != true_clips[part].shape:
                    raise VidcmError(
                        f"{row} generated clips (n t h w c) of {tuple(batch.frames.shape)}, and "
                        f"true clips are {tuple(true_clips[part].shape)}; evaluate a model of the "
                        "LPC task"
                    )
                frames.append(batch.frames)
                evaluations = batch.evaluations
                for stage, spent in batch.seconds.items():
                    seconds[stage] = seconds.get(stage, 0.0) + spent
                bar.update(len(batch.frames))
        return GeneratedClips(torch.cat(frames), evaluations, seconds)

    return generate


@torch.no_grad()
def codec_roundtrip(pipe: VideoPipeline, frames: Tensor) -> Tensor:
    """Clips uint8 `(b t h w c)` through the codec and back."""
    return to_frames(pipe.codec.decode(pipe.codec.encode(to_video(frames).to(pipe.device)))).cpu()
