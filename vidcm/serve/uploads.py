"""Uploaded files: kept under names of ours in a folder of ours, decoded in a killable process."""

import os
import secrets
import shutil
import stat
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from vidcm.errors import UsageError
from vidcm.files import lock_folder
from vidcm.media.load import SourceClip
from vidcm.media.media_file import BadClip
from vidcm.media.worker import ReaderProcess
from vidcm.serve.limits import ServeLimits

PREFIX = "vidcm-serve-"
FRESH_SECONDS = 60.0  # in which a folder that was just made gets its lock
# First bytes of pictures, and the extension that our readers know them by; all else is a video.
PICTURES = {
    b"\x89PNG\r\n\x1a\n": ".png",
    b"\xff\xd8\xff": ".jpg",
    b"BM": ".bmp",
    b"II*\0": ".tif",
    b"MM\0*": ".tif",
    b"qoif": ".qoi",
}


@dataclass(frozen=True)
class Upload:
    """A file of a request. The job that it belongs to removes it.

    Attributes:
        path: Where it lies.
        label: Name of the field it came in, for messages.
    """

    path: Path
    label: str

    @property
    def is_picture(self) -> bool:
        """Whether its contents begin as a picture's."""
        return self.path.suffix != ".video"

    def close(self) -> None:
        """Remove the file, or folder of frames."""
        if self.path.is_dir():
            shutil.rmtree(self.path)
        else:
            self.path.unlink(missing_ok=True)


class Workspace:
    """A private temporary folder, and the process that decodes what lies in it.

    Args:
        limits: Of a file's bytes and pixels, and of the time to decode it.
    """

    def __init__(self, limits: ServeLimits):
        self.limits = limits
        remove_left_over()
        self._folder = tempfile.TemporaryDirectory(prefix=PREFIX)
        descriptor = os.open(self._folder.name, os.O_RDONLY)
        self._resources = ExitStack()
        self._resources.callback(os.close, descriptor)
        lock_folder(descriptor)
        self.reader = ReaderProcess(deadline=limits.read_seconds, max_pixels=limits.max_pixels)
        self._viewer = ReaderProcess(deadline=limits.read_seconds, max_pixels=limits.max_pixels)
        self._viewing = threading.Lock()

    def free_path(self, suffix: str) -> Path:
        """A name that no file has."""
        return Path(self._folder.name, secrets.token_hex(16) + suffix)

    def free_folder(self) -> Path:
        """A new folder, which goes with all others."""
        folder = self.free_path(".folder")
        folder.mkdir(0o700)
        return folder

    def view(self, upload: Upload, fps: float) -> SourceClip:
        """The first frames of a file, in another process than the jobs' own.

        Raises:
            UsageError: It cannot be read, in a line without paths.
        """
        with self._viewing, _public(upload):
            return self._viewer.load_clip(upload.path, fps, self.limits.max_frames)

    def receive(self, chunks: Iterable[bytes], label: str) -> Upload:
        """Keep a file, once its header is checked.

        Args:
            chunks: Its contents; the first has 16 bytes or is all of it.
            label: Name of the field that it came in.

        Raises:
            UsageError: It is empty, no picture or video, or too large in bytes or pixels.
        """
        rest = iter(chunks)
        head = next(rest, b"")
        if not head:
            raise UsageError(f"{label} is an empty file")
        upload = Upload(self.free_path(_suffix(head)), label)
        size = len(head)
        try:
            with upload.path.open("xb") as file:
                file.write(head)
                for chunk in rest:
                    size += len(chunk)
                    if size > self.limits.max_upload:
                        most = self.limits.max_upload
                        raise UsageError(f"{label} is larger than {most} bytes")
                    file.write(chunk)
            with self._viewing, _public(upload):
                self._viewer.check_frame_size(upload.path)
        except BaseException:
            upload.close()
            raise
        return upload

    def close(self) -> None:
        """Remove the folder with all that is in it, and end the processes."""
        self.reader.close()
        self._viewer.close()
        self._folder.cleanup()
        self._resources.close()


@contextmanager
def _public(upload: Upload) -> Iterator[None]:
    """What is wrong with a file, as a UsageError without paths."""
    try:
        yield
    except BadClip as error:
        raise UsageError(f"{upload.label}: {error.reason}: {error.detail}") from None
    except UsageError as error:
        raise UsageError(str(error).replace(str(upload.path), upload.label)) from None


def remove_left_over() -> None:
    """Remove folders of this user's servers that were killed: nobody holds their locks."""
    for folder in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        with suppress(OSError):  # of another user, or just removed by another server
            status = folder.lstat()
            old = time.time() - status.st_mtime > FRESH_SECONDS
            if stat.S_ISDIR(status.st_mode) and status.st_uid == os.getuid() and old:
                _remove_unlocked(folder)


def _remove_unlocked(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_NOFOLLOW)
    try:
        if lock_folder(descriptor):
            shutil.rmtree(folder)
    finally:
        os.close(descriptor)


def _suffix(head: bytes) -> str:
    """The extension of a file by its first bytes."""
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return ".webp"
    if head[4:12] in (b"ftypavif", b"ftypavis"):
        return ".avif"
    return next((end for start, end in PICTURES.items() if head.startswith(start)), ".video")
