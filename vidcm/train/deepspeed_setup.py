"""How DeepSpeed is imported, joined and configured.

Not public of DeepSpeed 0.19 are `__compatible_ops__`, and the hooks `pre_bwd_fn` and `post_bwd_fn`
of stage 3. It needs a client optimizer: a named one is compiled for minutes.
"""

import logging
import os
import sys
import threading
import time
import warnings
from collections.abc import Iterable
from datetime import timedelta
from importlib import import_module
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from vidcm.config import TrainConfig
from vidcm.errors import VidcmError
from vidcm.train.stop_signal import StopSignal

PERSISTENT = 100_000  # ZeRO-3: smaller parameters stay whole on every rank
GRACE = 20.0  # seconds that a stopped rank waits for the others to come
BUCKET = 500_000_000  # gradients that are reduced at once; fewer where a network has fewer


def import_deepspeed(device: torch.device) -> Any:
    """DeepSpeed, set up for a device."""
    # The choice is ours, and DeepSpeed would announce its own.
    os.environ["DS_ACCELERATOR"] = device.type
    deepspeed: Any = import_module("deepspeed")
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    # It calls collectives by names that torch is about to change.
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")
    if device.type == "cpu":
        # Else it compiles a shared-memory all-reduce for most of a minute; gloo does without.
        deepspeed.ops.__compatible_ops__ = {}
    return deepspeed


def meet(deepspeed: Any, timeout: float, stop: StopSignal | None = None) -> None:
    """Join the other ranks, once in a process; its collectives fail a minute after `timeout`.

    Args:
        deepspeed: The module.
        timeout: In seconds.
        stop: After a signal, the others have `GRACE` seconds to come, so that all stop together;
            then the process ends.

    Raises:
        VidcmError: The ranks do not find each other.
    """
    if dist.is_initialized() or stop is None:
        _join(deepspeed, timeout)
        return
    errors: list[Exception] = []

    def join() -> None:
        try:
            _join(deepspeed, timeout)
        except Exception as error:
            errors.append(error)

    # Waiting for others does not return to Python, where signals are heard.
    thread = threading.Thread(target=join, name="meeting", daemon=True)
    thread.start()
    until = None
    while thread.is_alive():
        thread.join(0.2)
        if stop.code and until is None:
            until = time.monotonic() + GRACE
        if until is not None and time.monotonic() > until:
            rank = os.environ.get("RANK")
            text = f"rank {rank} was stopped before it met the others; the same command begins it"
            print(text, file=sys.stderr, flush=True)
            os._exit(stop.code)  # the thread would be in the way
    if errors:
        raise errors[0]


def reduce_max(value: int, device: torch.device) -> int:
    """Return the largest of the ranks' values. Collective."""
    tensor = torch.tensor(value, device=device)
    dist.all_reduce(tensor, dist.ReduceOp.MAX)
    return int(tensor)


def _join(deepspeed: Any, timeout: float) -> None:
    try:
        deepspeed.init_distributed(verbose=False, timeout=timedelta(seconds=timeout + 60))
    except dist.DistError as error:
        address = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
        raise VidcmError(
            f"rank {os.environ.get('RANK')} did not meet all {os.environ.get('WORLD_SIZE')} ranks "
            f"at {address} ({type(error).__name__}: {' '.join(str(error).split())[:200]}); check "
            "that every host was started, and that it reaches this address"
        ) from None


def let_tangents_through(model: nn.Module) -> None:
    """Give ZeRO-3's hooks, identities that watch for the backward pass, a forward-mode rule."""
    for module in model.modules():
        for name in ("pre_bwd_fn", "post_bwd_fn"):
            watch = vars(module).get(name)
            if watch is not None:
                watch.jvp = staticmethod(lambda _, tangent: tangent.view_as(tangent))


def settings(
    config: TrainConfig, stage: int, micro: int, parameters: Iterable[nn.Parameter]
) -> dict:
    """DeepSpeed's own config, for networks with these parameters.

    Args:
        config: Of the run.
        stage: ZeRO stage.
        micro: Samples that a rank computes at once.
        parameters: Those that are trained.
    """
    bf16 = config.precision == "bf16"
    return {
        "train_micro_batch_size_per_gpu": micro,
        "gradient_accumulation_steps": config.gradient_accumulation_steps,
        "gradient_clipping": config.optimizer.max_grad_norm if stage else 0.0,
        "bf16": {"enabled": bf16},
        "data_types": {"grad_accum_dtype": "fp32"},
        "steps_per_print": None,
        "zero_optimization": {
            "stage": stage,
            "stage3_param_persistence_threshold": PERSISTENT,
            # Its buffer is as large, whatever the network.
            "reduce_bucket_size": min(BUCKET, max(sum(p.numel() for p in parameters), 1)),
            # Else F.linear is replaced for the whole process, by a form without forward-mode AD.
            "memory_efficient_linear": False,
        },
    }
