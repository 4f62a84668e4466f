"""Kills small runs at random times and compares what they end with to an undisturbed run, bit by bit.

    python tests/soak.py train --kills 200 --work FOLDER
    python tests/soak.py encode --kills 100 --work FOLDER

train: two ranks of DeepSpeed that read real video files, with ZeRO 1. One rank or both get SIGKILL,
or one gets SIGTERM, at any time from the start to some steps after it; where ranks had not met, those
that wait for a killed one are killed by us, as a scheduler does it. The same command then resumes,
until the run ends and another one begins. encode: the command that makes a latent cache, likewise.
May itself be stopped at any time: the same command goes on counting. `docs/results/soak.json` is
written after every run that ended.
"""

import argparse
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
import yaml

REPO = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(REPO), str(REPO / "tests")]

from tiny import CODEC  # noqa: E402
from train.launches import free_port  # noqa: E402

from vidcm.evaluation.environment import machine  # noqa: E402
from vidcm.files import write_text  # noqa: E402
from vidcm.media.write import write_clip  # noqa: E402

RESULTS = REPO / "docs" / "results" / "soak.json"
PATIENCE = 180.0  # seconds until processes that do not end are a failure
EARLY, STUCK = " at the start", "SIGABRT, without progress"
ALONE = 30.0  # seconds that a scheduler leaves the others when one of them died
SHAPE = {"num_frames": 5, "size": [16, 24], "fps": 8}
CLIPS = 12


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["train", "encode"])
    parser.add_argument("--kills", type=int, required=True)
    parser.add_argument("--work", type=Path, required=True, help="folder, kept between calls")
    parser.add_argument("--steps", type=int, default=60, help="of a run of train")
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    prepare(args.work, args.steps)
    soak = Soak(args.what, args.work)
    while soak.total < args.kills:
        soak.round(args.kills)
    print(json.dumps(soak.summary()))
    return int(soak.failed)


def prepare(work: Path, steps: int) -> None:
    """Make clips, a config, and a codec for encode."""
    clips = work / "clips"
    if not (work / "train.yaml").exists():
        shutil.rmtree(clips, ignore_errors=True)
        for i in range(CLIPS):
            frames = np.full((9, 32, 48, 3), 30, np.uint8)
            for t in range(9):
                frames[t, 8 + i % 8 : 20 + i % 8, 3 * t : 3 * t + 12] = (200, 40 * (i % 4), 5 * i)
            write_clip(frames, clips / f"{i:02}.mp4", fps=8)
            (clips / f"{i:02}.txt").write_text(f"square {i}")
        keys = {"model": CODEC, "objective": {"name": "autoencoding"}, "output": "", "steps": steps}
        keys |= {"data": {"name": "folder", "root": str(clips), **SHAPE}, "batch_size": 4}
        keys |= {"log_every": 1, "save_every": 2, "sample_every": steps, "num_workers": 2}
        keys |= {"optimizer": {"lr": 1e-3, "warmup_steps": 2}, "rank_timeout": 20}
        write_text(work / "train.yaml", yaml.safe_dump(keys))


def train_commands(work: Path, output: Path, seed: int) -> list[tuple[list[str], dict[str, str]]]:
    """Both ranks, started without a launcher, as under a scheduler."""
    port = str(free_port())
    places = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    tool = [sys.executable, str(REPO / "tools" / "train.py"), "--config", str(work / "train.yaml")]
    words = ["--device", "cpu", f"output={output}", f"seed={seed}", "zero=1"]
    return [([*tool, *words], {**places, "RANK": r, "LOCAL_RANK": r}) for r in ("0", "1")]


def encode_commands(work: Path, output: Path, seed: int) -> list[tuple[list[str], dict[str, str]]]:
    tool = [
        sys.executable,
        str(REPO / "tools" / "encode.py"),
        "--data",
        "folder",
        "--device",
        "cpu",
    ]
    words = ["--root", str(work / "clips"), "--frames", "5", "--size", "16x24", "--fps", "8"]
    codec = ["--codec", str(work / "codec" / "final"), "--shard-size", "1", "--batch", "1"]
    return [([*tool, *words, *codec, "--output", str(output)], {})]


def train_digest(output: Path) -> str:
    return hashlib.sha256((output / "final" / "model.safetensors").read_bytes()).hexdigest()


def encode_digest(output: Path) -> str:
    found = {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in output.iterdir()}
    assert not list(output.parent.glob(f"{output.name}.partial*")), (
        "nothing is left beside the cache"
    )
    return hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()


def train_progress(output: Path) -> int:
    path = output / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def encode_progress(output: Path) -> int:
    return len(list(output.parent.glob(f"{output.name}.partial/shard-*.json")))


COMMANDS = {"train": train_commands, "encode": encode_commands}
DIGESTS = {"train": train_digest, "encode": encode_digest}
PROGRESS: dict[str, Callable[[Path], int]] = {"train": train_progress, "encode": encode_progress}


class Soak:
    """Kills of one kind of command, counted in `WORK/<what>.json`.

    Args:
        what: train or encode.
        work: Folder of everything.
    """

    def __init__(self, what: str, work: Path):
        self.what, self.work, self.path = what, work, work / f"{what}.json"
        self.facts = {"kills": {}, "rounds": 0, "different": 0, "stuck": 0, "wrong_codes": 0}
        if self.path.exists():
            self.facts = json.loads(self.path.read_text())
        if what == "encode" and not (work / "codec" / "final").exists():
            self.undisturbed(train_commands, work / "codec", 0)

    @property
    def total(self) -> int:
        return sum(self.facts["kills"].values())

    @property
    def failed(self) -> bool:
        return any(self.facts[k] for k in ("different", "stuck", "wrong_codes"))

    def undisturbed(self, commands: Callable, output: Path, seed: int) -> None:
        codes = ends(start(commands(self.work, output, seed), output), 1800)
        if any(codes):
            raise SystemExit(f"the undisturbed run ended with {codes}; see {output}.log")

    def round(self, kills: int) -> None:
        """One run, killed and resumed until it ends, beside one that is not."""
        seed = self.facts["rounds"]
        output, calm = (self.work / f"{self.what}-{seed}{x}" for x in ("", "-undisturbed"))
        if not calm.exists() or not (calm / "final").exists() and self.what == "train":
            self.undisturbed(COMMANDS[self.what], calm, seed)
        draw = random.Random(f"{self.what} {seed} {self.total}")
        # A whole cache is not made again, even if its process was killed at the very end.
        done = self.what == "encode" and output.exists()
        while not done:
            since = time.monotonic()
            processes = start(COMMANDS[self.what](self.work, output, seed), output)
            kind = self.kill(processes, output, draw) if self.total < kills else ""
            if kind.endswith(EARLY):
                schedule(processes)
            codes = ends(processes, PATIENCE if kind else 1800)
            if kind:
                kinds = self.facts["kills"]
                kinds[kind] = kinds.get(kind, 0) + 1
                self.facts["stuck"] += None in codes or kind == STUCK
                self.facts["seconds"] = self.facts.get("seconds", 0.0) + time.monotonic() - since
                # 0 where the last step was done before the signal was seen; the signal's own where
                # the interpreter had not come to our first line, and then 1 of those who waited
                stopped = {143, 0, -signal.SIGTERM, 1} if -signal.SIGTERM in codes else {143, 0}
                expected = stopped if "SIGTERM" in kind else {1, -signal.SIGKILL, 0}
                expected |= {-signal.SIGKILL} if kind.endswith(EARLY) else set()
                expected |= {-signal.SIGABRT} if kind == STUCK else set()
                self.facts["wrong_codes"] += not set(codes) <= expected | {None}
                write_text(self.path, json.dumps(self.facts))
            elif any(codes):
                raise SystemExit(f"a resumed run ended with {codes}; see {output}.log")
            done = not kind or self.what == "encode" and output.exists()
        digests = {DIGESTS[self.what](folder) for folder in (output, calm)}
        self.facts["different"] += len(digests) > 1
        self.facts["rounds"] += 1
        write_text(self.path, json.dumps(self.facts))
        self.publish()
        if len(digests) == 1:
            for folder in (output, calm):
                shutil.rmtree(folder)

    def kill(self, processes: Sequence[subprocess.Popen], output: Path, draw: random.Random) -> str:
        """Kill, at a random time; returns how, "" where the run had ended before."""
        early, delay = draw.random() < 0.15, draw.random()
        since, until = time.monotonic(), PROGRESS[self.what](output) + draw.randint(1, 6)
        while not early and PROGRESS[self.what](output) < until:
            time.sleep(0.005)
            if all(p.poll() is not None for p in processes):
                return ""
            if time.monotonic() - since > PATIENCE:
                for process in processes:  # whose log then says where each thread is
                    process.send_signal(signal.SIGABRT)
                return STUCK
        time.sleep(delay * (10 if early else 1))
        victims = [draw.choice(processes)]
        number, kind = signal.SIGKILL, "one SIGKILL"
        if len(processes) > 1 and draw.random() < 0.35:
            number, kind = signal.SIGTERM, "one SIGTERM"
        elif len(processes) > 1 and draw.random() < 0.5:
            victims, kind = list(processes), "both SIGKILL"
        if any(p.poll() is not None for p in processes):
            return ""
        kind += EARLY if early else ""
        for process in victims:
            process.send_signal(number)
        print(
            f"{self.what} {self.total + 1}: {kind} after {time.monotonic() - since:.1f} s",
            flush=True,
        )
        return kind

    def summary(self) -> dict:
        seconds = self.facts.get("seconds", 0.0) / max(self.total, 1)
        return {self.what: {**self.facts, "total": self.total, "seconds_per_kill": seconds}}

    def publish(self) -> None:
        found = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
        facts = {"command": f"python tests/soak.py {self.what}", **machine(torch.device("cpu"))}
        found[self.what] = {**facts, **self.summary()[self.what]}
        write_text(RESULTS, json.dumps(found, indent=1) + "\n")


def start(commands: Sequence[tuple[list[str], dict]], output: Path) -> list[subprocess.Popen]:
    env = {**os.environ, "PYTHONPATH": str(REPO), "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
    env["PYTHONFAULTHANDLER"] = "1"
    with Path(f"{output}.log").open("ab") as log:
        return [
            subprocess.Popen(command, env={**env, **places}, stdout=log, stderr=log)
            for command, places in commands
        ]


def schedule(processes: Sequence[subprocess.Popen]) -> None:
    """Kill what is left half a minute after a rank ended; a run that has met ends by itself sooner."""
    until = time.monotonic() + ALONE
    while time.monotonic() < until and any(p.poll() is None for p in processes):
        time.sleep(0.1)
    for process in processes:
        if process.poll() is None:
            process.kill()


def ends(processes: Sequence[subprocess.Popen], seconds: float) -> list[int | None]:
    """Exit codes; None for a process that had to be killed after `seconds`."""
    until, codes = time.monotonic() + seconds, []
    for process in processes:
        try:
            codes.append(process.wait(max(0.0, until - time.monotonic())))
        except subprocess.TimeoutExpired:
            codes.append(None)
            process.kill()
            process.wait()
    return codes


if __name__ == "__main__":
    sys.exit(main())
