"""What one request, and all of them together, may ask of a server. Needs no torch."""

from dataclasses import dataclass

MAX_BATCH = 8  # requests of one kind that are made in one forward


@dataclass(frozen=True)
class ServeLimits:
    """Bounds of a server.

    Attributes:
        max_queue: Jobs that may wait.
        max_frames: Frames that a job makes.
        max_size: Pixels of height or width.
        max_steps: Sampling steps.
        max_upload: Bytes of a request, its files among them.
        max_pixels: Pixels of all frames of an uploaded file together.
        read_seconds: Seconds in which an uploaded file must be decoded.
        max_batch: Requests of one kind that are made in one forward.
        max_results: Finished jobs that are kept.
        max_result_bytes: Bytes of finished jobs that are kept.
        result_seconds: How long a finished job is kept.
    """

    max_queue: int = 32
    max_frames: int = 129
    max_size: int = 256
    max_steps: int = 100
    max_upload: int = 20 * 2**20
    max_pixels: int = 2**27
    read_seconds: float = 20.0
    max_batch: int = MAX_BATCH
    max_results: int = 64
    max_result_bytes: int = 256 * 2**20
    result_seconds: float = 3600.0
