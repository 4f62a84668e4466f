"""The layer before every page and endpoint: who may ask, how much, and how slowly."""

import asyncio
from contextlib import suppress
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from fastapi.responses import JSONResponse
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from vidcm.serve.credentials import Credentials

RECEIVE_SECONDS = 15.0  # without a byte of a body that was announced
BODY_SECONDS = 300.0  # for a whole body
SEND_SECONDS = 60.0  # in which a client takes what was sent to it
OPEN = ("/health",)  # without credentials
UNSAFE = ("POST", "PUT", "PATCH", "DELETE")


def error_body(message: str, kind: str, code: str | None = None, param: str | None = None) -> Any:
    """An error as OpenAI's API has it."""
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


@dataclass(frozen=True)
class Guard:
    """ASGI middleware that refuses requests before anything of them is read.

    Attributes:
        app: What it guards.
        max_upload: Bytes of a request's body.
        credentials: Who may ask; None for everybody.
        hosts: Names that the Host header may have, against web pages that have their own name point
            here; None for any.
    """

    app: ASGIApp
    max_upload: int
    credentials: Credentials | None = None
    hosts: frozenset[str] | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            return await self.app(scope, receive, send)
        if scope["type"] != "http":
            return await send({"type": "websocket.close", "code": 1008})
        refusal = self._refusal(scope)
        if refusal is not None:
            return await refusal(scope, receive, send)
        if scope["method"] == "HEAD":  # uvicorn knows, and leaves out the body
            scope = {**scope, "method": "GET"}
        with suppress(ClientDisconnect):  # in the middle of its body; nobody reads an answer
            await self.app(scope, _Body(receive, self.max_upload), _Patient(send))

    def _refusal(self, scope: Scope) -> JSONResponse | None:
        headers = Headers(scope=scope)
        host, origin = headers.get("host", ""), headers.get("origin")
        if self.hosts is not None and _name(host) not in self.hosts:
            return _refuse(403, f"this server does not answer to the name {_name(host)[:100]!r}")
        # Browsers let any page post forms to any server; they do say which page it was.
        if origin is not None and scope["method"] in UNSAFE and _netloc(origin) != host:
            return _refuse(403, "requests from pages of other servers are refused")
        if self.credentials is not None and scope["path"] not in OPEN:
            if not self.credentials.admit(headers.get("authorization", "")):
                challenge = {"www-authenticate": 'Basic realm="vidcm", charset="UTF-8"'}
                return _refuse(401, "wrong or missing credentials", "invalid_api_key", challenge)
        length = headers.get("content-length", "0")
        if length.isdecimal() and int(length) > self.max_upload:
            return _refuse(413, _too_large(self.max_upload))
        return None


class _Body:
    """`receive` of a request, bounded in bytes and time while its body comes."""

    def __init__(self, receive: Receive, max_bytes: int):
        self._receive, self._left, self._max, self._open = receive, max_bytes, max_bytes, True
        self._until = asyncio.get_running_loop().time() + BODY_SECONDS

    async def __call__(self) -> Message:
        if not self._open:  # what comes now is the end of the connection
            return await self._receive()
        now = asyncio.get_running_loop().time()
        try:
            seconds = min(RECEIVE_SECONDS, self._until - now)
            message = await asyncio.wait_for(self._receive(), seconds)
        except TimeoutError:
            raise HTTPException(
                408, "the body did not come in time", {"connection": "close"}
            ) from None
        self._open = message.get("more_body", False)
        self._left -= len(message.get("body", b""))
        if self._left < 0:
            raise HTTPException(413, _too_large(self._max), {"connection": "close"})
        return message


class _Patient:
    """`send` of a response, to a client that must take it in time."""

    def __init__(self, send: Send):
        self._send = send

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            headers["x-content-type-options"] = "nosniff"
        try:
            await asyncio.wait_for(self._send(message), SEND_SECONDS)
        except TimeoutError:
            raise ConnectionError("the client does not take the response") from None


def _refuse(
    status: int, message: str, code: str | None = None, headers: dict[str, str] | None = None
) -> JSONResponse:
    body = error_body(message, "invalid_request_error", code)
    return JSONResponse(body, status, {"connection": "close", **(headers or {})})


def _too_large(most: int) -> str:
    return f"the request is larger than {most} bytes"


def _netloc(origin: str) -> str:
    """The host in an Origin header; nothing where it is no URL."""
    try:
        return urlsplit(origin).netloc
    except ValueError:  # brackets without an address
        return ""


def _name(host: str) -> str:
    """The name in a Host header, without its port; nothing where it is none."""
    try:
        return (urlsplit(f"//{host}").hostname or "") if host.isprintable() else ""
    except ValueError:  # brackets without an address
        return ""
