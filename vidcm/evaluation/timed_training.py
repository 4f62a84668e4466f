"""A training of as many steps as fit into given seconds, in a process of its own."""

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
_START = (
    "import sys; from vidcm.evaluation.timed_training import main; sys.exit(main(sys.argv[1:]))"
)
_STOPPED = (130, 143)  # exit codes of a training that was asked to stop


def steps_within(budget: float, seconds_per_step: float) -> int:
    return max(1, int(budget / seconds_per_step))


def train_for_seconds(
    budget: float,
    config: str | Path,
    overrides: list[str],
    batch_size: int,
    run: Path,
    timing: Path,
) -> dict:
    """Train what a config with overrides describes into `run/student` for `budget` seconds.

    Some steps are timed first, which `timing` keeps, so that a training that was interrupted, or
    another of the same cost, goes on to the same number. Gives steps, batch size, seconds an
    iteration as measured over the whole run, and peak memory as of `peak_memory`. Raises VidcmError
    with the training's own reason when it fails."""
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
        # One preview, at the end: it is no part of what a step costs.
        told = [f"output={student}", f"steps={steps}", f"sample_every={steps}"]
        train(config, [*overrides, *told], run / "peak.json")
    return {
        "steps": steps,
        "batch_size": batch_size,
        "seconds_per_step": seconds_per_step(student, batch_size),
        "peak_mb": json.loads((run / "peak.json").read_text("utf-8")),
    }


def seconds_per_step(run: Path, batch_size: int, after: int = 0) -> float:
    """Mean over a run's log, its lines up to step `after` left out. Raises VidcmError when no step
    was logged, as of a run none of whose steps was finite."""
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
    """A training in its own process, which writes its peak memory to a file. What it says on
    stderr is passed on. Raises VidcmError when it fails, KeyboardInterrupt when it was stopped."""
    command = [sys.executable, "-P", "-c", _START, str(peak), "--config", str(config), *overrides]
    # The child runs this very package, wherever another copy of it may be installed.
    paths = [str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
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
    """The line of a failed training that says why."""
    if code < 0:
        return f": killed by {signal.Signals(-code).name}"
    lines = re.split(r"[\r\n]+", tail.decode("utf-8", "replace"))
    said = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    return f": {said[-1]}" if said else ""


def main(argv: list[str]) -> int:
    """`vidcm train` with the arguments after the first, then its peak memory to that file."""
    from vidcm.cli.train import main as train_command

    code = train_command(argv[1:])
    write_text(Path(argv[0]), json.dumps(peak_memory()) + "\n")
    return code


def peak_memory() -> float | None:
    """MB: what torch took at most of a GPU if it used one, else the most that was resident of this
    process; None where the system does not tell (it is not Linux)."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated() / 2**20
    # Not rusage: its maximum reaches back to before exec, and is the parent's when that is larger.
    try:
        status = Path("/proc/self/status").read_text("utf-8")
    except OSError:
        return None
    return int(re.findall(r"VmHWM:\s*(\d+) kB", status)[0]) / 1024


def settings_of(config: TrainConfig) -> dict[str, Any]:
    """What of a config makes its training another one, as plain data: not how long it runs, where
    it writes, nor what folders of weights are called."""
    told = json.loads(json.dumps(to_dict(config)))
    return {k: v for k, v in told.items() if k not in _FREE} | {"init": config.init is not None}


_FREE = {
    *("output", "steps", "num_workers", "log_every", "sample_every", "save_every"),
    *("keep_checkpoints", "preview_prompts"),
    *("max_skipped", "teacher", "codec"),
}
