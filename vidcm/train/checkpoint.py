"""Checkpoints: complete or absent, and hashed.

Files reach the disk before the folder gets its name, so that this holds after a power cut too.
"""

import errno
import fcntl
import hashlib
import json
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import torch

from vidcm.errors import UsageError, VidcmError
from vidcm.files import PREFIX, file_hash, replacing
from vidcm.store import FORMAT
from vidcm.version import __version__

_NAME = re.compile(r"step-(\d{8})")
_NO_FSYNC = {errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP}  # of folders, on some network disks


@contextmanager
def claimed(run: Path) -> Iterator[None]:
    """Create a run's folder and lock it for the block; the lock ends with the process.

    Raises:
        UsageError: Another process has it, or a file is in its way.
        VidcmError: The file system refuses.
    """
    try:
        run.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise UsageError(f"output {run}: a file is in the way; choose another output") from None
    except OSError as error:
        raise VidcmError(
            f"cannot make the folder {run} of output: {error.strerror}; choose another output"
        ) from None
    try:
        file = (run / ".lock").open("w")
    except OSError as error:
        raise VidcmError(
            f"cannot write to output {run}: {error.strerror}; choose another output"
        ) from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UsageError(
                f"another process is writing to {run}; wait for it, or choose another output"
            ) from None
        except OSError:
            pass  # a file system without locks
        yield


def folder_of(run: Path, step: int) -> Path:
    """Return the folder of a step's checkpoint in a run."""
    return run / "checkpoints" / f"step-{step:08d}"


def save(
    run: Path,
    step: int,
    state: dict[str, Any],
    config: dict,
    *,
    keep: int,
    given_up: Callable[[], bool] = lambda: False,
) -> Path:
    """Write a checkpoint, then remove all but the newest `keep`.

    Args:
        run: Folder of the run.
        step: Number of steps that are done.
        state: Tensors and plain data.
        config: Of the run, as plain data.
        keep: Number of checkpoints that stay.
        given_up: Whether to stop writing; it is asked every few megabytes.

    Returns:
        The folder of the checkpoint.

    Raises:
        VidcmError: The file system refuses, or the writing was given up. What was there before is
            there still.
    """
    folder = folder_of(run, step)
    with replacing(folder) as part, _explained(folder):
        part.mkdir()
        manifest = {
            "format": FORMAT,
            "vidcm": __version__,
            "step": step,
            "config": config,
            "sha256": {"state.pt": _write_state(state, part / "state.pt", given_up)},
        }
        (part / "manifest.json").write_text(json.dumps(manifest, indent=1), "utf-8")
        for path in (part / "state.pt", part / "manifest.json", part):
            _to_disk(path)
    with _explained(folder):
        _to_disk(folder.parent)
    _remove_old(folder, keep)
    return folder


def _write_state(state: dict[str, Any], path: Path, given_up: Callable[[], bool]) -> str:
    """Write the file of a state; returns its sha256."""
    with path.open("wb") as file:
        hashed = HashedFile(file, given_up)
        torch.save(state, hashed)  # type: ignore[arg-type]  # of a file it needs these two
        if hashed.error:
            raise hashed.error
    return hashed.sha256.hexdigest()


class HashedFile:
    """A file that `torch.save` writes to, and its hash, so that it need not be read again.

    torch's writer ends the process where a write raises. So an error is kept, and nothing more is
    written. Other threads run while a slice is written or hashed.

    Args:
        file: To write to.
        given_up: Whether to stop.
    """

    SLICE = 2**24  # bytes

    def __init__(self, file: BinaryIO, given_up: Callable[[], bool]):
        self.file, self.given_up = file, given_up
        self.sha256 = hashlib.sha256()
        self.error: OSError | None = None

    def write(self, data: bytes | memoryview) -> int:
        view = memoryview(data).cast("B")
        for start in range(0, len(view), self.SLICE):
            self._write(view[start : start + self.SLICE])
        return len(view)

    def flush(self) -> None:
        """Do nothing: the file is flushed when it is closed."""

    def _write(self, part: memoryview) -> None:
        if self.error:
            return
        try:
            if self.given_up():
                raise OSError(errno.ECANCELED, "given up")
            self.file.write(part)
            self.sha256.update(part)
        except OSError as error:
            self.error = error


@contextmanager
def _explained(folder: Path) -> Iterator[None]:
    """What the file system refuses, as a sentence on a checkpoint."""
    try:
        yield
    except OSError as error:
        raise VidcmError(
            f"cannot write {folder}: {error.strerror}; when that is mended, the same command "
            "resumes from the newest checkpoint"
        ) from None


def _to_disk(path: Path) -> None:
    """Wait until a file or folder is on the disk, where its file system can tell."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _NO_FSYNC:
            raise
    finally:
        os.close(descriptor)


def _remove_old(newest: Path, keep: int) -> None:
    """Keep `newest` and the `keep` - 1 before it. Later ones, which a resume passed over, stay.

    What a killed process left half-written goes too; its step may never be saved again.
    """
    found = sorted(p for p in newest.parent.iterdir() if p.name <= newest.name)
    steps = [p for p in found if _NAME.fullmatch(p.name)]
    kept = [p for p in steps if _complete(p)][-keep:]
    for old in [p for p in found if p.name.startswith(PREFIX) or p in steps and p not in kept]:
        try:
            shutil.rmtree(old)
        except OSError as error:
            print(f"warning: cannot delete {old}: {error.strerror}", file=sys.stderr)


def newest(run: Path) -> Path | None:
    """Return the newest checkpoint of a run whose files are complete and unaltered, by hash."""
    checkpoints = run / "checkpoints"
    if not checkpoints.is_dir():
        return None
    for folder in sorted(checkpoints.iterdir(), reverse=True):
        if _complete(folder) and _intact(folder):
            return folder
    return None


def read(folder: Path) -> tuple[dict[str, Any], dict]:
    """Return state and manifest of a checkpoint that `newest` found; it is not hashed again.

    The tensors are mapped from the file, so that ranks of one machine share its memory.

    Raises:
        VidcmError: The file has no state of a run.
    """
    manifest = json.loads((folder / "manifest.json").read_text("utf-8"))
    try:
        state = torch.load(folder / "state.pt", map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # whatever a file that we did not write may raise
        raise VidcmError(
            f"{folder / 'state.pt'} holds no state of a run ({type(error).__name__}); delete "
            f"{folder} to resume from the checkpoint before it"
        ) from None
    return state, manifest


def _complete(folder: Path) -> bool:
    return bool(_NAME.fullmatch(folder.name)) and (folder / "manifest.json").is_file()


def _intact(folder: Path) -> bool:
    try:
        manifest = json.loads((folder / "manifest.json").read_text("utf-8"))
        if folder_of(Path(), manifest["step"]).name != folder.name:
            return False
        if not isinstance(manifest["config"], dict):
            return False
        return file_hash(folder / "state.pt") == manifest["sha256"]["state.pt"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return False
