"""Jobs as pieces of HTML. Everything that comes from a request is escaped here."""

from collections.abc import Iterable, Sequence
from html import escape

from vidcm.serve.jobs import Job
from vidcm.serve.replies import reply_of

DOWNLOADS = {"video": "mp4", "gif": "gif", "spritesheet": "sprite sheet", "frames": "frames"}
SUFFIXES = {"video": "mp4", "gif": "gif", "spritesheet": "png", "frames": "zip"}
STAGES = {
    "queued": "waits for its turn",
    "start": "begins",
    "text": "reads the prompt",
    "read": "reads the files",
    "denoise": "makes the clip",
    "decode": "decodes",
    "write": "writes the files",
}


def problem(message: str) -> str:
    """One line that says what is wrong."""
    return f'<p class="problem" role="alert">{escape(message)}</p>'


def grid(cards: Iterable[str], kind: str = "") -> str:
    """Cards beside each other, or below each other where there is no room."""
    return f'<div class="cards {kind}">{"".join(cards)}</div>'


def picture(source: str, title: str, text: str) -> str:
    """A picture or clip with a title; `source` is a data URI of ours."""
    kind = "video" if source.startswith("data:video") else "img"
    tag = _video(source, title) if kind == "video" else f'<img src="{source}" alt="{escape(text)}">'
    return f"<figure><figcaption>{escape(title)}</figcaption>{tag}</figure>"


def earlier(job: Job, title: str) -> str:
    """The first clip of a completed job, without its facts."""
    return f"<figure><figcaption>{escape(title)}</figcaption>{_video(_url(job), title)}</figure>"


def card(job: Job | None, title: str) -> str:
    """A job: how far it is, or its clips with all that is to be said about them."""
    head = f"<figcaption>{escape(title)}</figcaption>"
    if job is None:
        lost = "no longer there: finished clips are kept for a while, none over a restart"
        return f'<figure>{head}<div class="empty">{lost}</div></figure>'
    facts = "".join(f'<p class="warning">{escape(text)}</p>' for text in job.work.warnings)
    if job.status == "completed" and job.result is not None:
        clips = range(len(job.result.frames))
        body = "".join(_video(_url(job, i), title) + _downloads(job, i) for i in clips)
        return f"<figure>{head}{body}{_facts(job)}</figure>"
    if job.status == "failed":
        return f"<figure>{head}{problem(job.error[1] if job.error else 'it failed')}</figure>"
    if job.status == "cancelled":
        return f'<figure>{head}<div class="empty">cancelled</div>{facts}</figure>'
    stage = "is being cancelled" if job.abandoned else STAGES[job.stage]
    if job.stage == "denoise" and job.steps:
        stage += f", step {job.step + 1} of {job.steps}"
    bar = f'<progress max="100" value="{job.progress}" aria-label="progress"></progress>'
    return f'<figure>{head}<div class="empty" role="status">{bar}{stage}</div>{facts}</figure>'


def timeline(frames: int, prompts: Sequence[tuple[int, str]]) -> str:
    """A bar of the prompts along a clip; the first begins at frame 0."""
    ends = [*(start for start, _ in prompts[1:]), frames]
    parts = [
        f'<span style="flex-grow: {max(end - start, 1)}" title="{escape(prompt)}">'
        f"<b>{start}</b> {escape(prompt)}</span>"
        for (start, prompt), end in zip(prompts, ends, strict=True)
    ]
    return f'<div class="timeline">{"".join(parts)}</div>'


def _url(job: Job, index: int = 0, variant: str = "video") -> str:
    return f"/v1/videos/{job.id}/content?variant={variant}&amp;index={index}"


def _video(source: str, title: str) -> str:
    label = escape(f"clip, {title}; click or press Enter to stop it and go on")
    toggle = "this.paused ? this.play() : this.pause()"
    return (
        f'<video src="{source}" aria-label="{label}" autoplay loop muted playsinline tabindex="0" '
        f'disablepictureinpicture onclick="{toggle}" '
        f"onkeydown=\"if (event.key === 'Enter') {toggle}\"></video>"
    )


def _downloads(job: Job, index: int) -> str:
    name = f"{job.work.seeds[0]}-{job.id[-6:]}-{index}"
    links = [
        f'<a href="{_url(job, index, variant)}" download="{name}.{SUFFIXES[variant]}">{text}</a>'
        for variant, text in DOWNLOADS.items()
    ]
    return f'<p class="downloads">{" ".join(links)}</p>'


def _facts(job: Job) -> str:
    reply = reply_of(job)
    lines = [f'<p class="warning">{escape(text)}</p>' for text in job.work.warnings]
    lines += [f"<p>{escape(text)}</p>" for text in (job.result.notes if job.result else ())]
    if reply.understood_as:
        lines.append(f"<p>understood as: {escape(reply.understood_as)}</p>")
    times = " · ".join(
        f"{stage} {seconds:.2f} s" for stage, seconds in (reply.timings or {}).items()
    )
    count = f"{reply.evaluations} evaluation{'s' * (reply.evaluations != 1)}"
    seeds = ", ".join(map(str, reply.seeds))
    lines.append(f"<p>seed {seeds} · {reply.num_frames} frames · {count}</p>")
    lines.append(f'<p class="times">{times}</p>')
    return f'<div class="facts">{"".join(lines)}</div>'
