"""What the API answers, in the form of OpenAI's videos API with further fields."""

from typing import Any, Literal

from pydantic import BaseModel, Field

from vidcm.serve.jobs import Job


class ErrorDetail(BaseModel):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorReply(BaseModel):
    """Any failure."""

    error: ErrorDetail


class JobError(BaseModel):
    code: str
    message: str


class Video(BaseModel):
    """A job, and what came of it. It lives in memory and does not survive a restart."""

    id: str
    object: Literal["video"] = "video"
    kind: Literal["generation", "edit"]
    model: str
    status: Literal["queued", "in_progress", "completed", "failed", "cancelled"]
    progress: int = Field(ge=0, le=100, description="Percent.")
    stage: str = Field(description="queued, text, read, denoise, decode or write.")
    step: int = Field(description="Sampling steps that are done.")
    steps: int = Field(description="Sampling steps in all; 0 before the first.")
    created_at: int
    completed_at: int | None
    expires_at: int | None = Field(description="When a finished job is forgotten, at the latest.")
    error: JobError | None
    prompt: str
    task: str | None = Field(description="Of an edit.")
    size: str = Field(description="Width x height that the model makes.")
    seconds: str = Field(description="Length of the clip.")
    num_frames: int | None = Field(description="Of an edit, once it is completed.")
    fps: float
    num_inference_steps: int
    guidance_scale: float
    seed: int
    seeds: list[int]
    num_videos: int = Field(description="Clips of the result; `index` of its content.")
    understood_as: str | None = Field(description="The prompt as completed for the model.")
    warnings: list[str]
    evaluations: int | None = Field(description="Network evaluations per clip.")
    batch_size: int | None = Field(description="Jobs that were made in the same forward.")
    timings: dict[str, float] | None = Field(
        description="Seconds in the queue and by stage; text, denoise and decode are of the batch."
    )
    remixed_from_video_id: str | None


class VideoList(BaseModel):
    object: Literal["list"] = "list"
    data: list[Video]
    first_id: str | None
    last_id: str | None
    has_more: bool


class DeletedVideo(BaseModel):
    id: str
    object: Literal["video.deleted"] = "video.deleted"
    deleted: bool = True


class Model(BaseModel):
    id: str
    object: Literal["model"] = "model"
    created: int = 0
    owned_by: str = "vidcm"
    size: str
    num_frames: int
    fps: float
    num_inference_steps: int
    guidance_scale: float


class ModelList(BaseModel):
    object: Literal["list"] = "list"
    data: list[Model]


class Health(BaseModel):
    status: Literal["ok"] = "ok"
    models: list[str]
    waiting: int
    jobs_survive_restart: Literal[False] = False


def reply_of(job: Job) -> Video:
    """A job as the API shows it."""
    # The status is read first: the service sets it last.
    status, work, result = job.status, job.work, job.result
    facts: dict[str, Any] = dict(work.facts)
    frames, fps = facts.pop("num_frames"), facts.pop("fps")
    timings = None
    if result is not None:
        frames, fps = result.frames.shape[1], result.fps
        waited = (job.started_at or job.created_at) - job.created_at
        timings = {"queue": waited, **result.seconds}
        timings = {stage: round(seconds, 4) for stage, seconds in timings.items()}
    captions = list(result.captions) if result else []
    changed = bool(captions) and captions[0] != facts["prompt"]
    return Video(
        id=job.id,
        kind=work.kind,
        model=work.model,
        status=status,
        progress=job.progress,
        stage=job.stage,
        step=job.step,
        steps=job.steps,
        created_at=int(job.created_at),
        completed_at=_whole(job.completed_at),
        expires_at=_whole(job.expires_at),
        error=JobError(code=job.error[0], message=job.error[1]) if job.error else None,
        task=facts.pop("task", None),
        remixed_from_video_id=facts.pop("remixed_from_video_id", None),
        seconds=f"{frames / fps:g}" if frames else "",
        num_frames=frames,
        fps=fps,
        seed=work.seeds[0],
        seeds=list(work.seeds),
        num_videos=len(result.frames) if result else 0,
        understood_as=captions[0] if changed else None,
        warnings=[*work.warnings, *(result.notes if result else [])],
        evaluations=result.evaluations if result else None,
        batch_size=result.batch_size if result else None,
        timings=timings,
        **facts,
    )


def _whole(seconds: float | None) -> int | None:
    return None if seconds is None else int(seconds)
