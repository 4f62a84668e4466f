"""The learning rate as a pure function of the step, so that resuming needs no state."""

import math

from vidcm.config import OptimizerConfig


def learning_rate(config: OptimizerConfig, step: int, steps: int) -> float:
    """Return the rate of a step: linear warm-up, then a cosine to `final_lr_ratio * lr`."""
    warm = min(1.0, (step + 1) / max(config.warmup_steps, 1))
    along = min(1.0, max(0.0, (step - config.warmup_steps) / max(steps - config.warmup_steps, 1)))
    cosine = config.final_lr_ratio + (1 - config.final_lr_ratio) * 0.5 * (
        1 + math.cos(math.pi * along)
    )
    return config.lr * warm * cosine
