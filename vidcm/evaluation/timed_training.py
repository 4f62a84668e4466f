"""Training for a number of seconds, in a process of its own."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from vidcm.config import TrainConfig, to_dict
from vidcm.errors import VidcmError
from vidcm.files import write_text

PROBE = 16  # steps timed; the first of them, which warms up, is left out
_STOPPED = (130, 143)  # exit codes of a training that was interrupted or terminated


def steps_within(budget: float, seconds_per_step: float) -> int:
    """Training steps that fit into `budget` seconds, at least 1."""
    return max(1, int(budget / seconds_per_step))


def train_for_seconds(
    budget: float,
    config: str | Path,
    overrides: list[str],
    batch_size: int,
    run: Path,
    timing: Path,
) -> dict:
    """Train a config into `run/student` for as many steps as fit into `budget`.

    Args:
        budget: seconds.
        config: file of the training.
        overrides: of its keys, as KEY=VALUE.
        batch_size: of the config.
        run: folder of this training.
        timing: file that keeps the seconds per step, so that a training that was interrupted, or
            another of the same cost, goes on to the same number of steps.

    Returns:
        `steps`, `batch_size`, `seconds_per_step` over the run, and `peak_mb` (`peak_memory`).

    Raises:
        VidcmError: the training failed; the message has its reason.
    """
    student = run / "student"
    if not timing.exists():
        probe = run / "probe"
        shutil.rmtree(probe, ignore_errors=True)
        few = [
            f"output={probe}",
            f"steps={PROBE}",
            "log_every=1",
            "preview_prompts=[a woman walks left]",
        ]
        train(config, [*overrides, *few], run / "peak.json")
        seconds = seconds_per_step(probe, batch_size, after=1)
        write_text(timing, json.dumps({"seconds_per_step": seconds}) + "\n")
        shutil.rmtree(probe)
    steps = steps_within(budget, json.loads(timing.read_text("utf-8"))["seconds_per_step"])
    if not (student / "final" / "model.json").exists():
        # One preview, at the end: it is not part of the cost of a step.
        full = [f"output={student}", f"steps={steps}", f"sample_every={steps}"]
        train(config, [*overrides, *full], run / "peak.json")
    return {
        "steps": steps,
        "batch_size": batch_size,
        "seconds_per_step": seconds_per_step(student, batch_size),
        "peak_mb": json.loads((run / "peak.json").read_text("utf-8")),
    }


def seconds_per_step(run: Path, batch_size: int, after: int = 0) -> float:
    """Mean over the lines of a run's log after step `after`.

    Raises:
        VidcmError: no step was logged, as when none was finite.
    """
    seconds, first, last = 0.0, 0, 0
    for line in map(json.loads, (run / "metrics.jsonl").read_text("utf-8").splitlines()):
        if speed := line.get("samples_per_second"):
            if line["step"] > after:
                seconds += (line["step"] - last) * batch_size / speed
            else:
                first = line["step"]
            last = line["step"]
    if last == first:
        raise VidcmError(f"{run / 'metrics.jsonl'} logged no step's speed; were any steps finite?")
    return seconds / (last - first)


def train(config: str | Path, overrides: list[str], peak: Path) -> None:
    """Train in a process of its own, which writes its peak memory to a file; stderr is passed on.

    Raises:
        VidcmError: the training failed.
        KeyboardInterrupt: it was stopped.
    """
    module = ["-m", "vidcm.cli.measured_train", str(peak)]
    command = [sys.executable, "-P", *module, "--config", str(config), *overrides]
    # The child runs this copy of the package, wherever another one may be installed.
    paths = [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    tail = b""
    with subprocess.Popen(command, stderr=subprocess.PIPE, env=env) as child:
        assert child.stderr is not None
        try:
            while part := os.read(child.stderr.fileno(), 4096):
                os.write(2, part)
                tail = (tail + part)[-4096:]
            code = child.wait()
        except BaseException:
            child.send_signal(signal.SIGINT)
            child.communicate()
            raise
    if code in _STOPPED:
        raise KeyboardInterrupt
    if code:
        raise VidcmError(f"training {config} ended with exit code {code}{_reason(tail, code)}")


def _reason(tail: bytes, code: int) -> str:
    """The error line of a failed training."""
    if code < 0:
        return f": killed by {signal.Signals(-code).name}"
    lines = re.split(r"[\r\n]+", tail.decode("utf-8", "replace"))
    errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    return f": {errors[-1]}" if errors else ""


def peak_memory() -> float | None:
    """Peak memory of this process in MB: torch's on a GPU where it used one, else resident.

    Returns:
        None outside Linux.
    """
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated() / 2**20
    # Not rusage: its maximum reaches back to before exec, and is the parent's when that is larger.
    try:
        status = Path("/proc/self/status").read_text("utf-8")
    except OSError:
        return None
    return int(re.findall(r"VmHWM:\s*(\d+) kB", status)[0]) / 1024


def identifying_settings(config: TrainConfig) -> dict[str, Any]:
    """The config keys that identify a training, as plain data.

    Leaves out run length, output folder and names of weight folders.
    """
    settings = json.loads(json.dumps(to_dict(config)))
    kept = {k: v for k, v in settings.items() if k not in _NOT_IDENTIFYING}
    return kept | {"init": config.init is not None}


_NOT_IDENTIFYING = {
    *("output", "steps", "num_workers", "log_every", "sample_every", "save_every"),
    *("keep_checkpoints", "preview_prompts"),
    *("max_skipped", "teacher", "codec"),
}
