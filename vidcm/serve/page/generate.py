"""The tab that makes clips from prompts, with several numbers of steps side by side."""

import json
from collections.abc import Sequence
from functools import partial
from typing import Any

import gradio as gr

from vidcm.errors import UsageError
from vidcm.serve.generation_work import GenerationWork
from vidcm.serve.jobs import Job
from vidcm.serve.page import cards
from vidcm.serve.page.fields import NumberField
from vidcm.serve.page.follow import Maker, request
from vidcm.serve.page.panel import EVENT, Entered, JobPanel, SeedRow
from vidcm.serve.page.sampling import Sampling
from vidcm.serve.requests import VideoRequest
from vidcm.serve.service import JobService

ROWS = 4  # prompts that may take over along a clip
STEPS = (1, 2, 4)
TEACHER = "teacher"
# Of the vocabulary of the reader of prompts that the bundled models have, by that reader's name.
EXAMPLES: dict[str | None, list[list[Any]]] = {
    "lpc": [
        ["a man with blond hair in a blue shirt shoots to the right on a gray background", 0],
        ["a woman with purple hair walks left on a blue background", 1],
        ["an orc with a red mohawk slashes to the right on a gray background", 0],
        ["a man in golden armor walks down on a green background", 5],
        ["a woman in a red dress casts a spell on a gray background", 0],
        ["a man with blond hair in a white shirt walks right on a green background", 5],
    ]
}


class Timeline:
    """Prompts that take over along a clip: rows of a frame and a prompt.

    Attributes:
        components: All of them, as inputs of an event.
    """

    def __init__(self) -> None:
        self._rows: list[tuple[NumberField, gr.Textbox]] = []
        rows = []
        for number in range(1, ROWS + 1):
            with gr.Row(visible=number == 1, elem_classes="takeover") as row:
                frame = NumberField("From frame", placeholder="none", scale=1, min_width=110)
                prompt = gr.Textbox(label=f"Prompt {number + 1}", min_width=160, scale=4)
            self._rows.append((frame, prompt))
            rows.append(row)
        rows_open = gr.State(1)
        more = gr.Button("Another prompt", size="sm")

        def reveal(count: int) -> list[Any]:
            count = min(count + 1, ROWS)
            rows = [gr.Row(visible=i < count) for i in range(ROWS)]
            return [count, gr.Button(visible=count < ROWS), *rows]

        more.click(reveal, rows_open, [rows_open, more, *rows], trigger_mode="multiple", **EVENT)
        self.components = [part for frame, text in self._rows for part in (frame.component, text)]

    def schedule(self, entered: Entered) -> list[list[Any]]:
        """Frames and prompts in their order. Raises UsageError for half a row."""
        found = []
        for place, (frame, prompt) in enumerate(self._rows, 2):
            start, text = frame.of(entered), (entered[prompt] or "").strip()
            if (start is None) != (not text):
                raise UsageError(f"prompt {place} along the clip: give both its frame and its text")
            if text:
                found.append([start, text])
        return sorted(found, key=lambda pair: pair[0])


class GenerateTab:
    """See the module.

    Args:
        service: Makes the clips.
        page: That the tab is on.
        examples: Prompts with seeds; the first stands there at once.
    """

    def __init__(self, service: JobService, page: gr.Blocks, examples: list[list[Any]]):
        self._service = service
        prompt, seed = examples[0] if examples else ("", 0)
        with gr.Row():
            with gr.Column(scale=2, min_width=300):
                self._prompt = gr.Textbox(
                    prompt, label="Prompt", lines=2, elem_id="generate-prompt"
                )
                choices = [(f"{n} step{'s' * (n > 1)}", str(n)) for n in STEPS]
                self._ways = gr.CheckboxGroup(
                    [*choices, (TEACHER, TEACHER)],
                    value=[str(n) for n in STEPS],
                    label="Side by side, from the same seed",
                    elem_id="generate-ways",
                )
                self._seed = SeedRow(seed)
                with gr.Accordion("More", open=False):
                    self._negative = gr.Textbox(label="Negative prompt")
                    self._sampling = Sampling(service, "Frames", 4)
                    self._complete = gr.Checkbox(
                        True, label="Draw from the seed what the prompt leaves open"
                    )
                with gr.Accordion("Prompts along the clip", open=False):
                    self._timeline = Timeline()
            with gr.Column(scale=3, min_width=300, elem_classes="made"):
                empty = '<div class="blank">The clips appear here.</div>'
                panel = JobPanel(service, "Generate", "generate", _drawn, empty)
                if examples:
                    self._offer(examples)
        inputs = [
            self._prompt,
            self._ways,
            self._seed.seed,
            self._negative,
            self._complete,
            *self._sampling.components,
            *self._timeline.components,
        ]
        panel.connect(page, inputs, self._makers, self._seed)

    def _offer(self, examples: list[list[Any]]) -> None:
        """Prompts that are taken over, with their seed, by a click."""
        outputs = [self._prompt, self._seed.seed, self._seed.keep]
        with gr.Column(elem_id="examples"):
            gr.HTML("<p>Examples</p>", padding=False)
            for prompt, seed in examples:
                code = f"() => {json.dumps([prompt, seed, True])}"  # in the browser, at once
                gr.Button(prompt, size="sm").click(None, None, outputs, js=code, **EVENT)

    def _makers(self, entered: Entered) -> list[Maker]:
        if not entered[self._ways]:
            raise UsageError("choose at least one number of steps, or the teacher")
        fields = self._sampling.fields(entered) | {
            "prompt": entered[self._prompt].strip(),
            "negative_prompt": entered[self._negative],
            "seed": entered[self._seed.seed],
            "complete_prompt": entered[self._complete],
            "prompt_schedule": self._timeline.schedule(entered),
        }
        if not fields["prompt"]:
            raise UsageError("the prompt is empty; write one, or choose an example")
        makers: list[Maker] = []
        for way in entered[self._ways]:
            own = {"use_teacher": True} if way == TEACHER else {"num_inference_steps": int(way)}
            wanted = request(VideoRequest, **fields, **own)
            steps = self._sampling.checkpoint(entered).generation(wanted).num_inference_steps
            title = f"{steps} step{'s' * (steps > 1)}"
            title = f"{TEACHER}, {title}" if way == TEACHER else title
            makers.append((title, partial(self._service.generate, wanted)))
        return makers


def examples_of(service: JobService) -> list[list[Any]]:
    """Prompts and seeds that look good with the first checkpoint; none for one of others."""
    first = next(iter(service.checkpoints.values()))
    return EXAMPLES.get(first.pipe.settings.prompt_reader, [])


def _drawn(jobs: Sequence[tuple[str, Job | None]]) -> str:
    drawn = cards.grid([cards.card(job, title) for title, job in jobs])
    works = [job.work for _, job in jobs if job is not None]
    if works and isinstance(works[0], GenerationWork) and works[0].request.prompt_schedule:
        wanted = works[0].request
        prompts = [(0, wanted.prompt), *wanted.prompt_schedule]
        drawn = cards.timeline(works[0].shape[0], prompts) + drawn
    return drawn
