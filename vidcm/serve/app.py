"""The HTTP API: OpenAI's videos form over a service of jobs."""

import asyncio
from collections.abc import Callable
from typing import Annotated, Any, Literal

from fastapi import FastAPI, Path, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.routing import Match, Route

from vidcm.errors import UsageError, VidcmError
from vidcm.serve.bodies import BadField, as_request, keep_files, read_body
from vidcm.serve.credentials import Credentials
from vidcm.serve.guard import Guard, error_body
from vidcm.serve.jobs import Job, NotReady, QueueFull, UnknownJob
from vidcm.serve.openapi import describe, failures, request_body
from vidcm.serve.ranges import ranged
from vidcm.serve.replies import DeletedVideo, Health, Model, ModelList, Video, VideoList, reply_of
from vidcm.serve.requests import EditRequest, VideoRequest
from vidcm.serve.result_files import MEDIA_TYPES, Variant
from vidcm.serve.service import JobService
from vidcm.version import __version__

POLL_SECONDS = 0.05  # between two looks at a job that a client waits for
VIDEO_FILES = {"input_reference": 1}
EDIT_FILES = {"video": 2, "mask": 1}
GONE = 499  # a client that left; nobody reads the answer

VideoId = Annotated[str, Path(max_length=64, description="As POST /v1/videos answered.")]


def create_app(
    service: JobService, credentials: Credentials | None = None, hosts: frozenset[str] | None = None
) -> FastAPI:
    """The application over a service. A page may be mounted on it: the guard is before both.

    Args:
        service: What makes the clips; the caller closes it.
        credentials: Who may ask; None for everybody.
        hosts: Names that the Host header may have; None for any.
    """
    app = FastAPI(
        title="vidcm",
        version=__version__,
        description="Video consistency models: jobs that make and edit clips. Jobs live in memory: "
        "they do not survive a restart, and finished ones are kept for a while only.",
        docs_url=None,  # its scripts come from elsewhere
        redoc_url=None,
        openapi_url="/openapi.json",
    )
    app.add_middleware(
        Guard, max_upload=service.limits.max_upload, credentials=credentials, hosts=hosts
    )
    _add_failures(app)
    _add_videos(app, service)
    _add_facts(app, service)
    describe(app, credentials is not None)
    return app


def _add_videos(app: FastAPI, service: JobService) -> None:
    async def submitted(request: Request) -> Job:
        body = await read_body(request)
        wanted = as_request(VideoRequest, body)
        files = await keep_files(service, body, VIDEO_FILES)
        return await run_in_threadpool(service.generate, wanted, *files)

    async def submitted_edit(request: Request) -> Job:
        body = await read_body(request)
        wanted = as_request(EditRequest, body)
        files = await keep_files(service, body, EDIT_FILES)
        videos = [file for file in files if file.label == "video"]
        mask = next((file for file in files if file.label == "mask"), None)
        return await run_in_threadpool(service.edit, wanted, videos, mask)

    made = request_body(VideoRequest, VIDEO_FILES, service.limits)
    edited = request_body(EditRequest, EDIT_FILES, service.limits)
    refusals = failures(400, 404, 408, 409, 413, 429, 503)

    @app.post("/v1/videos", responses=refusals, openapi_extra=made)
    async def create_video(request: Request) -> Video:
        """Queue a clip from a prompt, or from a prompt and its first frame."""
        return reply_of(await submitted(request))

    @app.post("/v1/videos/edits", responses=refusals, openapi_extra=edited)
    async def create_edit(request: Request) -> Video:
        """Queue an edit of one or two clips, or a task without any."""
        return reply_of(await submitted_edit(request))

    at_once = refusals | failures(500) | _file("video")

    @app.post("/v1/videos/sync", responses=at_once, response_class=Response, openapi_extra=made)
    async def create_video_sync(request: Request) -> Response:
        """Make a clip and answer with its mp4; it is cancelled when the client leaves."""
        job = await submitted(request)
        return await _awaited(service, job, request)

    @app.get("/v1/videos", responses=failures(400))
    def list_videos(
        limit: Annotated[int, Query(ge=1, le=100)] = 20,
        after: Annotated[str, Query(max_length=64)] = "",
        order: Literal["asc", "desc"] = "desc",
    ) -> VideoList:
        """Jobs that are there, newest first."""
        jobs = service.jobs() if order == "asc" else service.jobs()[::-1]
        places = [place for place, job in enumerate(jobs) if job.id == after]
        rest = jobs[places[0] + 1 :] if places else [] if after else jobs
        data = [reply_of(job) for job in rest[:limit]]
        first, last = (data[0].id, data[-1].id) if data else (None, None)
        return VideoList(data=data, first_id=first, last_id=last, has_more=len(rest) > limit)

    @app.get("/v1/videos/{video_id}", responses=failures(400, 404))
    def retrieve_video(video_id: VideoId, response: Response) -> Video:
        """A job: how far it is, and what came of it."""
        job = service.get(video_id)
        response.headers["openai-poll-after-ms"] = "500"
        return reply_of(job)

    part: dict[int | str, dict[str, Any]] = {206: {"description": "The range that was asked for"}}
    any_file = _file(*MEDIA_TYPES) | part | failures(400, 404, 409, 416)

    @app.get("/v1/videos/{video_id}/content", responses=any_file, response_class=Response)
    def download_video(
        request: Request,
        video_id: VideoId,
        variant: Variant = "video",
        index: Annotated[int, Query(ge=0, le=63, description="Which of its clips.")] = 0,
    ) -> Response:
        """The mp4 of a completed job; or a gif, its first frame, a sprite sheet, png frames."""
        content = service.content(service.get(video_id), variant, index)
        return ranged(content, MEDIA_TYPES[variant], request.headers.get("range", ""))

    @app.post("/v1/videos/{video_id}/cancel", responses=failures(400, 404))
    def cancel_video(video_id: VideoId) -> Video:
        """Stop a job before its next step; finished ones stay as they are."""
        job = service.get(video_id)
        service.cancel(job)
        return reply_of(job)

    @app.delete("/v1/videos/{video_id}", responses=failures(400, 404))
    def delete_video(video_id: VideoId) -> DeletedVideo:
        """Stop a job and forget it."""
        service.delete(service.get(video_id))
        return DeletedVideo(id=video_id)


def _add_facts(app: FastAPI, service: JobService) -> None:
    def model(name: str) -> Model:
        own = service.checkpoints[name].pipe.settings
        return Model(
            id=name,
            size=f"{own.width}x{own.height}",
            num_frames=own.num_frames,
            fps=own.fps,
            num_inference_steps=own.student.num_inference_steps,
            guidance_scale=own.student.guidance_scale,
        )

    @app.get("/v1/models")
    def list_models() -> ModelList:
        """The checkpoints; the first is the default."""
        return ModelList(data=[model(name) for name in service.checkpoints])

    @app.get("/v1/models/{model}", responses=failures(400, 404))
    def retrieve_model(name: Annotated[str, Path(alias="model", max_length=255)]) -> Model:
        """A checkpoint."""
        if name not in service.checkpoints:
            raise UnknownJob(f"there is no model {name!r}; GET /v1/models lists them")
        return model(name)

    @app.get("/health")
    def health() -> Health:
        """That the server answers, and what it has; needs no credentials."""
        waiting = sum(job.status == "queued" for job in service.jobs())
        return Health(models=list(service.checkpoints), waiting=waiting)

    text: dict[int | str, dict[str, Any]] = {
        200: {"content": {"text/plain": {"schema": {"type": "string"}}}}
    }

    @app.get("/metrics", responses=text, response_class=Response)
    def metrics() -> Response:
        """Counters, as Prometheus reads them."""
        return Response(service.metrics.text(), media_type=service.metrics.content_type)


async def _awaited(service: JobService, job: Job, request: Request) -> Response:
    """The mp4 of a job once it is there; the job is cancelled if the client does not wait."""
    try:
        while not job.done.is_set():
            if await request.is_disconnected():
                return Response(status_code=GONE)
            await asyncio.sleep(POLL_SECONDS)
    finally:
        if not job.done.is_set():
            service.cancel(job)
    if job.error is not None:
        code, message = job.error
        status = 400 if code == "invalid_request_error" else 500
        return JSONResponse(error_body(message, code), status)
    if job.result is None:
        raise NotReady(f"{job.id} is {job.status}")
    headers = {"x-video-id": job.id, "x-seed": str(job.work.seeds[0])}
    return Response(job.result.files[0], media_type=MEDIA_TYPES["video"], headers=headers)


def _add_failures(app: FastAPI) -> None:
    """Every failure in one form, and none with anything of this machine in it."""

    def answer(
        status: int, message: str, code: str | None = None, param: str | None = None
    ) -> JSONResponse:
        kind = "invalid_request_error" if status < 500 else "server_error"
        return JSONResponse(error_body(message, kind, code, param), status)

    def http(request: Request, error: HTTPException) -> Response:
        response = answer(error.status_code, str(error.detail))
        response.headers.update(error.headers or {})
        if error.status_code == 405:  # Starlette names the methods of the first route alone
            found = [r for r in app.routes if isinstance(r, Route)]
            found = [r for r in found if r.matches(request.scope)[0] != Match.NONE]
            methods = {method for route in found for method in route.methods or ()}
            if "GET" in methods:  # the guard makes GET of HEAD
                methods.add("HEAD")
            response.headers["allow"] = ", ".join(sorted(methods))
        return response

    def invalid(request: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        name = str(first["loc"][-1])
        return answer(400, f"{name}: {first['msg']}", "invalid_value", name)

    def full(request: Request, error: QueueFull) -> Response:
        response = answer(429, str(error), "queue_full")
        response.headers["retry-after"] = str(error.retry_after)
        return response

    handlers: dict[type[Exception], Callable[[Request, Any], Response]] = {
        HTTPException: http,
        RequestValidationError: invalid,
        QueueFull: full,
        BadField: lambda _, error: answer(400, str(error), error.code, error.param),
        UnknownJob: lambda _, error: answer(404, str(error), "not_found"),
        NotReady: lambda _, error: answer(409, str(error), "not_ready"),
        UsageError: lambda _, error: answer(400, str(error)),
        VidcmError: lambda _, error: answer(503, "the server is about to stop"),
        Exception: lambda _, error: answer(500, "internal error; the server's log says more"),
    }
    for kind, handler in handlers.items():
        app.add_exception_handler(kind, handler)


def _file(*variants: str) -> dict[int | str, dict[str, Any]]:
    """The description of an answer that is a file."""
    kinds = dict.fromkeys(MEDIA_TYPES[variant] for variant in variants)
    schema = {"schema": {"type": "string", "format": "binary"}}
    return {200: {"content": {kind: schema for kind in kinds}, "description": "The file"}}
