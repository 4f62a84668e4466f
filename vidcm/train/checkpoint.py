"""Checkpoints: complete or absent, and hashed.

Files reach the disk before the folder gets its name, so that this holds after a power cut too.
"""

import fcntl
import json
import os
import re
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from vidcm.errors import UsageError, VidcmError
from vidcm.files import PREFIX, file_hash, replacing
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
        for path in (part / "state.pt", part / "manifest.json", part):
            _to_disk(path)
    _to_disk(folder.parent)
    _remove_old(folder, keep)
    return folder


def _to_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
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
