"""Two machines, as two network namespaces that see each other over one cable: the commands of
docs/training.md, and the same losses as in one process. Nothing leaves the namespaces."""

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from train import ranks

from vidcm.train import loop

REPO = Path(__file__).resolve().parents[2]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("deepspeed") is None,
        reason="needs deepspeed: pip install -e .[train]",
    ),
]


def ip(*words: str) -> subprocess.CompletedProcess:
    return subprocess.run(["ip", *words], capture_output=True, text=True)


@pytest.fixture
def hosts() -> Iterator[list[str]]:
    """Names of two namespaces, at 10.77.0.1 and 10.77.0.2 of their interface `cable`."""
    names = [f"vidcm-{os.getpid()}-{host}" for host in "ab"]
    try:
        for name in names:
            made = ip("netns", "add", name)
            if made.returncode:
                pytest.skip(f"no network namespaces here: {made.stderr.strip()}")
        cable = ["link", "add", "cable", "netns", names[0], "type", "veth"]
        made = ip(*cable, "peer", "name", "cable", "netns", names[1])
        if made.returncode:
            pytest.skip(f"no virtual cable here: {made.stderr.strip()}")
        for number, name in enumerate(names, start=1):
            ip("-n", name, "addr", "add", f"10.77.0.{number}/24", "dev", "cable")
            for link in ("lo", "cable"):
                assert ip("-n", name, "link", "set", link, "up").returncode == 0
        yield names
    except FileNotFoundError:
        pytest.skip("there is no command ip: install iproute2")
    finally:
        for name in names:
            ip("netns", "del", name)


def start(host: str, node: int, hostfile: Path, mode: str, folder: Path) -> subprocess.Popen:
    launcher = [sys.executable, "-m", "deepspeed.launcher.runner", "--hostfile", str(hostfile)]
    place = ["--no_ssh", "--node_rank", str(node), "--master_addr", "10.77.0.1"]
    return subprocess.Popen(
        ["ip", "netns", "exec", host, *launcher, *place, "--master_port", "29500"]
        + [str(Path(ranks.__file__)), mode, str(folder)],
        env={**os.environ, "PYTHONPATH": str(REPO)}
        | {"DS_ACCELERATOR": "cpu", "GLOO_SOCKET_IFNAME": "cable"},
        stdout=(folder.parent / f"{mode}-{node}.log").open("wb"),
        stderr=subprocess.STDOUT,
    )


def losses(folder: Path) -> dict[int, float]:
    lines = map(json.loads, (folder / "metrics.jsonl").read_text("utf-8").splitlines())
    return {x["step"]: x["loss"] for x in lines if "loss" in x}


def test_two_hosts_do_what_one_process_does(tmp_path: Path, hosts: list[str]) -> None:
    hostfile = tmp_path / "hosts"
    hostfile.write_text("10.77.0.1 slots=1\n10.77.0.2 slots=1\n")
    both = [start(h, n, hostfile, "short", tmp_path / "run") for n, h in enumerate(hosts)]
    try:
        codes = [process.wait(400) for process in both]
    finally:
        for process in both:
            process.kill()
    logs = [(tmp_path / f"short-{n}.log").read_text() for n in (0, 1)]
    assert codes == [0, 0], "\n".join(logs)

    chosen = ranks.config(str(tmp_path / "alone"), **ranks.SHORT)
    work = ranks.task(ranks.Points({ranks.BAD}))
    assert loop.train(chosen, work, ranks.local(chosen), lambda *_: None) == 0
    found, expected = losses(tmp_path / "run"), losses(tmp_path / "alone")
    assert len(expected) == 19 and found == pytest.approx(expected, rel=1e-5, abs=1e-5)
