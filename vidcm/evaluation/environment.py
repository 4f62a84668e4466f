"""What a number was measured on, recorded with it."""

import os
import platform
import subprocess
from pathlib import Path

import torch


def environment(device: torch.device | str = "cpu") -> dict:
    """Processor, threads, device, versions, and the commit of the code.

    The commit is None outside a clone; `dirty` is True when code beside the bundled weights differs
    from it.
    """
    device = torch.device(device)
    commit = _git("rev-parse", "HEAD")
    changes = _git("status", "--porcelain", "--", "vidcm", ":!vidcm/pretrained")
    return {
        "cpu": _cpu(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "torch": torch.__version__,
        "python": platform.python_version(),
        "commit": commit,
        "dirty": bool(changes) if commit else None,
    }


def machine(device: torch.device) -> dict:
    """`environment`, cores, memory, and the state of the GPU."""
    facts = environment(device) | {
        "cores": len(os.sched_getaffinity(0)),
        "memory": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
    }
    if device.type == "cuda":
        card = torch.cuda.get_device_properties(device)
        facts |= {"cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version()}
        facts["gpu_memory"] = card.total_memory
        query = "--query-gpu=driver_version,power.limit,clocks.max.sm"
        words = ["nvidia-smi", f"--id=GPU-{card.uuid}", query, "--format=csv,noheader"]
        try:
            line = subprocess.run(words, capture_output=True, text=True, timeout=60).stdout
        except (OSError, subprocess.TimeoutExpired):
            line = ""  # a container may lack it: the facts are then not known
        values = [word.strip() for word in line.split(",")]
        facts |= dict(zip(("driver", "power_limit", "top_clock"), values, strict=False))
    return facts


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _git(*words: str) -> str | None:
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():  # an installed package may lie inside another project's clone
        return None
    try:
        done = subprocess.run(
            ["git", "-C", str(root), *words], capture_output=True, text=True, timeout=30
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
