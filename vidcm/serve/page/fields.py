"""Fields for numbers that may be left out; gradio's own show 0 where there is none."""

from typing import Any

import gradio as gr

from vidcm.errors import UsageError
from vidcm.serve.page.panel import Entered


class NumberField:
    """A number, or nothing for the model's own.

    Args:
        label: Its name.
        kind: Whole or not.
        placeholder: What an empty field stands for.
        visible: Whether it is there from the start.
        scale: Its share of a row.
        min_width: Pixels.

    Attributes:
        component: What is on the page.
    """

    def __init__(
        self,
        label: str,
        kind: type[int] | type[float] = int,
        placeholder: str = "own",
        visible: bool = True,
        scale: int | None = None,
        min_width: int = 90,
    ):
        self._label, self._kind = label, kind
        self.component = gr.Textbox(
            label=label,
            placeholder=placeholder,
            max_lines=1,
            min_width=min_width,
            visible=visible,
            scale=scale,
        )

    def of(self, entered: Entered) -> Any:
        """The number; None for an empty field. Raises UsageError for another text."""
        text = (entered[self.component] or "").strip()
        try:
            return self._kind(text) if text else None
        except ValueError:
            what = "a whole number" if self._kind is int else "a number"
            raise UsageError(f"{self._label}: {text[:40]!r} is not {what}") from None
