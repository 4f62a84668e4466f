"""Results of a pipeline: clips, the time of each stage, and the files they are written to."""

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vidcm.arguments import checked_names
from vidcm.errors import UsageError
from vidcm.media.write import numbered, write_clip

OUTPUT_TYPES = ("np", "pt", "pil", "latent")


@dataclass(frozen=True, repr=False)
class Clips:
    """Clips of one call, in the order of prompts. `clips[0]` is the first clip's frames.

    Attributes:
        frames: By `output_type`: "np" uint8 array `(n, t, h, w, 3)`; "pt" the same as a tensor;
            "pil" a list of lists of pictures; "latent" float32 latents `(n, c, t, h, w)`.
        prompts: First prompt of each clip.
        captions: The same as the model got it, with what the prompt leaves open.
        seeds: Seed of each clip.
        fps: Frames per second.
        evaluations: Network evaluations per clip, those of guidance and of every window counted.
        seconds: Wall time of each stage of the call.
        output_type: "np", "pt", "pil" or "latent".
    """

    frames: Any
    prompts: list[str]
    seeds: list[int]
    fps: float
    evaluations: int
    seconds: dict[str, float] = field(default_factory=dict)
    output_type: str = "np"
    captions: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.frames)

    def __getitem__(self, index: int | slice) -> Any:
        return self.frames[index]

    def __iter__(self) -> Iterator[Any]:
        return iter(self.frames)

    def __repr__(self) -> str:
        if self.output_type == "pil":
            first = self.frames[0]
            shape = f"{len(first)} frames of {first[0].width}x{first[0].height}"
        elif self.output_type == "latent":
            shape = f"latents {tuple(self.frames.shape[1:])}"
        else:
            _, t, h, w, _ = self.frames.shape
            shape = f"{t} frames of {w}x{h}"
        return (
            f"Clips({len(self)} x {shape} at {self.fps:g} fps, output_type={self.output_type!r}, "
            f"seeds={self.seeds}, evaluations={self.evaluations})"
        )

    @checked_names({})
    def save(
        self, path: str | Path, *, fps: float | None = None, overwrite: bool = False, scale: int = 1
    ) -> list[Path]:
        """Write every clip; the format is the extension's.

        Args:
            path: File or, ending in "/", folder; several clips get `name-1.mp4`, `name-2.mp4`, ...
            fps: Frames per second (default: the pipeline's).
            overwrite: Replace existing files.
            scale: Enlarge pixels so many times.

        Returns:
            The paths.

        Raises:
            UsageError: An unknown format, an existing file, or clips that are not arrays.
        """
        if self.output_type != "np":
            raise UsageError(
                f"clips of output_type {self.output_type!r} cannot be written; use output_type='np'"
            )
        rate = self.fps if fps is None else fps
        return [
            write_clip(clip, target, fps=rate, overwrite=overwrite, scale=scale)
            for clip, target in zip(self.frames, numbered(path, len(self)), strict=True)
        ]


def as_output(frames: Tensor, output_type: str) -> Any:
    """uint8 frames `(n, t, h, w, 3)` or latents, on the CPU, in the form of `Clips.frames`."""
    if output_type in ("pt", "latent"):
        return frames
    arrays = frames.numpy()
    if output_type == "np":
        return arrays
    from PIL import Image

    return [[Image.fromarray(frame) for frame in clip] for clip in arrays]


class Clock:
    """Seconds by stage, summed over batches, the device drained at every mark."""

    def __init__(self, device: torch.device):
        self.device, self.seconds, self.at = device, dict[str, float](), time.perf_counter()

    def __call__(self, stage: str) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        now = time.perf_counter()
        self.seconds[stage] = self.seconds.get(stage, 0.0) + now - self.at
        self.at = now
