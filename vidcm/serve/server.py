"""Listening: uvicorn with deadlines for connections that say nothing, and an end without rests."""

import asyncio
import socket
from typing import TYPE_CHECKING

import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

from vidcm.errors import VidcmError

if TYPE_CHECKING:
    from vidcm.serve.service import JobService

HEADER_SECONDS = 10.0  # from a connection, or the last answer on it, to the headers of a request
IDLE_SECONDS = 5
GRACE_SECONDS = 5  # for answers under way when the server stops
MAX_CONNECTIONS = 512


class ImpatientProtocol(H11Protocol):
    """HTTP/1.1 that hangs up on clients whose headers do not come."""

    _deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # pyright: ignore
        super().connection_made(transport)
        self._expect_headers()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._expect_headers()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._expect_headers()

    def connection_lost(self, exc: Exception | None) -> None:
        self._forget()
        super().connection_lost(exc)

    def _expect_headers(self) -> None:
        """Start the clock where no request is under way; it runs on while headers come slowly."""
        if self.cycle is not None and not self.cycle.response_complete:
            self._forget()
        elif self._deadline is None:
            self._deadline = self.loop.call_later(HEADER_SECONDS, self.transport.abort)

    def _forget(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None


class _Server(uvicorn.Server):
    """A server whose jobs stop before it waits for answers under way."""

    def __init__(self, config: uvicorn.Config, service: "JobService"):
        super().__init__(config)
        self._service = service

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._service.stop()
        await super().shutdown(sockets)


def bind(host: str, port: int) -> socket.socket:
    """A listening socket. Raises VidcmError where the address is taken or not ours."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=128)
    except (OSError, OverflowError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise VidcmError(
            f"cannot listen on {host}:{port}: {reason}; give another --host or --port"
        ) from None


def make_server(app: FastAPI, service: "JobService") -> uvicorn.Server:
    """The server of an application.

    Its `run(sockets=[listener])` serves until SIGINT or SIGTERM, which is raised again once all
    answers are out, or until `should_exit` is set.

    Args:
        app: Of `create_app`.
        service: Its service; the caller closes it.
    """
    config = uvicorn.Config(
        app,
        http=ImpatientProtocol,
        ws="none",
        loop="asyncio",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        limit_concurrency=MAX_CONNECTIONS,
        timeout_keep_alive=IDLE_SECONDS,
        timeout_graceful_shutdown=GRACE_SECONDS,
    )
    return _Server(config, service)
