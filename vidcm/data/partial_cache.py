"""The folder that a latent cache grows in: its plan, and the locks of those who work there."""

import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vidcm.errors import UsageError, VidcmError
from vidcm.files import write_text

PLAN = "plan.json"


def made(output: Path, plan: Mapping[str, Any], world: int) -> bool:
    """Whether other ranks have made the cache already, of shards of an earlier run."""
    try:
        return world > 1 and json.loads((output / PLAN).read_text("utf-8")) == plan
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return False


@contextmanager
def owned(partial: Path, rank: int) -> Iterator[None]:
    """Hold the lock of a rank, so that two runs do not do the same work."""
    partial.mkdir(parents=True, exist_ok=True)
    lock = os.open(partial / f"rank-{rank}.lock", os.O_CREAT | os.O_RDWR)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UsageError(
                f"another process encodes into {partial} as rank {rank}; wait for it, or give each "
                "process a --rank of its own"
            ) from None
        yield
    finally:
        os.close(lock)


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
    changed = [k for k in {**before, **plan} if before.get(k) != plan.get(k)]
    if changed:
        raise UsageError(
            f"{partial} was begun with another {', '.join(changed)}; go on with the same command, "
            "give another --output, or delete the folder"
        )
