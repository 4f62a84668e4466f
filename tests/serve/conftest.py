"""Tiny pipelines behind services and servers, and a gate that holds a step back."""

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import tiny
from serve.serving import Client, served, service_of

from vidcm.serve import edit_work, generation_work
from vidcm.serve.service import JobService


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
