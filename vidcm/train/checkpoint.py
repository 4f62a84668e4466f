"""Checkpoints that are whole or absent: written beside, hashed, renamed into place."""

import fcntl
import json
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vidcm.errors import UsageError, VidcmError
from vidcm.files import file_hash, replacing
from vidcm.store import FORMAT
from vidcm.version import __version__

_NAME = re.compile(r"step-(\d{8})")


@dataclass(frozen=True)
class Base:
    """What a run leaves as it is: `names` of tensors that lie in the model folder `folder`, whose
    hash is `sha256`."""

    folder: str
    sha256: str
    names: frozenset[str]

    def strip(self, state: dict) -> dict:
        """An engine's state for a checkpoint: without what the folder has."""
        return self._networks(state, lambda w: {k: v for k, v in w.items() if k not in self.names})

    def check(self, state: dict) -> None:
        """Raises UsageError when the folder is not what the run of a stripped state began with."""
        if state["base"] != self.sha256:
            raise UsageError(
                f"{self.folder} has sha256 {self.sha256[:12]}, but the run began with "
                f"{state['base'][:12]}; put that model back, or choose another output"
            )

    def fill(self, state: dict, weights: dict[str, Tensor]) -> dict:
        """The inverse of `strip`. weights: those of the model, of which the frozen are taken."""
        return self._networks(state, lambda w: {k: weights[k] for k in self.names} | w)

    def _networks(self, state: dict, change: Callable[[dict], dict]) -> dict:
        changed = {**state, "base": self.sha256, "model": change(state["model"])}
        if held := state.get("held"):  # a copy of the student
            changed["held"] = {**held, "network": change(held["network"])}
        return changed


@contextmanager
def claimed(run: Path) -> Iterator[None]:
    """A run's folder is made, and this process's alone within the block, which ends with the process
    whatever ends it. Raises UsageError when another process has it."""
    run.mkdir(parents=True, exist_ok=True)
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
    """Where the checkpoint of a step lies in a run."""
    return run / "checkpoints" / f"step-{step:08d}"


def save(run: Path, step: int, state: dict[str, Any], config: dict, *, keep: int) -> Path:
    """Write `state` (tensors and plain data) for `step`, then drop all but the newest `keep`."""
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
    """The newest checkpoint of a run whose files are all there and unaltered."""
    found = run / "checkpoints"
    if not found.is_dir():
        return None
    for folder in sorted(found.iterdir(), reverse=True):
        if _complete(folder) and _intact(folder):
            return folder
    return None


def load(folder: Path) -> tuple[dict[str, Any], dict]:
    """State and manifest of a checkpoint. Raises VidcmError when damaged."""
    if not _complete(folder):
        raise UsageError(f"{folder} is not a checkpoint (no state.pt with a manifest.json)")
    if not _intact(folder):
        raise VidcmError(f"{folder} is truncated or altered; take the checkpoint before it")
    manifest = json.loads((folder / "manifest.json").read_text("utf-8"))
    try:
        state = torch.load(folder / "state.pt", map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a file that we did not write may raise
        raise VidcmError(
            f"{folder / 'state.pt'} holds no state of a run ({type(error).__name__}); delete {folder} "
            "to go on from the checkpoint before it"
        ) from None
    return state, manifest


def _complete(folder: Path) -> bool:
    return bool(_NAME.fullmatch(folder.name)) and (folder / "manifest.json").is_file()


def _intact(folder: Path) -> bool:
    try:
        hashes = json.loads((folder / "manifest.json").read_text("utf-8"))["sha256"]
        return all(file_hash(folder / name) == digest for name, digest in hashes.items())
    except (OSError, ValueError, KeyError):
        return False
