"""Events that browsers send to the page: files in them are those that were uploaded, no others.

For a component that takes files, and for any other, gradio would fetch a URL that an event names,
and an application that is mounted, as ours is, would let an event name any file of this machine.
"""

import json
from pathlib import Path
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.types import Message, Receive, Scope

MAX_DEPTH = 50


async def checked(scope: Scope, receive: Receive, uploads: Path) -> Receive:
    """`receive` of an event, read and checked.

    Args:
        scope: Of the request.
        receive: Of the request.
        uploads: The folder that uploaded files lie in.

    Raises:
        HTTPException: It is no JSON, or names a file that was not uploaded.
    """
    try:
        event = json.loads(await Request(scope, receive).body())
    except (ValueError, RecursionError):
        raise HTTPException(400, "the event is no JSON") from None
    _check(event, uploads.resolve(), MAX_DEPTH)
    body, sent = json.dumps(event).encode(), False

    async def again() -> Message:
        nonlocal sent
        if sent:  # what comes now is the end of the connection
            return await receive()
        sent = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again


def _check(value: Any, uploads: Path, depth: int) -> None:
    if depth == 0:
        raise HTTPException(400, "the event is nested too deeply")
    if isinstance(value, list):
        for item in value:
            _check(item, uploads, depth - 1)
    elif isinstance(value, dict):
        if "path" in value and not _is_upload(value["path"], uploads):
            raise HTTPException(400, "the event names a file that was not uploaded")
        for item in value.values():
            _check(item, uploads, depth - 1)


def _is_upload(path: Any, uploads: Path) -> bool:
    try:
        found = Path(path).resolve(strict=True)
    except (TypeError, ValueError, OSError):
        return False
    return found.is_file() and found.is_relative_to(uploads)
