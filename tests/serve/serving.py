"""A server in a thread, and a client of few words."""

import http.client
import json
import secrets
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastapi import FastAPI

from vidcm.serve.app import create_app
from vidcm.serve.checkpoints import Checkpoint
from vidcm.serve.credentials import Credentials
from vidcm.serve.limits import ServeLimits
from vidcm.serve.page.mount import mount_page
from vidcm.serve.server import bind, make_server
from vidcm.serve.service import JobService

LOCAL = frozenset({"127.0.0.1", "localhost"})


def service_of(folder: Path, **limits: Any) -> JobService:
    """A service of one pipeline folder, on the CPU."""
    bounds = ServeLimits(**limits)
    return JobService([Checkpoint.load(str(folder), bounds, "cpu")], bounds)


@dataclass
class Answer:
    """Status, headers and body of a response."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> dict[str, Any]:
        return self.json()["error"]


@dataclass
class Client:
    """HTTP requests to a local port, one connection each."""

    port: int
    headers: Mapping[str, str]

    def __call__(
        self, method: str, path: str, body: Any = None, headers: Mapping[str, str] | None = None
    ) -> Answer:
        """Send a request; a body that is not bytes goes as JSON."""
        sent = {**self.headers, **(headers or {})}
        if body is not None and not isinstance(body, bytes):
            body = json.dumps(body).encode()
            sent = {"content-type": "application/json", **sent}
        link = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            link.request(method, path, body, sent)
            found = link.getresponse()
            return Answer(found.status, dict(found.getheaders()), found.read())
        finally:
            link.close()

    def form(self, path: str, fields: Mapping[str, str], files: list[tuple[str, bytes]] = []):  # noqa: B006
        """Post a form with files."""
        boundary = secrets.token_hex(8)
        parts = [(f'name="{name}"', value.encode()) for name, value in fields.items()]
        parts += [(f'name="{name}"; filename="../../{name}"', data) for name, data in files]
        body = b"".join(
            f"--{boundary}\r\ncontent-disposition: form-data; {head}\r\n\r\n".encode()
            + data
            + b"\r\n"
            for head, data in parts
        )
        kind = {"content-type": f"multipart/form-data; boundary={boundary}"}
        return self("POST", path, body + f"--{boundary}--\r\n".encode(), kind)

    def connect(self) -> socket.socket:
        """A bare connection."""
        return socket.create_connection(("127.0.0.1", self.port), timeout=30)


@contextmanager
def served(
    service: JobService,
    credentials: Credentials | None = None,
    headers: Mapping[str, str] | None = None,
    page: Callable[[Path], FastAPI] | None = None,
) -> Iterator[Client]:
    """Serve a service, and a page that is built beside it, in a thread of this process."""
    listener = bind("127.0.0.1", 0)
    app = create_app(service, credentials, LOCAL)
    if page is not None:
        uploads = service.private_folder()
        mount_page(app, lambda: page(uploads), uploads)
    server = make_server(app, service)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        yield Client(listener.getsockname()[1], headers or {})
    finally:
        server.should_exit = True
        thread.join(30)
        assert not thread.is_alive()
