"""Fixtures of every test: outside data or a reasoned skip, one thread, one seed, no network."""

import atexit
import ipaddress
import os
import random
import shutil
import signal
import socket
import sys
import tempfile
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

if TYPE_CHECKING:
    from vidcm.lpc.dataset import LPC

# Before torch is imported, and inherited by every subprocess: ranks and tests share few cores.
os.environ["OMP_NUM_THREADS"] = "1"
# Probes of videos and copies of remote files stay out of the user's own cache.
os.environ["VIDCM_CACHE"] = tempfile.mkdtemp(prefix="vidcm-tests-")
atexit.register(shutil.rmtree, os.environ["VIDCM_CACHE"], ignore_errors=True)
# What a subprocess sends to the network meets a closed door too (port 9 discards).
os.environ.update(
    dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), "http://127.0.0.1:9"),
    no_proxy="localhost,127.0.0.1",
    HF_HUB_OFFLINE="1",
)
# Code that comes with a model folder is copied there before it runs; each process has its own.
_modules = tempfile.TemporaryDirectory(prefix="vidcm-modules-")
os.environ["HF_MODULES_CACHE"] = _modules.name

# A suite started in the background of a script ignores Ctrl-C, and so would what it starts.
signal.signal(signal.SIGINT, signal.default_int_handler)

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """The processes of `-n auto`: one for each core that this process may use, at most 8."""
    return min(len(os.sched_getaffinity(0)), 8)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skips the tests marked `timm` where it cannot be imported, as beside another torchvision."""
    marked = [item for item in items if item.get_closest_marker("timm")]
    try:
        if marked:
            import_module("timm")
    except (ImportError, RuntimeError) as error:
        reason = f"timm does not import ({error}): pip install -e '.[timm]' with its own torch"
        for item in marked:
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real art and footage: VIDCM_DATA, else `../shared/data` beside the clone."""
    return _outside("VIDCM_DATA", SHARED)


@pytest.fixture(scope="session")
def lpc_art() -> Path:
    """The Liberated Pixel Cup layers: VIDCM_LPC_ART, else `lpc/lpc_layers.tar` of shared_data."""
    folder = Path(os.environ.get("VIDCM_DATA") or SHARED)
    return _outside("VIDCM_LPC_ART", folder / "lpc" / "lpc_layers.tar")


@pytest.fixture(scope="session")
def puppets(tmp_path_factory: pytest.TempPathFactory) -> "LPC":
    """The LPC task over drawn rectangles, with a small vocabulary."""
    from puppets import theatre

    return theatre(tmp_path_factory.mktemp("art"))


@pytest.fixture(scope="session")
def small_art(lpc_art: Path) -> "LPC":
    """The LPC task over the real art, with a small vocabulary."""
    from puppets import small

    from vidcm.lpc.dataset import LPC

    return small(LPC(lpc_art))


def _outside(variable: str, default: Path) -> Path:
    path = Path(os.environ.get(variable) or default)
    if path.exists():
        return path
    reason = f"{path} is not there; point {variable} at it"
    if os.environ.get("CI") == "true":
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Each test starts from the same generators, whatever ran before it."""
    random.seed(0)
    np.random.seed(0)
    if torch := sys.modules.get("torch"):  # a test that has not imported it need not wait for it
        torch.manual_seed(0)
        torch.set_num_threads(1)


class NetworkRefused(RuntimeError):
    """Not an OSError: code that copes with being offline must not hide that it tried."""


@pytest.fixture(scope="session", autouse=True)
def offline() -> Iterator[None]:
    """Refuses connections and look-ups that leave this machine, so a passing suite needs none."""

    def guarded(function, position):  # `position` of the address among the arguments
        def call(*args, **options):
            target = args[position]
            host = target[0] if isinstance(target, tuple) else target
            if not _is_local(host):
                raise NetworkRefused(f"a test tried to reach {target!r}")
            return function(*args, **options)

        return call

    with pytest.MonkeyPatch.context() as patch:
        for name in ("connect", "connect_ex"):
            patch.setattr(socket.socket, name, guarded(getattr(socket.socket, name), 1))
        patch.setattr(socket.socket, "sendto", guarded(socket.socket.sendto, -1))
        patch.setattr(socket, "getaddrinfo", guarded(socket.getaddrinfo, 0))
        yield


def _is_local(host: str | bytes | None) -> bool:
    """True for loopback, this machine's own name, wildcard addresses and Unix socket paths."""
    if host is None or host in ("", "localhost", socket.gethostname()):
        return True
    name = os.fsdecode(host)
    if name.startswith(("/", "\0")):
        return True
    try:
        address = ipaddress.ip_address(name)
    except ValueError:
        return False
    return address.is_loopback or address.is_unspecified
