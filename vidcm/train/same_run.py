"""Whether a config goes on with the run that an output folder holds."""

import json
from pathlib import Path
from typing import Any

from vidcm.config import TrainConfig, to_dict
from vidcm.errors import UsageError

# Keys that may change between the parts of a run without making it another run.
_FREE = {
    *("output", "steps", "num_workers", "log_every", "sample_every", "save_every"),
    *("keep_checkpoints", "async_checkpoints", "preview_prompts", "rank_timeout"),
    *("max_skipped", "zero", "sequence_parallel", "gradient_accumulation_steps"),
    *("activation_checkpointing", "compile"),
}


def check_same_run(run: Path, config: TrainConfig, before: dict) -> None:
    """Raises UsageError where a key of the config makes it another run."""
    now: dict[str, Any] = json.loads(json.dumps(to_dict(config)))
    for key in (k for k in now if k not in _FREE and before.get(k) != now[k]):
        was, wanted = before.get(key), now[key]
        if isinstance(was, dict) and isinstance(wanted, dict):  # name the one that differs
            inner = min(k for k, _ in _items(was) ^ _items(wanted))
            key, was, wanted = f"{key}.{inner}", was.get(inner), wanted.get(inner)
        raise UsageError(
            f"{run} holds a run with {key}={was!r}, not {wanted!r}; "
            "choose another output, or restore the value to resume"
        )


def _items(group: dict) -> set[tuple[str, str]]:
    return {(k, repr(v)) for k, v in group.items()}
