"""Uploaded files: kept under names of ours in a folder of ours, decoded in a killable process."""

import secrets
import shutil
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from vidcm.errors import UsageError
from vidcm.media.worker import ReaderProcess
from vidcm.serve.limits import ServeLimits

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
        self._folder = tempfile.TemporaryDirectory(prefix="vidcm-serve-")
        self.reader = ReaderProcess(deadline=limits.read_seconds, max_pixels=limits.max_pixels)

    def free_path(self, suffix: str) -> Path:
        """A name that no file has."""
        return Path(self._folder.name, secrets.token_hex(16) + suffix)

    def receive(self, chunks: Iterable[bytes], label: str) -> Upload:
        """Keep a file.

        Args:
            chunks: Its contents; the first has 16 bytes or is all of it.
            label: Name of the field that it came in.

        Raises:
            UsageError: It is empty or too large.
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
        except BaseException:
            upload.close()
            raise
        return upload

    def close(self) -> None:
        """Remove the folder with all that is in it, and end the process."""
        self.reader.close()
        self._folder.cleanup()


def _suffix(head: bytes) -> str:
    """The extension of a file by its first bytes."""
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return ".webp"
    if head[4:12] in (b"ftypavif", b"ftypavis"):
        return ".avif"
    return next((end for start, end in PICTURES.items() if head.startswith(start)), ".video")
