"""Atomic writes: a file or folder appears complete or not at all."""

import fcntl
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from vidcm.errors import VidcmError

HUB = "hf://"
PREFIX = ".vidcm-"  # of the names of workspaces
OLD = ".old"  # name of the replaced content inside the workspace


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Replace a file or folder atomically.

    The block writes to the yielded path, which does not exist yet, has the name of the target and
    lies on its file system. Links are followed and missing parents created. If the block or a
    rename fails, or the process is interrupted, the old content is restored and nothing else is
    left. A killed process may leave its workspace behind; the next write of the same target
    restores the old content from it and removes it.

    Args:
        path: file or folder to write.

    Yields:
        Path to write to.

    Raises:
        VidcmError: the file system refuses.
    """
    target = Path(os.path.realpath(path))
    missing = [folder for folder in target.parents if not folder.exists()]
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with _workspace(target) as workspace:
            yield workspace / target.name
            if target.is_dir():  # a folder cannot be renamed over
                os.replace(target, workspace / OLD)
            os.replace(workspace / target.name, target)
    except BaseException as error:
        for folder in missing:
            with suppress(OSError):
                folder.rmdir()
        if isinstance(error, OSError):
            raise VidcmError(f"cannot write {target}: {error.strerror or error}") from error
        raise


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write UTF-8 text atomically. Raises VidcmError as `replacing` does."""
    with replacing(path) as part:
        part.write_bytes(text.encode("utf-8"))


def on_hub(name: str | Path) -> bool:
    """Whether a name is of the Hugging Face hub, as "hf://owner/name"."""
    return str(name).startswith(HUB)


def file_hash(path: Path) -> str:
    """sha256 of a file, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def _workspace(target: Path) -> Iterator[Path]:
    """A locked folder beside `target`, removed afterwards unless it holds the only old content."""
    # Hashed, since the name of the target may already be as long as the file system allows.
    prefix = f"{PREFIX}{hashlib.sha256(os.fsencode(target.name)).hexdigest()[:12]}-"
    _recover(target, prefix)
    workspace, lock = _locked_folder(target.parent)
    try:
        # Now that it is locked, it gets the name that `_recover` looks for.
        workspace = workspace.rename(target.parent / (prefix + workspace.name[-8:]))
        yield workspace
    finally:
        try:
            _clean(workspace, target)
        finally:
            os.close(lock)


def _locked_folder(parent: Path) -> tuple[Path, int]:
    """A new folder and its lock; anew if it was taken for one left behind before it was locked."""
    while True:
        folder = Path(tempfile.mkdtemp(dir=parent, prefix=f"{PREFIX}new-"))
        with suppress(FileNotFoundError):
            lock = os.open(folder, os.O_RDONLY)
            with suppress(OSError):  # file systems without locks
                fcntl.flock(lock, fcntl.LOCK_EX)
            if folder.is_dir():
                return folder, lock
            os.close(lock)


def remove_workspaces(folder: Path) -> None:
    """Remove what killed processes left in a folder, but for the only old content of a target.

    Those of living processes are locked and stay.
    """
    for workspace in folder.glob(f"{PREFIX}*"):
        with suppress(FileNotFoundError, NotADirectoryError):
            lock = os.open(workspace, os.O_RDONLY | os.O_DIRECTORY)
            try:
                if lock_folder(lock) and not (workspace / OLD).exists():
                    shutil.rmtree(workspace, ignore_errors=True)
            finally:
                os.close(lock)


def _recover(target: Path, prefix: str) -> None:
    """Clean up the workspaces of killed processes."""
    for workspace in target.parent.glob(f"{prefix}*"):
        with suppress(FileNotFoundError):  # another process was faster
            lock = os.open(workspace, os.O_RDONLY)
            try:
                if lock_folder(lock):
                    _clean(workspace, target)
            finally:
                os.close(lock)


def _clean(workspace: Path, target: Path) -> None:
    """Restore the old content if its replacement is not in place, then remove the workspace."""
    old = workspace / OLD
    if old.exists() and not target.exists():
        try:
            os.replace(old, target)
        except OSError as error:
            text = f"{error.strerror}; its old content is kept in {old}"
            raise OSError(error.errno, text) from error
    shutil.rmtree(workspace, ignore_errors=True)


def lock_folder(descriptor: int) -> bool:
    """Lock an open folder until it is closed; False if it is locked or cannot be."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
