"""The tab that compares two checkpoints on the same prompts and seeds."""

from collections.abc import Sequence
from functools import partial
from html import escape

import gradio as gr

from vidcm.errors import UsageError
from vidcm.serve.jobs import Job
from vidcm.serve.page import cards
from vidcm.serve.page.follow import MAX_LISTED, Maker, request
from vidcm.serve.page.panel import Entered, JobPanel
from vidcm.serve.requests import VideoRequest
from vidcm.serve.service import JobService

MAX_ROWS = MAX_LISTED // 2


class CompareTab:
    """See the module.

    Args:
        service: Makes the clips.
        page: That the tab is on.
        examples: Prompts to begin with.
    """

    def __init__(self, service: JobService, page: gr.Blocks, examples: Sequence[str]):
        self._service = service
        # A checkpoint's student, and its teacher.
        self._sides = {name: (name, False) for name in service.checkpoints}
        self._sides |= {f"{name}, teacher": (name, True) for name in service.checkpoints}
        sides = list(self._sides)
        with gr.Row():
            with gr.Column(scale=2, min_width=300):
                with gr.Row():
                    self._left = gr.Dropdown(sides, value=sides[0], label="Left", min_width=140)
                    self._right = gr.Dropdown(sides, value=sides[1], label="Right", min_width=140)
                self._prompts = gr.Textbox(
                    "\n".join(examples[:2]), label="Prompts, one a line", lines=4
                )
                self._seeds = gr.Textbox("0", label="Seeds, with commas between")
                self._steps = gr.Radio(
                    [1, 2, 4], value=4, label="Steps of students", elem_id="compare-steps"
                )
            with gr.Column(scale=3, min_width=300, elem_classes="made"):
                empty = (
                    '<div class="blank">Clips of both sides appear here. Start the server with '
                    "several <code>--checkpoint</code> to compare them.</div>"
                )
                panel = JobPanel(service, "Compare", "compare", _drawn, empty)
        inputs = [self._left, self._right, self._prompts, self._seeds, self._steps]
        panel.connect(page, inputs, self._makers)

    def _makers(self, entered: Entered) -> list[Maker]:
        prompts = [line.strip() for line in entered[self._prompts].splitlines() if line.strip()]
        seeds = _seeds(entered[self._seeds])
        if not prompts:
            raise UsageError("there is no prompt; write one a line")
        if (rows := len(prompts) * len(seeds)) > MAX_ROWS:
            raise UsageError(f"{rows} pairs of clips are too many; at most {MAX_ROWS} at once")
        makers: list[Maker] = []
        for prompt in prompts:
            for seed in seeds:
                for side in (entered[self._left], entered[self._right]):
                    model, teacher = self._sides[side]
                    steps = {} if teacher else {"num_inference_steps": entered[self._steps]}
                    wanted = request(
                        VideoRequest,
                        prompt=prompt,
                        model=model,
                        seed=seed,
                        scale=4,
                        use_teacher=teacher,
                        **steps,
                    )
                    makers.append((side, partial(self._service.generate, wanted)))
        return makers


def _seeds(text: str) -> list[int]:
    """Seeds of a text. Raises UsageError."""
    try:
        return [int(word) for word in text.replace(",", " ").split()] or [0]
    except ValueError:
        raise UsageError(f"the seeds are {text[:60]!r}; write whole numbers as 0, 1") from None


def _drawn(jobs: Sequence[tuple[str, Job | None]]) -> str:
    """Pairs of clips below each other."""
    rows = []
    for place in range(0, len(jobs) - 1, 2):
        pair = jobs[place : place + 2]
        known = next((job for _, job in pair if job is not None), None)
        title = f"{known.work.facts['prompt']}, seed {known.work.seeds[0]}" if known else ""
        both = cards.grid([cards.card(job, side) for side, job in pair], "pair")
        rows.append(f"<section><h3>{escape(title)}</h3>{both}</section>")
    return "".join(rows)
