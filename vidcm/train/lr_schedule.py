"""The learning rate as a pure function of the step, so that resuming needs no state."""

import math

from vidcm.config import OptimizerConfig


def learning_rate(config: OptimizerConfig, step: int, steps: int) -> float:
    """Linear warm-up over `warmup` steps, then a cosine from `lr` to `final * lr` at `steps`."""
    warm = min(1.0, (step + 1) / max(config.warmup, 1))
    along = min(1.0, max(0.0, (step - config.warmup) / max(steps - config.warmup, 1)))
    cosine = config.final + (1 - config.final) * 0.5 * (1 + math.cos(math.pi * along))
    return config.lr * warm * cosine
