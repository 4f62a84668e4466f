"""What of results, and of uploads, is sent: clips as mp4, gif, pictures and archives."""

import io
import zipfile
from dataclasses import dataclass
from typing import Literal

import numpy as np

from vidcm.errors import UsageError
from vidcm.media.encoders import enlarge, page
from vidcm.media.fit import fit
from vidcm.media.png import encode_png
from vidcm.media.write import write_clip
from vidcm.serve.jobs import Job, NotReady, Result
from vidcm.serve.uploads import Workspace

Variant = Literal["video", "gif", "thumbnail", "spritesheet", "frames"]
MEDIA_TYPES: dict[str, str] = {
    "video": "video/mp4",
    "gif": "image/gif",
    "thumbnail": "image/png",
    "spritesheet": "image/png",
    "frames": "application/zip",
}
GIF_FPS = 50  # the most that a gif holds
LOOK_PIXELS = 384


@dataclass(frozen=True)
class Look:
    """What is shown of an upload, at most `LOOK_PIXELS` a side.

    Attributes:
        picture: Its first frame as png.
        clip: All of it as mp4; None for a picture.
        size: Width and height of the file itself.
    """

    picture: bytes
    clip: bytes | None
    size: tuple[int, int]


@dataclass(frozen=True)
class ResultFiles:
    """Makes files of clips.

    Attributes:
        workspace: Where encoders write.
    """

    workspace: Workspace

    def videos(self, result: Result, scale: int) -> list[bytes]:
        """The mp4 of each clip, its pixels enlarged so many times."""
        return [self._encoded(clip, ".mp4", result.fps, scale) for clip in result.frames]

    def content(self, job: Job, variant: Variant, index: int) -> bytes:
        """A file of a finished job, as `JobService.content` gives it."""
        result = job.result
        if result is None:
            detail = f": {job.error[1]}" if job.error else ""
            raise NotReady(f"{job.id} is {job.status}{detail}")
        if index >= len(result.frames):
            raise UsageError(f"index is {index}; {job.id} has {len(result.frames)} clip(s)")
        frames, scale = result.frames[index], job.work.scale
        if variant == "video":
            return result.files[index]
        if variant == "gif":
            return self._encoded(frames, ".gif", min(result.fps, GIF_FPS), scale)
        if variant == "frames":
            return _zipped(frames, scale)
        picture = frames[0] if variant == "thumbnail" else page(frames, len(frames))
        return encode_png(enlarge(picture, scale))

    def look(self, frames: np.ndarray, fps: float) -> Look:
        """A picture and a clip of frames `(t h w c)`, for the eye."""
        height, width = frames.shape[1:3]
        small = max(height, width) / LOOK_PIXELS
        if small > 1:
            frames = fit(frames, (max(round(height / small), 1), max(round(width / small), 1)))
        clip = self._encoded(frames, ".mp4", fps, 1) if len(frames) > 1 else None
        return Look(encode_png(frames[0]), clip, (width, height))

    def _encoded(self, frames: np.ndarray, suffix: str, fps: float, scale: int) -> bytes:
        path = self.workspace.free_path(suffix)
        try:
            write_clip(frames, path, fps=fps, scale=scale)
            return path.read_bytes()
        finally:
            path.unlink(missing_ok=True)


def _zipped(frames: np.ndarray, scale: int) -> bytes:
    """Frames `(t h w c)` as a zip of png files."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for index, frame in enumerate(frames):
            archive.writestr(f"frame_{index:04d}.png", encode_png(enlarge(frame, scale)))
    return file.getvalue()
