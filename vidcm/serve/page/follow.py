"""Jobs that a page shows: made from what was entered, and followed to their end."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, TypeVar

from pydantic import BaseModel

from vidcm.errors import VidcmError
from vidcm.serve.bodies import Body, as_request
from vidcm.serve.jobs import Job, UnknownJob
from vidcm.serve.service import JobService

POLL_SECONDS = 0.15
MAX_LISTED = 32

Listed = list[list[str]]  # id and title of each job; what a browser remembers over a reload
Drawing = Callable[[Sequence[tuple[str, Job | None]]], str]
Maker = tuple[str, Callable[[], Job]]  # the title of a job, and what queues it
RequestModel = TypeVar("RequestModel", bound=BaseModel)


def request(kind: type[RequestModel], **fields: Any) -> RequestModel:
    """A request of what was entered; empty fields are left out. Raises BadField."""
    entered = {name: value for name, value in fields.items() if value not in (None, "", [])}
    return as_request(kind, Body(entered, False, []))


def remembered(listed: Any) -> Listed:
    """What a browser says that it shows, as far as it may be true."""
    pairs = listed if isinstance(listed, list) else []
    pairs = [pair for pair in pairs if isinstance(pair, list) and len(pair) == 2]
    return [[str(name)[:64], str(title)[:200]] for name, title in pairs[:MAX_LISTED]]


def jobs_of(service: JobService, listed: Any) -> list[tuple[str, Job | None]]:
    """The jobs that a browser shows, by title; None for those that are no longer there."""
    found: list[tuple[str, Job | None]] = []
    for name, title in remembered(listed):
        try:
            found.append((title, service.get(name)))
        except UnknownJob:
            found.append((title, None))
    return found


async def follow(
    service: JobService, listed: Any, draw: Drawing
) -> AsyncIterator[tuple[str, bool]]:
    """The picture of jobs whenever it changes, and whether one of them still goes on."""
    jobs, last = jobs_of(service, listed), None
    while True:
        going = any(job is not None and not job.done.is_set() for _, job in jobs)
        if (drawn := draw(jobs)) != last or not going:
            last = drawn
            yield drawn, going
        if not going:
            return
        await asyncio.sleep(POLL_SECONDS)


def submit(service: JobService, makers: Sequence[Maker]) -> Listed:
    """Queue jobs, all of them or none. Raises VidcmError as the service does."""
    made: list[tuple[str, Job]] = []
    try:
        for title, make in makers:
            made.append((title, make()))
    except VidcmError:
        for _, job in made:
            service.delete(job)
        raise
    return [[job.id, title] for title, job in made]


def cancel(service: JobService, listed: Any) -> None:
    """Stop what is shown and not finished."""
    for _, job in jobs_of(service, listed):
        if job is not None and not job.done.is_set():
            service.cancel(job)
