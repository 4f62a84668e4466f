"""The folder that a latent cache grows in: its plan, and the locks of those who work there."""

import fcntl
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from vidcm.errors import UsageError, VidcmError
from vidcm.files import remove_workspaces, write_text

PLAN = "plan.json"
REPLACED = "replaced"  # an earlier cache, until the new one is in its place


def is_complete(output: Path, plan: Mapping[str, Any], world: int) -> bool:
    """Whether other ranks have made the cache already, of shards of an earlier run."""
    try:
        return world > 1 and json.loads((output / PLAN).read_text("utf-8")) == plan
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return False


@contextmanager
def owned(partial: Path, rank: int) -> Iterator[None]:
    """Hold the lock of a rank, so that two runs do not do the same work.

    What killed processes left behind is removed first.
    """
    lock = _opened(partial, f"rank-{rank}.lock")
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UsageError(
                f"another process encodes into {partial} as rank {rank}; wait for it, or give each "
                "process a --rank of its own"
            ) from None
        remove_workspaces(partial)
        yield
    finally:
        os.close(lock)


def _opened(partial: Path, name: str) -> int:
    """A file of the folder, both made if they are missing."""
    while True:
        partial.mkdir(parents=True, exist_ok=True)
        with suppress(FileNotFoundError):  # another rank has just made it the cache
            return os.open(partial / name, os.O_CREAT | os.O_RDWR)


def put_in_place(partial: Path, output: Path) -> None:
    """Make the folder the cache, by the process that has locked its plan.

    An earlier cache is removed once the new one is in its place. A killed process leaves both
    whole: the next run goes on by `restore` or `tidy`.

    Raises:
        VidcmError: The file system refuses; the earlier cache is in its place again.
    """
    try:
        if output.exists():
            os.replace(output, partial / REPLACED)
        os.replace(partial, output)
    except OSError as error:
        if (partial / REPLACED).exists():
            os.replace(partial / REPLACED, output)
        raise VidcmError(f"cannot write {output}: {error.strerror}; it is in {partial}") from None
    tidy(output)


def restore(partial: Path, output: Path) -> None:
    """Put back an earlier cache that a killed process was about to replace."""
    with suppress(FileNotFoundError):
        lock = os.open(partial / PLAN, os.O_RDONLY)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not output.exists():
                os.replace(partial / REPLACED, output)
        finally:
            os.close(lock)


def tidy(output: Path) -> None:
    """Remove from a cache what it was made with, and what killed processes left in it."""
    for lock in output.glob("rank-*.lock"):
        with suppress(OSError):  # not ours to remove
            lock.unlink()
    shutil.rmtree(output / REPLACED, ignore_errors=True)
    remove_workspaces(output)


def begin(partial: Path, plan: Mapping[str, Any]) -> None:
    """Write the plan, or compare it with that of an earlier run."""
    file = partial / PLAN
    try:
        before = json.loads(file.read_text("utf-8"))
    except FileNotFoundError:
        write_text(file, json.dumps(plan))
        return
    except ValueError:
        raise VidcmError(f"{file} is damaged; delete {partial} and encode again") from None
    if (old := before.get("decoder")) and old != plan.get("decoder"):
        new = plan.get("decoder") or {"av": "none"}
        pairs = [(name, old.get(name), version) for name, version in new.items()]
        others = "; ".join(f"{name} {a}, not {b}" for name, a, b in pairs if a != b)
        raise UsageError(
            f"{partial} was begun with another decoder ({others}); go on with that one "
            f"(pip install av=={old['av']}), give another --output, or delete the folder"
        )
    changed = [k for k in {**before, **plan} if before.get(k) != plan.get(k)]
    if changed:
        raise UsageError(
            f"{partial} was begun with another {', '.join(changed)}; go on with the same command, "
            "give another --output, or delete the folder"
        )
