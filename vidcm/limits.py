"""How much work one call may ask of this machine. Needs no torch."""

import os
from pathlib import Path

from vidcm.errors import UsageError

# Measured on a CPU with lpc-64: bytes for each pixel of all clips (results and latents), and for
# each pixel that the decoder has in work, at most `DECODED_FRAMES` frames of a clip.
BYTES_KEPT, BYTES_DECODED, DECODED_FRAMES = 24, 130, 40
BATCH_PIXELS = 2**21  # of all frames of the clips that are sampled and decoded at once


def memory() -> int:
    """Bytes of memory that this process may use: the machine's, or its container's if less."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for name in ("memory.max", "memory/memory.limit_in_bytes"):  # cgroups, version 2 and 1
        file = Path("/sys/fs/cgroup", name)
        if file.is_file() and (text := file.read_text().strip()).isdecimal():
            total = min(total, int(text))
    return total


def available_memory() -> int:
    """Bytes of memory that are free for this process: the machine's, or its container's if less."""
    lines = Path("/proc/meminfo")
    if not lines.is_file():  # not Linux
        return memory()
    named = dict(line.split(":") for line in lines.read_text().splitlines())
    free = int(named["MemAvailable"].split()[0]) * 2**10
    for folder, usage in (("", "memory.current"), ("memory", "memory.usage_in_bytes")):
        file = Path("/sys/fs/cgroup", folder, usage)
        if file.is_file():
            numbers = dict(
                x.split() for x in (file.parent / "memory.stat").read_text().splitlines()
            )
            cached = int(numbers.get("inactive_file", 0)) + int(numbers.get("active_file", 0))
            free = min(free, memory() - int(file.read_text()) + cached)
    return free


def check_memory(clips: int, frames: int, height: int, width: int, batch_size: int = 1) -> None:
    """Refuse clips that cannot fit into memory, by an estimate from below.

    Args:
        clips: Number of clips of the call.
        frames: Frames of each.
        height: In pixels.
        width: In pixels.
        batch_size: Clips that are decoded at once.

    Raises:
        UsageError: They need more than `memory()`.
    """
    decoded = min(clips, batch_size) * min(frames, DECODED_FRAMES)
    need = height * width * (clips * frames * BYTES_KEPT + decoded * BYTES_DECODED)
    if need > (have := memory()):
        count = "1 clip" if clips == 1 else f"{clips} clips"
        raise UsageError(
            f"{count} of {frames} frames of {width}x{height} need about {need / 2**30:.3g} GiB of "
            f"memory and this machine has {have / 2**30:.3g}; ask for fewer or smaller clips at a "
            "time"
        )
