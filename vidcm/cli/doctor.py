"""`vidcm doctor`: whether this machine can generate clips, and what its optional parts do."""

import argparse
import importlib.metadata
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from vidcm import __version__
from vidcm.cli.common import Parser, run

CPU_FLAGS = {"avx2": "AVX2", "avx512f": "AVX-512", "avx512_bf16": "AVX512-BF16", "amx_bf16": "AMX"}
OPTIONAL = {  # module: purpose, extra of setup.cfg
    "deepspeed": ("training with ZeRO, on several GPUs", "train"),
    "tensorboard": ("curves of a run", "train"),
    "peft": ("training low-rank updates (lora)", "lora"),
    "matplotlib": ("the plot of vidcm compare", "plot"),
    "scenedetect": ("encode --filter shot_cuts", "filter"),
    "imagehash": ("encode --filter near_duplicates", "filter"),
    "rapidocr": ("encode --filter text_overlays", "ocr"),
    "fsspec": ("videos and latents behind URLs", "remote"),
    "pyarrow": ("captions in metadata.parquet", "parquet"),
    "fastapi": ("serving over HTTP (vidcm serve)", "web"),
    "timm": ("feature networks for the Fréchet distance", "timm"),
}
LITTLE_DISK, LITTLE_SHARED = 2**30, 2**26  # bytes


class Check(NamedTuple):
    """One line of the report. state: "ok", "note" (generation works without it) or "failed"."""

    name: str
    state: str
    detail: str
    fix: str = ""


def parser() -> argparse.ArgumentParser:
    p = Parser(
        "doctor",
        "Check Python, torch, video encoders, weights and optional parts, and generate a test\n"
        "clip. The exit code is 0 when generation works, else 1.",
        "examples:\n  vidcm doctor\n  vidcm doctor --json",
    )
    p.add_argument("--json", action="store_true", help="print one JSON object instead of text")
    return p


def main(argv: list[str] | None = None) -> int:
    return run(_doctor, parser().parse_args(argv))


def _doctor(args: argparse.Namespace) -> int:
    found = []
    for check in checks():
        found.append(check)
        if not args.json:
            fix = f"; {check.fix}" if check.fix else ""
            print(f"{check.state:<6}  {check.name}: {check.detail}{fix}", flush=True)
    ok = all(check.state != "failed" for check in found)
    if args.json:
        print(json.dumps({"ok": ok, "checks": [check._asdict() for check in found]}))
    return 0 if ok else 1


def checks() -> Iterator[Check]:
    """Every check in turn; one that breaks is a failed one."""
    for name, check in {
        "vidcm": _package,
        "Python": _python,
        "torch": _torch,
        "CPU": _cpu,
        "GPU": _gpu,
        "encoders": _encoders,
        "weights": _weights,
        "disk": _disk,
        "shared memory": _shared_memory,
        "generation": _generation,
    }.items():
        yield _guarded(name, check)
    compiler = shutil.which("g++")
    purpose = "DeepSpeed's CPU optimizer and torch.compile"
    fix = "" if compiler else "apt install g++"
    yield Check("g++", "ok" if compiler else "note", compiler or f"not found; {purpose}", fix)
    for module, (purpose, extra) in OPTIONAL.items():
        try:
            yield Check(module, "ok", f"{importlib.metadata.version(module)}; {purpose}")
        except importlib.metadata.PackageNotFoundError:
            yield Check(module, "note", f"not installed; {purpose}", f"pip install -e '.[{extra}]'")


def _guarded(name: str, check: Callable[[], tuple[str, str, str]]) -> Check:
    try:
        return Check(name, *check())
    except Exception as error:  # a broken part is a line of the report, not its end
        return Check(name, "failed", " ".join(f"{type(error).__name__}: {error}".split()))


def _package() -> tuple[str, str, str]:
    return "ok", f"{__version__} in {Path(__file__).parents[1]}", ""


def _python() -> tuple[str, str, str]:
    return "ok", f"{sys.version.split()[0]} at {sys.executable}", ""


def _torch() -> tuple[str, str, str]:
    try:
        import torch
    except ImportError as error:
        return "failed", str(error), "pip install torch"
    count = torch.get_num_threads()
    return "ok", f"{torch.__version__}, {count} thread{'s' * (count != 1)}", ""


def _cpu() -> tuple[str, str, str]:
    info = Path("/proc/cpuinfo")
    if not info.is_file():
        return "note", "instructions unknown (no /proc/cpuinfo)", ""
    lines = info.read_text().splitlines()
    flags = next((set(line.split()) for line in lines if line.startswith("flags")), set())
    names = [name for flag, name in CPU_FLAGS.items() if flag in flags]
    fast = bool(flags & {"avx512_bf16", "amx_bf16"})
    speed = "bf16 in hardware" if fast else "no bf16 in hardware, use precision=fp32"
    return (
        "ok",
        f"{os.cpu_count()} cores, {', '.join(names) or 'no vector flags known'}; {speed}",
        "",
    )


def _gpu() -> tuple[str, str, str]:
    import torch

    if torch.cuda.is_available():
        free, total = torch.cuda.mem_get_info()
        name = torch.cuda.get_device_name()
        return "ok", f"{name}, {free / 2**30:.1f} of {total / 2**30:.1f} GiB free", ""
    if torch.version.cuda is None and shutil.which("nvidia-smi"):
        return "note", "torch is a CPU build beside an NVIDIA driver", "see pytorch.org for CUDA"
    return "note", "none; generation runs on the CPU", ""


def _encoders() -> tuple[str, str, str]:
    import av

    from vidcm.errors import VidcmError
    from vidcm.media.encoders import ENCODINGS, find_encoder

    missing = []
    for kind in ENCODINGS:
        try:
            find_encoder(kind)
        except VidcmError:
            missing.append(kind)
    if missing:
        fix = "pip install --force-reinstall av"
        return "failed", f"PyAV {av.__version__} cannot write {', '.join(missing)}", fix
    return "ok", f"PyAV {av.__version__} writes {', '.join(ENCODINGS)}", ""


def _weights() -> tuple[str, str, str]:
    from vidcm.files import file_hash

    folder = Path(__file__).parents[1] / "pretrained"
    cards = sorted(folder.rglob("model.json"))
    damaged = [
        str(card.parent.relative_to(folder))
        for card in cards
        if file_hash(card.with_name("model.safetensors")) != json.loads(card.read_text())["sha256"]
    ]
    if damaged or not cards:
        detail = f"damaged: {', '.join(damaged)}" if damaged else f"none in {folder}"
        return "failed", detail, "git checkout vidcm/pretrained, or install again"
    return "ok", f"{len(cards)} bundled models agree with their hashes", ""


def _disk() -> tuple[str, str, str]:
    free = {path: shutil.disk_usage(path).free for path in (os.getcwd(), tempfile.gettempdir())}
    detail = ", ".join(f"{size / 2**30:.1f} GiB free in {path}" for path, size in free.items())
    if min(free.values()) < LITTLE_DISK:
        return "note", detail, "a run keeps several checkpoints: make room, or set TMPDIR"
    return "ok", detail, ""


def _shared_memory() -> tuple[str, str, str]:
    if not os.path.isdir("/dev/shm"):
        return "note", "no /dev/shm; needed by several ranks", ""
    size = shutil.disk_usage("/dev/shm").total
    detail = f"/dev/shm of {size / 2**20:.0f} MiB"
    if size < LITTLE_SHARED:
        return "note", f"{detail}; several ranks need more", "docker run --shm-size=1g"
    return "ok", detail, ""


def _generation() -> tuple[str, str, str]:
    from vidcm.pipeline import VideoPipeline

    pipe = VideoPipeline.from_pretrained("lpc-64")
    began = time.perf_counter()
    clips = pipe("a woman walks left", num_inference_steps=1)
    with tempfile.TemporaryDirectory() as folder:
        (path,) = clips.save(Path(folder) / "clip.mp4")
        size = path.stat().st_size
    seconds = time.perf_counter() - began
    return "ok", f"{clips.frames.shape[1]} frames, {size} bytes of mp4 in {seconds:.1f} s", ""
