"""Checkpoints: complete or absent, and hashed."""

import fcntl
import json
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from vidcm.errors import UsageError, VidcmError
from vidcm.files import file_hash, replacing
from vidcm.store import FORMAT
from vidcm.version import __version__

_NAME = re.compile(r"step-(\d{8})")


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
    with (run / ".lock").open("w") as file:
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


def save(run: Path, step: int, state: dict[str, Any], config: dict, *, keep: int) -> Path:
    """Write `state` (tensors and plain data) for `step`, then remove all but the newest `keep`."""
    folder = folder_of(run, step)
    with replacing(folder) as part:
        part.mkdir()
        try:
            torch.save(state, part / "state.pt")
        except RuntimeError:  # torch's writer does not say what the system said
            raise VidcmError(
                f"cannot write {folder}: the disk is full, or files may not be as large as this"
            ) from None
        manifest = {
            "format": FORMAT,
            "vidcm": __version__,
            "step": step,
            "config": config,
            "sha256": {"state.pt": file_hash(part / "state.pt")},
        }
        (part / "manifest.json").write_text(json.dumps(manifest, indent=1), "utf-8")
    complete = sorted(p for p in folder.parent.iterdir() if _complete(p))
    for old in complete[:-keep]:
        shutil.rmtree(old)
    return folder


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
        hashes = json.loads((folder / "manifest.json").read_text("utf-8"))["sha256"]
        return all(file_hash(folder / name) == digest for name, digest in hashes.items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return False
