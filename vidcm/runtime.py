"""Devices and precisions."""

import torch

from vidcm.errors import UsageError


def pick_device(name: str | torch.device) -> torch.device:
    """`auto`, `cpu`, `cuda`, `cuda:1` to a device. Raises UsageError when it is not there."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except (RuntimeError, TypeError):
        raise UsageError(f"unknown device {name!r}; use auto, cpu or cuda") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UsageError("this machine has no CUDA GPU; use --device cpu")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UsageError(
            f"this machine has no device {name}; it has cuda:0 to "
            f"cuda:{torch.cuda.device_count() - 1}"
        )
    if device.type not in ("cpu", "cuda"):
        raise UsageError(f"the device {name!r} is not supported; use auto, cpu or cuda")
    return device


def pick_dtype(name: str | torch.dtype, device: torch.device) -> torch.dtype:
    """Precision of inference: `auto` is bfloat16 on a GPU and float32 on a CPU.

    Raises:
        UsageError: Another than float32 and bfloat16, or a GPU that computes no bfloat16.
    """
    known = {"float32": torch.float32, "bfloat16": torch.bfloat16}
    half = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    if name == "auto":
        return torch.bfloat16 if half else torch.float32
    dtype = known.get(name) if isinstance(name, str) else name
    if dtype not in known.values():
        raise UsageError(
            f"torch_dtype is {name!r}; use 'auto', torch.float32 or torch.bfloat16 (float16 "
            "overflows in these networks)"
        )
    assert dtype is not None
    if dtype == torch.bfloat16 and device.type == "cuda" and not half:
        raise UsageError("this GPU does not compute in bfloat16; use torch_dtype=torch.float32")
    return dtype


def fast_cpu() -> None:
    """Flush denormals, which slow fp32 on CPUs."""
    torch.set_flush_denormal(True)
