"""What all tabs with jobs have: a seed, buttons to begin and stop, and a place for results."""

from collections.abc import AsyncIterator, Callable, Collection, Mapping
from typing import Any

import gradio as gr
from starlette.concurrency import run_in_threadpool

from vidcm.errors import VidcmError
from vidcm.serve.checkpoints import draw_seed
from vidcm.serve.page import cards
from vidcm.serve.page.follow import Drawing, Listed, Maker, cancel, follow, submit
from vidcm.serve.service import JobService

Entered = Mapping[Any, Any]  # by component
# Nothing of the page is for programs: they have the API.
EVENT: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}


class SeedRow:
    """A seed that is drawn anew each time unless it is kept.

    Attributes:
        seed: The number.
        keep: Whether it stays.
    """

    def __init__(self, value: int):
        with gr.Row(elem_classes="seed"):
            self.seed = gr.Number(
                value, label="Seed", precision=0, placeholder="drawn", min_width=90
            )
            dice = gr.Button("Dice", min_width=60, scale=0)
            self.keep = gr.Checkbox(True, label="Keep it", min_width=90)
        dice.click(lambda: (draw_seed(), True), None, [self.seed, self.keep], **EVENT)
        self.seed.input(lambda: True, None, self.keep, **EVENT)

    def next(self, seed: int | None, keep: bool) -> int:
        """The seed of the next job."""
        return seed if keep and seed is not None else draw_seed()


class JobPanel:
    """Buttons and results. What is shown survives a reload of the page, as do the jobs.

    Args:
        service: Makes the jobs.
        label: Of the button that begins.
        name: Of the tab, for the browser's memory.
        draw: The picture of the jobs.
        empty: What stands there before the first.

    Attributes:
        before: Room beside the results, for what they were made from.
    """

    def __init__(self, service: JobService, label: str, name: str, draw: Drawing, empty: str):
        self._service, self._draw = service, draw
        self._listed = gr.BrowserState([], storage_key=f"vidcm-{name}")
        with gr.Row(elem_classes="begin"):
            self._go = gr.Button(label, variant="primary", min_width=80, elem_id=f"{name}-go")
            self._stop = gr.Button(
                "Cancel", interactive=False, min_width=80, elem_id=f"{name}-stop"
            )
        with gr.Row(elem_classes="results"):
            self.before = gr.HTML("", elem_id=f"{name}-before", elem_classes="before")
            self._out = gr.HTML(empty, elem_id=f"{name}-out")

    def connect(
        self,
        page: gr.Blocks,
        inputs: Collection[Any],
        makers: Callable[[Entered], list[Maker]],
        seed: SeedRow | None = None,
    ) -> None:
        """Have the buttons do what they say.

        Args:
            page: That the panel is on; results come back when it is loaded again.
            inputs: Components that `makers` reads.
            makers: What is entered, as jobs; raises VidcmError.
            seed: Of the jobs; it is drawn, and shown, before they are made.
        """
        outputs = [self._listed, self._out, self._go, self._stop]

        async def run(entered: Entered) -> AsyncIterator[tuple[Any, ...]]:
            yield gr.skip(), gr.skip(), gr.Button(interactive=False), gr.skip()
            try:
                listed = await run_in_threadpool(self._submitted, makers, entered)
            except VidcmError as error:
                yield [], cards.problem(str(error)), *self._buttons(False)
                return
            async for drawn, going in follow(self._service, listed, self._draw):
                yield listed, drawn, *self._buttons(going)

        async def again(listed: Any) -> AsyncIterator[tuple[Any, ...]]:
            if not listed:
                yield tuple(gr.skip() for _ in outputs)
            async for drawn, going in follow(self._service, listed, self._draw):
                yield gr.skip(), drawn, *self._buttons(going)

        event: Any = self._go
        begin = event.click
        if seed is not None:
            begin = event.click(seed.next, [seed.seed, seed.keep], seed.seed, **EVENT).then
        begin(run, set(inputs), outputs, concurrency_limit=None, **EVENT)
        page.load(again, self._listed, outputs, concurrency_limit=None, **EVENT)
        self._stop.click(self._cancel, self._listed, None, **EVENT)

    def _submitted(self, makers: Callable[[Entered], list[Maker]], entered: Entered) -> Listed:
        return submit(self._service, makers(entered))

    def _cancel(self, listed: Any) -> None:
        cancel(self._service, listed)

    def _buttons(self, going: bool) -> tuple[Any, Any]:
        return gr.Button(interactive=not going), gr.Button(interactive=going)
