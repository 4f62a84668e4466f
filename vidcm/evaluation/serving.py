"""Throughput of a server, requests in one forward beside one by one and beside a bare pipeline.

The servers are `vidcm serve` in processes of their own, used by threads that ask for the next clip
as soon as they have one. Servers and the bare loop take turns, so that other load on the machine
slows them alike.
"""

import http.client
import json
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from vidcm.errors import VidcmError
from vidcm.evaluation.environment import machine
from vidcm.files import file_hash
from vidcm.pipeline import VideoPipeline

VERSION = 1
PROMPT = "a woman with purple hair walks left"
BATCHES = {"one by one": 1, "batched": 8}  # jobs in one forward, by row
BARE = "pipeline"
TIMEOUT = 300.0
DEFINITION = {
    "clips_per_second": "finished clips over the seconds of all turns, the last answers awaited",
    "seconds": "from sending a request to the last byte of its mp4, the queue in it; of the row "
    "`pipeline` from the prompt to the finished mp4",
    "answers": "HTTP status codes",
    "batch": "mean number of jobs in one forward",
    "memory": "resident bytes of the server after each turn",
}


@dataclass(frozen=True)
class ServingPlan:
    """How servers are asked.

    Attributes:
        clients: Threads that ask.
        seconds: Of a turn of a row; jobs that wait at its end are made, and counted.
        turns: Of every row.
        num_inference_steps: Of every clip.
    """

    clients: int = 32
    seconds: float = 4.0
    turns: int = 3
    num_inference_steps: int = 4


@dataclass
class _Row:
    """What was seen of a row."""

    spent: float = 0.0
    latencies: list[float] = field(default_factory=list)
    answers: Counter = field(default_factory=Counter)
    memory: list[float] = field(default_factory=list)
    batches: list[float] = field(default_factory=list)

    def numbers(self) -> dict[str, Any]:
        p50, p95 = np.percentile(self.latencies, [50, 95])
        found = {
            "clips": len(self.latencies),
            "clips_per_second": len(self.latencies) / self.spent,
            "seconds": {"p50": p50, "p95": p95},
        }
        if self.answers:
            errors = sum(n for code, n in self.answers.items() if code not in (200, 429))
            answers = {str(code): count for code, count in sorted(self.answers.items())}
            found |= {"answers": answers, "errors": errors, "memory": self.memory}
            found |= {"batch": float(np.mean(self.batches))}
        return found


def measure_serving(checkpoint: str, device: str, plan: ServingPlan) -> dict[str, Any]:
    """Measure every row in turns.

    Args:
        checkpoint: A bundled model or a pipeline folder.
        device: As `runtime.pick_device` takes it.
        plan: How the servers are asked.

    Returns:
        Results of kind "serving".

    Raises:
        UsageError: There is no such checkpoint or device.
        VidcmError: A server does not start, or ends.
    """
    load_average = [os.getloadavg()]
    pipe = VideoPipeline.from_pretrained(checkpoint, device=device)
    rows = {name: _Row() for name in (BARE, *BATCHES)}
    with ExitStack() as stack:
        ports = {
            name: stack.enter_context(_server(checkpoint, device, size))
            for name, size in BATCHES.items()
        }
        pipe(PROMPT, num_inference_steps=1)
        for port in ports.values():
            _ask(port, {"prompt": PROMPT, "num_inference_steps": 1})  # to warm up
        for _ in range(plan.turns):
            _loop(pipe, plan, rows[BARE])
            for name, port in ports.items():
                _load(port, plan, rows[name])
    files = sorted(pipe.folder.rglob("*.safetensors"))
    return {
        "kind": "serving",
        "definition": DEFINITION,
        "protocol": {"version": VERSION, **asdict(plan), "prompt": PROMPT},
        "model": {
            "name": Path(checkpoint).name,
            "files": {str(file.relative_to(pipe.folder)): file_hash(file) for file in files},
        },
        "environments": [
            {**machine(pipe.device), "load_average": [*load_average, os.getloadavg()]}
        ],
        "rows": {name: {**row.numbers(), "environment": 0} for name, row in rows.items()},
    }


@contextmanager
def _server(checkpoint: str, device: str, max_batch: int) -> Iterator[int]:
    """A server in a process of its own; yields its port."""
    words = ["serve", "--port", "0", "--checkpoint", checkpoint, "--device", device]
    words += ["--max-batch", str(max_batch)]
    command = [sys.executable, "-m", "vidcm", *words]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        found = re.search(r":(\d+)/v1/videos", process.stdout.readline())
        if found is None:
            raise VidcmError(f"the server does not start: {process.communicate()[1].strip()}")
        yield int(found[1])
    finally:
        process.terminate()
        process.communicate(timeout=60)


def _loop(pipe: VideoPipeline, plan: ServingPlan, row: _Row) -> None:
    """A turn of the pipeline alone."""
    started = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="vidcm-bench-") as folder:
        while (now := time.perf_counter()) - started < plan.seconds:
            seed = len(row.latencies)
            clips = pipe(PROMPT, seed=seed, num_inference_steps=plan.num_inference_steps)
            clips.save(Path(folder, f"{seed}.mp4"))
            row.latencies.append(time.perf_counter() - now)
    row.spent += time.perf_counter() - started


def _load(port: int, plan: ServingPlan, row: _Row) -> None:
    """A turn of a server."""
    before, started = _batches(port), time.perf_counter()

    def client(number: int) -> None:
        seed = number * 10_000 + len(row.latencies)
        while time.perf_counter() - started < plan.seconds:
            body = {"prompt": PROMPT, "seed": seed}
            body |= {"num_inference_steps": plan.num_inference_steps}
            now = time.perf_counter()
            status, wait = _ask(port, body)
            row.answers[status] += 1
            if status == 200:
                row.latencies.append(time.perf_counter() - now)
            time.sleep(wait)
            seed += 1

    clients = [threading.Thread(target=client, args=(n,)) for n in range(plan.clients)]
    for thread in clients:
        thread.start()
    for thread in clients:
        thread.join()
    row.spent += time.perf_counter() - started
    count, jobs = (b - a for a, b in zip(before, _batches(port), strict=True))
    row.batches.append(jobs / count)
    row.memory.append(_metric(port, "process_resident_memory_bytes"))


def _ask(port: int, body: dict[str, Any]) -> tuple[int, float]:
    """Status of a request, 0 without an answer, and the seconds to wait before the next."""
    link = http.client.HTTPConnection("127.0.0.1", port, timeout=TIMEOUT)
    try:
        kind = {"content-type": "application/json"}
        link.request("POST", "/v1/videos/sync", json.dumps(body), kind)
        answer = link.getresponse()
        whole = answer.read()[4:8] == b"ftyp"
        if answer.status == 200 and not whole:
            return 0, 0.0
        return answer.status, float(answer.getheader("retry-after", "0"))
    except (OSError, http.client.HTTPException):
        return 0, 0.0
    finally:
        link.close()


def _batches(port: int) -> tuple[float, float]:
    """Forwards and jobs of a server so far."""
    return _metric(port, "vidcm_batch_jobs_count"), _metric(port, "vidcm_batch_jobs_sum")


def _metric(port: int, name: str) -> float:
    link = http.client.HTTPConnection("127.0.0.1", port, timeout=TIMEOUT)
    try:
        link.request("GET", "/metrics")
        text = link.getresponse().read().decode()
    finally:
        link.close()
    found = re.search(rf"^{name} (\S+)$", text, re.MULTILINE)
    if found is None:
        raise VidcmError(f"the server has no metric {name}")
    return float(found[1])
