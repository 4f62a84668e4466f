"""Times at which the schedulers of public pipelines evaluate their networks."""

import math
from typing import Any

from vidcm.errors import UsageError


def resolution_shift(scheduler: dict[str, Any]) -> float:
    """The resolution shift that a pipeline samples with, 1 for none.

    Args:
        scheduler: Its `scheduler_config.json`. One that depends on the size of clips has the shift
            of its largest.

    Raises:
        UsageError: The number is of no use.
    """
    if scheduler.get("use_dynamic_shifting"):
        shift = math.exp(float(scheduler.get("max_shift", 1.15)))
    else:
        shift = float(scheduler.get("flow_shift") or scheduler.get("shift") or 1.0)
    if not 0 < shift < math.inf:
        raise UsageError(f"the pipeline's scheduler has the shift {shift:g}; use one above 0")
    return shift
