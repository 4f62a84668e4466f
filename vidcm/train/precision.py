"""Which precision a run computes in."""

import re
import sys
from pathlib import Path

import torch

CPU_FLAGS = {"avx512_bf16", "amx_bf16"}


def resolve(precision: str, device: torch.device) -> str:
    """Return fp32 or bf16 for a config's `precision`, which may be auto.

    A CPU without bf16 instructions computes bf16 as asked for, and warns that it is slower.
    """
    fast = has_bf16(device)
    if precision == "bf16" and not fast:
        print(
            f"warning: this {device.type} has no bf16 instructions: precision=bf16 is slower than "
            "fp32 here",
            file=sys.stderr,
        )
    return ("bf16" if fast else "fp32") if precision == "auto" else precision


def has_bf16(device: torch.device, cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Whether a device has instructions for bf16: CUDA GPUs since Ampere, CPUs by their flags."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported()
    try:
        flags = re.search(r"^flags\s*:(.*)$", cpuinfo.read_text("utf-8"), re.MULTILINE)
    except OSError:
        return False
    return bool(flags and CPU_FLAGS & set(flags[1].split()))
