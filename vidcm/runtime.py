"""Devices."""

import torch

from vidcm.errors import UsageError


def pick_device(name: str) -> torch.device:
    """`auto`, `cpu`, `cuda`, `cuda:1` to a device. Raises UsageError when it is not there."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UsageError(f"unknown device {name!r}; use auto, cpu or cuda") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UsageError("this machine has no CUDA GPU; use --device cpu")
    if device.type not in ("cpu", "cuda"):
        raise UsageError(f"the device {name!r} is not supported; use auto, cpu or cuda")
    return device


def fast_cpu() -> None:
    """Flush denormals, which slow fp32 on CPUs."""
    torch.set_flush_denormal(True)
