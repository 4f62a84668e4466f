"""Where the page hangs on the application, and what stands there until gradio is imported."""

import asyncio
import logging
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from fastapi import FastAPI
from fastapi.responses import (
    HTMLResponse,
    JSONResponse,
    PlainTextResponse,
    RedirectResponse,
    Response,
)
from starlette.datastructures import MutableHeaders
from starlette.types import Message, Receive, Scope, Send

from vidcm.serve.page.events import checked

log = logging.getLogger(__name__)

PATH = "/page"
MAX_PATH = 250  # longer ones are no names of files, and gradio fails on them
EVENTS = f"{PATH}/gradio_api/queue/join"
# What the page needs of gradio; its file server, proxy and sign-in are out of reach.
NEEDED = tuple(
    PATH + path
    for path in (
        "/assets/",
        "/static/",
        "/svelte/",
        "/config",
        "/theme.css",
        "/gradio_api/queue/",
        "/gradio_api/startup-events",
        "/gradio_api/heartbeat/",
        "/gradio_api/upload",
        "/gradio_api/cancel",
        "/gradio_api/reset",
        "/gradio_api/info",
        "/gradio_api/app_id",
    )
)
# Browsers load nothing from elsewhere, whatever gradio's files ask for. Its templates need eval.
POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; "
    "style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; media-src 'self' data: blob:; "
    "font-src 'self' data:; worker-src 'self' blob:; object-src 'none'; frame-ancestors 'none'; "
    "base-uri 'self'; form-action 'self'"
)
WAITING = """<!doctype html><html lang="en"><meta charset="utf-8"><title>vidcm</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="refresh" content="1"><meta name="color-scheme" content="light dark">
<style>body { font-family: system-ui, sans-serif; margin: 4rem auto; max-width: 40rem }</style>
<h1>vidcm</h1><p>The page is being prepared; the API answers already.</p></html>"""


class Page:
    """The page as an ASGI application; until it is built, a line that asks again by itself.

    Args:
        build: Makes the application, with its routes below `PATH`; called in a thread of its own.
        uploads: Folder of the files that it keeps of browsers.
    """

    def __init__(self, build: Callable[[], FastAPI], uploads: Path):
        self._build, self._uploads = build, uploads
        self._app: FastAPI | None = None
        self._failed = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._app is None:
            if self._failed:
                text = "the page could not be built; the log of the server says why"
                return await PlainTextResponse(text, 500)(scope, receive, send)
            return await HTMLResponse(WAITING, 503, {"retry-after": "1"})(scope, receive, send)
        path = scope["path"]
        known = path in (PATH, f"{PATH}/") or path.startswith(NEEDED)
        if not known or len(path) > MAX_PATH:
            return await PlainTextResponse("there is no such page", 404)(scope, receive, send)
        if path == EVENTS:
            receive = await checked(scope, receive, self._uploads)
        scope = {**scope, "root_path": scope.get("root_path", "").removesuffix(PATH)}
        await self._app(scope, receive, _closed(send))

    async def run(self) -> None:
        """Build the page, and keep it until cancelled."""
        try:
            app = await _in_daemon(self._build)
            async with app.router.lifespan_context(app):
                self._app = app
                await asyncio.Event().wait()
        except Exception:
            self._failed = True
            log.exception("the page could not be built")


def mount_page(app: FastAPI, build: Callable[[], FastAPI], uploads: Path) -> None:
    """Mount a page on an application; `/` leads to it.

    Args:
        app: Of `create_app`, not started yet.
        build: As `Page` takes it.
        uploads: As `Page` takes it.
    """
    page, lifespan = Page(build, uploads), app.router.lifespan_context

    @asynccontextmanager
    async def with_page(app: FastAPI) -> AsyncIterator[None]:
        async with lifespan(app):
            task = asyncio.create_task(page.run())
            try:
                yield
            finally:
                task.cancel()
                await asyncio.wait([task])

    app.router.lifespan_context = with_page

    @app.get("/", include_in_schema=False)
    def to_page() -> RedirectResponse:
        return RedirectResponse(f"{PATH}/")

    @app.get("/manifest.json", include_in_schema=False)
    def manifest() -> JSONResponse:  # gradio's page names it
        return JSONResponse({"name": "vidcm", "start_url": f"{PATH}/"})

    @app.get("/favicon.ico", include_in_schema=False)
    def icon() -> Response:
        return Response(status_code=204)

    app.mount(PATH, page)


def _closed(send: Send) -> Send:
    """`send` without leave for pages of other servers, and with `POLICY`."""

    async def sent(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            for name in [name for name in headers if name.startswith("access-control-")]:
                del headers[name]
            headers["content-security-policy"] = POLICY
            headers["referrer-policy"] = "no-referrer"
        await send(message)

    return sent


async def _in_daemon(build: Callable[[], FastAPI]) -> FastAPI:
    """The result of a function, from a thread that the end of the process does not wait for."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[FastAPI] = loop.create_future()

    def settle(settled: Callable[[], None]) -> None:
        if not done.done():
            settled()

    def call() -> None:
        try:
            app = build()
        except BaseException as error:  # noqa: B036 it is raised again by who waits
            outcome = error
            report = lambda: settle(lambda: done.set_exception(outcome))  # noqa: E731
        else:
            report = lambda: settle(lambda: done.set_result(app))  # noqa: E731
        if not loop.is_closed():
            loop.call_soon_threadsafe(report)

    threading.Thread(target=call, name="vidcm-page", daemon=True).start()
    return await done
