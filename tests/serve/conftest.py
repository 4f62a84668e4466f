"""Tiny pipelines behind services and servers, a gate that holds a step back, and a browser."""

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import tiny
from serve.serving import Client, served, service_of

from vidcm.serve import edit_work, generation_work
from vidcm.serve.service import JobService

if TYPE_CHECKING:
    from playwright.sync_api import Browser
    from serve.browsing import Visitors


class Gate:
    """What steps of sampling wait at."""

    def __init__(self) -> None:
        self._passes, self._opened = threading.Semaphore(0), False

    def wait(self) -> None:
        assert self._opened or self._passes.acquire(timeout=30)

    def let(self, steps: int) -> None:
        """Let so many steps pass."""
        self._passes.release(steps)

    def open(self) -> None:
        """Let all pass from now on."""
        self._opened = True
        self._passes.release(1000)


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pipeline folder of tiny models, 5 frames of 16x24."""
    return tiny.pipeline(tmp_path_factory.mktemp("served"))


@pytest.fixture(scope="module")
def service(folder: Path) -> Iterator[JobService]:
    with service_of(folder, max_queue=16) as made:
        yield made


@pytest.fixture(scope="module")
def client(service: JobService) -> Iterator[Client]:
    with served(service) as made:
        yield made


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    """Steps wait until the gate opens, as it does at the end of a test."""
    made, on_step = Gate(), generation_work.on_step

    def held(progress, steps):
        callback = on_step(progress, steps)

        def waiting(*state):
            made.wait()
            return callback(*state)

        return waiting

    for module in (generation_work, edit_work):
        monkeypatch.setattr(module, "on_step", held)
    yield made
    made.open()


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("training") / "runs"
    (folder / "teacher" / "samples").mkdir(parents=True)
    lines = [json.dumps({"step": s, "loss": 2 / (1 + s / 100)}) for s in range(0, 1000, 20)]
    (folder / "teacher" / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture(scope="module")
def port(runs: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """Of a server with the bundled model, a tiny one and the page."""
    from serve.test_command import running

    place = tmp_path_factory.mktemp("tmp")
    other = tiny.pipeline(tmp_path_factory.mktemp("other"))
    words = ["--checkpoint", "lpc-64", "--checkpoint", str(other), "--runs", str(runs)]
    with running(place, *words) as (_, port):
        client, until = Client(port, {}), time.monotonic() + 180
        while client("GET", "/page/").status != 200:
            assert time.monotonic() < until
            time.sleep(0.2)
        yield port


@pytest.fixture(scope="module")
def browser() -> Iterator["Browser"]:
    from serve.browsing import CHROMIUM, sync_api

    with sync_api.sync_playwright() as playwright:
        nowhere = "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"
        made = playwright.chromium.launch(executable_path=CHROMIUM, args=[nowhere])
        yield made
        made.close()


@pytest.fixture
def open_page(browser: "Browser", port: int) -> Iterator["Visitors"]:
    """Opens the page; in the end nothing may have left for another host, and no script failed."""
    from serve.browsing import Visitors

    visitors = Visitors(browser, port)
    yield visitors
    visitors.close()
    assert not visitors.wrong
