"""Jobs without HTTP: batches, cancelling, bounds, edits, and an end that leaves nothing."""

import os
import time
from pathlib import Path

import numpy as np
import pytest
import tiny
from serve.serving import service_of

from vidcm.errors import UsageError, VidcmError
from vidcm.media.write import write_clip
from vidcm.pipeline import VideoPipeline
from vidcm.registry import TABLE
from vidcm.serve.jobs import Job, NotReady, QueueFull, UnknownJob
from vidcm.serve.requests import EditRequest, VideoReference, VideoRequest
from vidcm.serve.service import JobService
from vidcm.serve.uploads import Upload

PROMPT = "a man walks"
T, H, W = tiny.SIZE.values()


def request(**options) -> VideoRequest:
    return VideoRequest(**{"prompt": PROMPT, "seed": 1, **options})


def waited(job: Job, status: str = "completed") -> Job:
    assert job.done.wait(60)
    assert job.status == status, job.error
    return job


def stepping(job: Job) -> None:
    """Wait until a job is being made."""
    until = time.monotonic() + 30
    while job.status == "queued":
        assert time.monotonic() < until
        time.sleep(0.005)


def upload(service: JobService, tmp_path: Path, frames: int = T, size=(H, W), name="video"):
    clip = np.random.default_rng(0).integers(0, 256, (frames, *size, 3), np.uint8)
    path = write_clip(
        clip,
        tmp_path / f"{Path(name).name}-{frames}.{'png' if frames == 1 else 'mp4'}",
        fps=8,
        overwrite=True,
    )
    return service.receive([path.read_bytes()], name)


def test_waiting_requests_are_made_in_one_forward_and_are_the_clips_they_are_alone(gate):
    with service_of(Path("lpc-64")) as service:
        first = service.generate(request(num_inference_steps=1))
        stepping(first)
        prompts = ["a woman walks left", "an orc slashes", "a man in golden armor falls down"]
        jobs = [
            service.generate(request(prompt=prompt, seed=seed, num_inference_steps=2))
            for seed, prompt in enumerate(prompts)
        ]
        gate.open()
        assert [waited(job).result.batch_size for job in [first, *jobs]] == [1, 3, 3, 3]
        pipe = service.checkpoints["lpc-64"].pipe
        for seed, (prompt, job) in enumerate(zip(prompts, jobs, strict=True)):
            alone = pipe(prompt, seed=seed, num_inference_steps=2)
            off = np.abs(job.result.frames.astype(int) - alone.frames)
            assert off.max() <= 1 and alone.captions == job.result.captions
            assert job.result.captions[0] != prompt  # completed, and said so


def test_what_one_forward_cannot_share_is_made_apart(service, gate):
    first = service.generate(request())
    stepping(first)
    others = [
        {"num_inference_steps": 3},
        {"guidance_scale": 2.0},
        {"negative_prompt": "a dog", "guidance_scale": 2.0},
        {"num_frames": T + 4},
        {"size": f"{W}x{H + 16}"},
        {"use_teacher": True, "num_inference_steps": 2},
    ]
    jobs = [service.generate(request(seed=n, **other)) for other in others for n in (1, 2)]
    gate.open()
    for job in jobs:
        assert waited(job).result.batch_size == 2
    shapes = [job.result.frames.shape for job in jobs[6:10:2]]
    assert shapes == [(1, T + 4, H, W, 3), (1, T, H + 16, W, 3)]


def test_a_batch_is_bounded(folder, gate):
    with service_of(folder, max_batch=2) as service:
        stepping(service.generate(request()))
        jobs = [service.generate(request(seed=n)) for n in range(3)]
        gate.open()
        assert [waited(job).result.batch_size for job in jobs] == [2, 2, 1]


def test_seeds_that_are_not_given_are_drawn_and_said(service):
    jobs = [service.generate(VideoRequest(prompt=PROMPT)) for _ in range(2)]
    one, two = (waited(job) for job in jobs)
    assert one.work.seeds != two.work.seeds
    again = waited(service.generate(request(seed=one.work.seeds[0])))
    assert np.abs(again.result.frames.astype(int) - one.result.frames).max() <= 1
    assert (one.result.frames != two.result.frames).any()


def test_a_job_that_waits_is_cancelled_at_once_and_one_that_runs_before_its_next_step(
    service, gate
):
    running = service.generate(request(num_inference_steps=90))
    stepping(running)
    waiting = service.generate(request(num_inference_steps=3))
    service.cancel(waiting)
    assert waiting.status == "cancelled" and waiting.done.is_set()
    service.cancel(running)
    gate.open()
    assert waited(running, "cancelled").step == 1
    waited(service.generate(request()))  # the service goes on


def test_one_of_a_batch_is_cancelled_and_the_others_are_made(service, gate):
    stepping(service.generate(request()))
    jobs = [service.generate(request(seed=n)) for n in range(3)]
    gate.let(2)  # the two steps of the first
    stepping(jobs[0])
    service.cancel(jobs[1])
    gate.open()
    for job, status in zip(jobs, ["completed", "cancelled", "completed"], strict=True):
        waited(job, status)
    with pytest.raises(NotReady, match="is cancelled"):
        service.content(jobs[1])


def test_progress_counts_steps_and_names_stages(service, gate):
    job = service.generate(request(num_inference_steps=4))
    stepping(job)
    assert job.stage in ("start", "text") and job.progress < 10
    gate.open()
    waited(job)
    assert (job.step, job.steps, job.progress) == (4, 4, 100)
    assert set(job.result.seconds) == {"text", "denoise", "decode", "write"}


def test_a_full_queue_refuses_and_says_when(folder, gate):
    with service_of(folder, max_queue=2) as service:
        stepping(service.generate(request()))
        for _ in range(2):
            service.generate(request())
        with pytest.raises(QueueFull, match="2 jobs wait already; try again in") as refusal:
            service.generate(request())
        assert refusal.value.retry_after >= 1
        gate.open()


def test_finished_jobs_are_kept_within_bounds_of_number_bytes_and_age(folder):
    with service_of(folder) as service:
        size = waited(service.generate(request())).result.size
    assert size > T * H * W * 3  # its frames, and their mp4
    for bound in ({"max_results": 2}, {"max_result_bytes": int(2.5 * size)}):
        with service_of(folder, max_batch=1, **bound) as service:
            jobs = [waited(service.generate(request())) for _ in range(5)]
            kept = [job.id for job in service.jobs()]
            assert kept == [job.id for job in jobs[-2:]]
            with pytest.raises(UnknownJob, match="none over a restart"):
                service.get(jobs[0].id)
    with service_of(folder, result_seconds=0.05) as service:
        waited(service.generate(request()))
        time.sleep(0.1)
        assert not service.jobs()


def test_a_result_that_cannot_be_kept_is_a_failure(folder):
    with service_of(folder, max_result_bytes=1000) as service:
        job = waited(service.generate(request()), "failed")
        assert "bytes; this server keeps 1000" in job.error[1]


@pytest.mark.parametrize(
    "options, message",
    [
        ({"num_frames": 4}, "4 frames do not fit .* use 1 or 5"),
        ({"size": "25x16"}, "width 25 is not a multiple"),
        ({"num_frames": 133}, "num_frames is 133; this server makes at most 129"),
        ({"size": "4096x16"}, "width is 4096; this server makes at most 256"),
        ({"num_inference_steps": 101}, "num_inference_steps is 101; this server makes at most 100"),
        ({"model": "pipline"}, "no model 'pipline'; did you mean 'pipeline'?"),
        ({"prompt": "..."}, "the prompt is empty of words"),
        ({"prompt_schedule": [(3, "a dog")]}, "would show nowhere"),
    ],
)
def test_what_cannot_be_made_is_refused_before_it_waits(service, options, message):
    before = service.jobs()
    with pytest.raises(UsageError, match=message):
        service.generate(request(**options))
    assert service.jobs() == before


def test_frames_come_from_num_frames_then_from_seconds(service):
    def frames(**options):
        return service.generate(request(**options)).work.facts["num_frames"]

    assert frames() == T
    assert frames(seconds="1") == frames(seconds=1.0) == 9  # 8 frames a second; 4k + 1
    assert frames(seconds=2, fps=4.0) == 9
    assert frames(seconds=1, num_frames=13) == 13
    assert frames(seconds=0.01) == 1


TASKS = {
    "inpaint": ({"mask": "2,2,8,6"}, [T]),
    "outpaint": ({"place": "0,0,16,8"}, [T]),
    "colorize": ({}, [T]),
    "upscale": ({"factor": 2}, [T]),
    "interpolate_frames": ({"factor": 2}, [3]),
    "extend": ({"given": 1}, [T]),
    "extend_backward": ({}, [T]),
    "inbetween": ({}, [1, 1]),
    "loop": ({}, []),
    "animate": ({"at": "last"}, [1]),
    "image": ({}, []),
    "variation": ({"strength": 0.5}, [T]),
    "interpolate": ({"prompt": ["a man walks", "a dog runs"], "count": 2}, []),
    "denoise": ({"noise": 20.0}, [T]),
}


def test_every_task_of_edit_is_a_job(service, tmp_path):
    assert TASKS.keys() == TABLE["task"].keys()
    jobs = {
        task: service.edit(
            EditRequest(**{"task": task, "prompt": PROMPT, "num_inference_steps": 1, **options}),
            [upload(service, tmp_path, frames) for frames in inputs],
        )
        for task, (options, inputs) in TASKS.items()
    }
    for task, job in jobs.items():
        frames = waited(job).result.frames
        assert frames.shape[2:] == (H, W, 3), task
    shapes = {task: job.result.frames.shape[:2] for task, job in jobs.items()}
    assert shapes["interpolate"] == (2, T) and shapes["image"] == (1, 1)
    assert shapes["interpolate_frames"] == (1, 5) and shapes["extend"][1] > T
    assert not _files(service)


def test_an_earlier_result_is_edited_without_loss(service):
    source = waited(service.generate(request(scale=4)))
    asked = EditRequest(
        task="extend", prompt=PROMPT, video=VideoReference(id=source.id), num_inference_steps=1
    )
    made = waited(service.edit(asked)).result.frames[0]
    assert len(made) > T and np.array_equal(made[:T], source.result.frames[0])


def test_what_is_wrong_with_an_earlier_result_names_its_prompt_and_seed(service):
    source = waited(service.generate(request(seed=7)))
    asked = EditRequest(task="variation", video=VideoReference(id=source.id), start=1000.0)
    _, message = waited(service.edit(asked), "failed").error
    assert f"the clip {PROMPT!r} of seed 7" in message and source.id not in message


def test_a_picture_is_the_first_frame_of_a_clip(service, tmp_path):
    picture = upload(service, tmp_path, 1, name="input_reference")
    made = waited(service.generate(request(seconds=1), picture)).result.frames[0]
    clip = np.random.default_rng(0).integers(0, 256, (1, H, W, 3), np.uint8)
    assert made.shape == (9, H, W, 3) and np.array_equal(made[0], clip[0])
    with pytest.raises(UsageError, match="input_reference is no picture; POST /v1/videos/edits"):
        service.generate(request(), upload(service, tmp_path, name="input_reference"))
    with pytest.raises(UsageError, match="negative_prompt cannot be combined with"):
        picture = upload(service, tmp_path, 1, name="input_reference")
        service.generate(request(negative_prompt="a dog"), picture)
    assert not _files(service)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"task": "extnd"}, "unknown task 'extnd'; did you mean 'extend'?"),
        ({"task": "extend,extend"}, "stands twice"),
        ({"task": "extend", "noise": 3.0}, "noise is for denoise, not for extend"),
        ({"task": "inpaint"}, "needs the option 'mask'"),
        ({"task": "extend", "prompt": ["a", "b"]}, "only interpolate takes two"),
        ({"task": "image"}, "takes 0 input clips, not 1"),
        ({"task": "outpaint", "place": "0,0,900,8"}, "reaches beyond"),
        ({"task": "extend", "size": "512x512"}, "this server makes at most 256"),
    ],
)
def test_edits_that_cannot_be_made_are_refused_and_their_files_removed(
    service, tmp_path, options, message
):
    def edit():
        job = service.edit(EditRequest(**options), [upload(service, tmp_path)])
        raise UsageError(waited(job, "failed").error[1])  # some only once the file is read

    with pytest.raises(UsageError, match=message):
        edit()
    assert not _files(service)


def test_a_fault_of_ours_fails_its_job_alone_and_shows_nothing_of_this_machine(
    service, monkeypatch
):
    def broken(*args, **options):
        raise RuntimeError(f"secret {os.getcwd()}")

    with monkeypatch.context() as patch:
        patch.setattr(VideoPipeline, "__call__", broken)
        job = waited(service.generate(request()), "failed")
    assert job.error == ("server_error", "the job failed; the log of the server says why")
    waited(service.generate(request()))


def test_the_end_of_a_service_stops_jobs_and_leaves_no_file_and_no_thread(folder, tmp_path, gate):
    service = service_of(folder)
    running = service.generate(request(num_inference_steps=90))
    stepping(running)
    waiting = service.edit(EditRequest(task="extend"), [upload(service, tmp_path)])
    place = Path(service._workspace._folder.name)
    assert place.stat().st_mode & 0o077 == 0 and _files(service)
    gate.open()
    service.close()
    assert running.status == waiting.status == "cancelled"
    assert not place.exists()
    assert not service._worker.is_alive()
    with pytest.raises(VidcmError, match="about to stop"):
        service.generate(request())


def _files(service: JobService) -> list[str]:
    return os.listdir(service._workspace._folder.name)


def test_names_of_uploads_are_ours_and_their_kind_is_that_of_their_bytes(service, tmp_path):
    picture = upload(service, tmp_path, 1)
    film = upload(service, tmp_path, name="../../etc/passwd")
    assert picture.is_picture and not film.is_picture
    for one in (picture, film):
        assert isinstance(one, Upload) and len(one.path.stem) == 32
        one.close()
    with pytest.raises(UsageError, match="video is an empty file"):
        service.receive([], "video")
    with pytest.raises(UsageError, match="^video: not-video: "):
        service.receive([b"<html>"], "video")
    assert not _files(service)
