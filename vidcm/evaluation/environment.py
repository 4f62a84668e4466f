"""What a number was measured on, recorded with it."""

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
    commit, changes = (
        _git("rev-parse", "HEAD"),
        _git("status", "--porcelain", "--", "vidcm", ":!vidcm/pretrained"),
    )
    return {
        "cpu": _cpu(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "torch": torch.__version__,
        "python": platform.python_version(),
        "commit": commit,
        "dirty": bool(changes) if commit else None,
    }


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
