"""What a pipeline hands out: clips, how long each stage took, and the files they become."""

import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from vidcm.media.write import numbered, write_clip


@dataclass(frozen=True)
class Clips:
    """frames: uint8 `(n t h w c)`. prompts: those that clips begin with. evaluations: network
    forwards per clip, guidance's second one and every window's counted. seconds: wall time of text,
    denoise and decode for the whole call."""

    frames: np.ndarray
    prompts: list[str]
    seeds: list[int]
    fps: float
    evaluations: int
    seconds: dict[str, float] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.frames)

    def save(
        self, path: str | Path, *, fps: float | None = None, overwrite: bool = False, scale: int = 1
    ) -> list[Path]:
        """Write every clip (`name-1.mp4`, `name-2.mp4`, ... when there are several); the format is
        the extension's. Returns the paths. Raises UsageError for an unknown or existing one."""
        return [
            write_clip(clip, target, fps=fps or self.fps, overwrite=overwrite, scale=scale)
            for clip, target in zip(self.frames, numbered(path, len(self)), strict=True)
        ]


class Clock:
    """Seconds by stage, the device drained at every mark."""

    def __init__(self, device: torch.device):
        self.device, self.seconds, self.at = device, {}, time.perf_counter()

    def __call__(self, stage: str) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        now = time.perf_counter()
        self.seconds[stage] = now - self.at
        self.at = now
