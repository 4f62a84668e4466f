"""The tab that edits clips: every task of `vidcm edit`, before and after beside each other."""

from collections.abc import Sequence
from functools import partial
from html import escape
from typing import Any

import gradio as gr

from vidcm.errors import UsageError
from vidcm.media.png import encode_png
from vidcm.registry import TABLE, lookup, options_of
from vidcm.serve.jobs import Job
from vidcm.serve.page import cards
from vidcm.serve.page.fields import NumberField
from vidcm.serve.page.follow import Maker, request
from vidcm.serve.page.mask import Mask, data_uri
from vidcm.serve.page.panel import EVENT, Entered, JobPanel, SeedRow
from vidcm.serve.page.sampling import Sampling
from vidcm.serve.requests import EditRequest
from vidcm.serve.service import JobService
from vidcm.serve.uploads import Upload

UPLOAD = "uploaded files"


class TaskOptions:
    """Options of the tasks; those that no chosen task takes are hidden.

    Attributes:
        tasks: The choice of tasks.
        components: All of them, as inputs of an event.
    """

    def __init__(self) -> None:
        self.tasks = gr.Dropdown(
            list(TABLE["task"]),
            value=["inpaint"],
            multiselect=True,
            label="Task",
            elem_id="edit-task",
        )
        self._lesson = gr.HTML(_lesson(["inpaint"]), elem_classes="hint")
        self._numbers = {
            "factor": NumberField("Times as large, or as many frames", visible=False),
            "given": NumberField("Frames of the input that the model sees", visible=False),
            "strength": NumberField("How much to change, 0 to 1", float, visible=False),
            "noise": NumberField("Noise of the input, in grey levels", float, visible=False),
            "count": NumberField("Clips from end to end", visible=False),
        }
        self._place = gr.Textbox(
            label="Place of the input in the result: x,y,width,height", visible=False
        )
        self._at = gr.Radio(["first", "last"], label="The picture is the frame", visible=False)
        self._fields: dict[str, Any] = {"place": self._place, "at": self._at}
        self._fields |= {name: number.component for name, number in self._numbers.items()}
        self._other = gr.Textbox(label="Prompt of the other end", visible=False)
        self.components = [self.tasks, *self._fields.values(), self._other]

    @property
    def names(self) -> list[str]:
        """The options that have a field here."""
        return list(self._fields)

    def connect(self, mask: Mask) -> None:
        """Have the choice of tasks show and hide what they take."""

        def show(tasks: list[str]) -> list[Any]:
            taken = _taken(tasks)
            fields = [gr.update(visible=name in taken) for name in self._fields]
            other = gr.update(visible="interpolate" in tasks)
            return [_lesson(tasks), gr.update(visible="mask" in taken), *fields, other]

        outputs = [self._lesson, mask.group, *self._fields.values(), self._other]
        self.tasks.change(show, self.tasks, outputs, **EVENT)

    def fields(self, entered: Entered, prompt: str) -> dict[str, Any]:
        """What was entered, as fields of a request. Raises UsageError without a task."""
        tasks = entered[self.tasks]
        if not tasks:
            raise UsageError("choose a task")
        taken = _taken(tasks)
        values = {name: number.of(entered) for name, number in self._numbers.items()}
        values |= {"place": entered[self._place], "at": entered[self._at]}
        fields = {name: value for name, value in values.items() if name in taken}
        if "interpolate" in tasks and entered[self._other]:
            fields["prompt"] = [prompt, entered[self._other]]
        else:
            fields["prompt"] = prompt
        return fields | {"task": ",".join(tasks)}


class EditTab:
    """See the module.

    Args:
        service: Makes the edits.
        page: That the tab is on.
        tab: The tab itself; earlier clips are looked up when it is chosen.
    """

    def __init__(self, service: JobService, page: gr.Blocks, tab: gr.Tab):
        self._service = service
        with gr.Row():
            with gr.Column(scale=2, min_width=300):
                self._options = TaskOptions()
                self._files = gr.File(
                    label="A clip or picture; two for tasks between two",
                    file_count="multiple",
                    type="binary",
                    height=150,
                    elem_id="edit-files",
                )
                self._source = gr.Dropdown(
                    [UPLOAD], value=UPLOAD, label="What to edit", elem_id="edit-source"
                )
                self._mask = Mask()
                self._prompt = gr.Textbox(
                    label="Prompt: what the result shows", lines=2, elem_id="edit-prompt"
                )
                self._seed = SeedRow(0)
                self._steps = gr.Radio([1, 2, 4], value=4, label="Steps", elem_id="edit-steps")
                with gr.Accordion("More", open=False):
                    self._teacher = gr.Checkbox(False, label="The teacher, with its own steps")
                    self._start = NumberField("Seconds of the input to skip", float, "none")
                    self._sampling = Sampling(service, "Frames that the model generates", 4)
            with gr.Column(scale=3, min_width=300, elem_classes="made"):
                empty = '<div class="blank">Before and after appear here.</div>'
                panel = JobPanel(service, "Edit", "edit", _drawn, empty)
        self._options.connect(self._mask)
        seen = [panel.before, self._mask.canvas]
        self._files.change(self._look, [self._files, self._source], [self._source, *seen], **EVENT)
        self._source.input(self._look_at, [self._source, self._files], seen, **EVENT)
        tab.select(self._sources, self._source, self._source, **EVENT)
        inputs = [
            self._files,
            self._source,
            self._prompt,
            self._seed.seed,
            self._steps,
            self._teacher,
            self._start.component,
            *self._options.components,
            *self._mask.components,
            *self._sampling.components,
        ]
        panel.connect(page, inputs, self._makers, self._seed)

    def _makers(self, entered: Entered) -> list[Maker]:
        fields = self._options.fields(entered, entered[self._prompt])
        fields |= self._sampling.fields(entered) | {"seed": entered[self._seed.seed]}
        if entered[self._teacher]:
            fields["use_teacher"] = True
        else:
            fields["num_inference_steps"] = entered[self._steps]
        fields["start"] = self._start.of(entered)
        drawn = None
        if "mask" in _taken(entered[self._options.tasks]):
            fields["mask"], drawn = self._mask.of(entered)
        contents = []
        if entered[self._source] == UPLOAD:
            contents = entered[self._files] or []
        else:
            fields["video"] = {"id": entered[self._source]}
        wanted = request(EditRequest, **fields)
        return [("after", partial(self._edit, wanted, contents, drawn))]

    def _edit(self, wanted: EditRequest, contents: list[bytes], drawn: bytes | None) -> Job:
        videos, mask = self._received(contents), None
        if drawn is not None:
            mask = self._service.receive([drawn], "mask")
        return self._service.edit(wanted, videos, mask)

    def _received(self, contents: Sequence[bytes]) -> list[Upload]:
        kept: list[Upload] = []
        try:
            for number, content in enumerate(contents, 1):
                label = "the file" if len(contents) == 1 else f"file {number}"
                kept.append(self._service.receive([content], label))
        except UsageError:
            for upload in kept:
                upload.close()
            raise
        return kept

    def _sources(self, chosen: str) -> Any:
        """Clips that may be edited, newest first."""
        done = [job for job in self._service.jobs()[::-1] if job.status == "completed"]
        choices = [(UPLOAD, UPLOAD), *((_name(job), job.id) for job in done)]
        there = any(value == chosen for _, value in choices)
        return gr.Dropdown(choices=choices, value=chosen if there else UPLOAD)

    def _look(self, contents: list[bytes] | None, source: str) -> list[Any]:
        """Show files as soon as they are uploaded."""
        if not contents:
            return [gr.skip(), *self._look_at(source, contents)]
        return [UPLOAD, *self._look_at(UPLOAD, contents)]

    def _look_at(self, source: str, contents: list[bytes] | None) -> list[Any]:
        try:
            if source != UPLOAD:
                return self._earlier(source)
            return self._uploaded(contents or [])
        except UsageError as error:
            return [cards.problem(str(error)), self._mask.with_picture(None)]

    def _earlier(self, name: str) -> list[Any]:
        job = self._service.get(name)
        if job.result is None:
            raise UsageError(f"this clip is {job.status} and cannot be edited")
        frame = job.result.frames[0][0]
        size = (frame.shape[1], frame.shape[0])
        before = cards.grid([cards.earlier(job, "before")])
        return [before, self._mask.with_picture(encode_png(frame), size)]

    def _uploaded(self, contents: list[bytes]) -> list[Any]:
        uploads = self._received(contents)
        try:
            looks = [self._service.look(upload) for upload in uploads]
        finally:
            for upload in uploads:
                upload.close()
        figures = []
        for number, look in enumerate(looks, 1):
            name = "before" if len(looks) == 1 else f"before, {number}"
            source = data_uri(look.clip, "video/mp4") if look.clip else ""
            source = source or data_uri(look.picture, "image/png")
            figures.append(cards.picture(source, name, f"the uploaded picture {number}"))
        canvas = self._mask.with_picture(looks[0].picture, looks[0].size) if looks else None
        return [cards.grid(figures), canvas or self._mask.with_picture(None)]


def _drawn(jobs: Sequence[tuple[str, Job | None]]) -> str:
    return cards.grid([cards.card(job, title) for title, job in jobs])


def _taken(tasks: Sequence[str]) -> set[str]:
    """Options that one of the tasks takes."""
    return {option for name in tasks for option in options_of("task", name)}


def _lesson(tasks: Sequence[str]) -> str:
    """What the tasks do."""
    lines = [(lookup("task", name).__doc__ or "").partition("\n")[0] for name in tasks]
    return "".join(f"<p>{escape(line)}</p>" for line in lines)


def _name(job: Job) -> str:
    """A clip in a list."""
    facts = job.work.facts
    steps = facts["num_inference_steps"]
    what = facts.get("task") or f"{steps} step{'s' * (steps > 1)}"
    return f"{what}, seed {job.work.seeds[0]}: {facts['prompt'][:60]}"
