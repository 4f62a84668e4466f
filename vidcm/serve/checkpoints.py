"""The pipelines of a server, by the names that requests know them by."""

import math
import secrets
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from vidcm.arguments import MAX_SEED
from vidcm.errors import UsageError
from vidcm.generation import Generation
from vidcm.limits import check_memory
from vidcm.media.write import check_form
from vidcm.pipeline import BATCH_PIXELS, VideoPipeline
from vidcm.schema import suggest
from vidcm.serve.limits import ServeLimits
from vidcm.serve.requests import SamplingRequest


@dataclass(frozen=True)
class Checkpoint:
    """A loaded pipeline, and what may be asked of it.

    Attributes:
        name: As requests call it.
        pipe: The pipeline; the thread that makes jobs runs it.
        limits: Of the server.
    """

    name: str
    pipe: VideoPipeline
    limits: ServeLimits
    _loading: threading.Lock = field(default_factory=threading.Lock, repr=False)

    @classmethod
    def load(cls, name: str, limits: ServeLimits, device: str = "auto") -> Self:
        """Load a bundled model or a pipeline folder.

        Raises:
            UsageError: There is no such pipeline or device.
            VidcmError: It is damaged.
        """
        pipe = VideoPipeline.from_pretrained(name, device=device)
        pipe.model("student")
        return cls(Path(name).resolve().name, pipe, limits)

    def generation(self, request: SamplingRequest) -> Generation:
        """How a request samples. Raises UsageError for numbers beyond the limits."""
        role = "teacher" if request.use_teacher else "student"
        steps, scale = request.num_inference_steps, request.guidance_scale
        with self._loading:  # of a teacher, at its first use
            generation = self.pipe.generation(role, steps, scale)
        if (steps := generation.num_inference_steps) > self.limits.max_steps:
            raise UsageError(
                f"num_inference_steps is {steps}; this server makes at most {self.limits.max_steps}"
            )
        return generation

    def check_shape(
        self, generation: Generation, num_frames: int, height: int, width: int, scale: int = 1
    ) -> None:
        """Raise UsageError for a clip beyond the limits, or one that the model cannot make."""
        size = {"num_frames": num_frames, "height": height, "width": width}
        largest = (self.limits.max_frames, self.limits.max_size, self.limits.max_size)
        for (name, value), most in zip(size.items(), largest, strict=True):
            if value > most:
                raise UsageError(f"{name} is {value}; this server makes at most {most}")
        generation.latent_shape(num_frames, height, width)
        check_memory(1, num_frames, height, width)
        check_form("clip.mp4", (num_frames, height, width), 8.0, scale)

    def max_batch(self, num_frames: int, height: int, width: int) -> int:
        """Clips that a call of the pipeline samples at once."""
        return max(BATCH_PIXELS // math.prod((num_frames, height, width)), 1)


def by_name(checkpoints: Sequence[Checkpoint]) -> dict[str, Checkpoint]:
    """Checkpoints by name. Raises UsageError for two of one name."""
    found: dict[str, Checkpoint] = {}
    for one in checkpoints:
        if one.name in found:
            raise UsageError(
                f"two checkpoints are called {one.name}; rename the folder of one of them"
            )
        found[one.name] = one
    return found


def find(checkpoints: dict[str, Checkpoint], name: str | None) -> Checkpoint:
    """The checkpoint of a request; the first without a name. Raises UsageError."""
    if name is None:
        return next(iter(checkpoints.values()))
    if name not in checkpoints:
        raise UsageError(f"there is no model {name!r}{suggest(name, list(checkpoints))}")
    return checkpoints[name]


def draw_seed() -> int:
    """A seed for a request without one; small enough for JSON in any language."""
    return secrets.randbelow(min(MAX_SEED, 2**31))
