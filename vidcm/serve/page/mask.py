"""A mask: drawn on the picture by hand or pen, or typed, or a file."""

import base64
import binascii
import json
from pathlib import Path
from typing import Any

import gradio as gr

from vidcm.errors import UsageError
from vidcm.serve.page.fields import NumberField
from vidcm.serve.page.panel import EVENT, Entered

PNG = "data:image/png;base64,"
HTML = """
<div class="tools" role="toolbar" aria-label="mask">
  <button type="button" data-tool="brush" aria-pressed="true">Brush</button>
  <button type="button" data-tool="box" aria-pressed="false">Box</button>
  <button type="button" data-tool="erase" aria-pressed="false">Eraser</button>
  <button type="button" data-clear>Clear</button>
  <label>Brush width <input type="range" min="1" max="40" value="14"></label>
</div>
<div class="canvas"><canvas width="64" height="64"
  aria-label="the first frame; draw where to fill, or type a box below"></canvas></div>
"""


class Mask:
    """Where to fill.

    Attributes:
        group: All of it, to show and hide.
        components: What was entered, as inputs of an event.
    """

    def __init__(self) -> None:
        with gr.Column() as self.group:
            self._canvas = gr.HTML(
                "",
                html_template=HTML,
                js_on_load=(Path(__file__).parent / "mask.js").read_text("utf-8"),
                elem_id="mask",
                picture="",
                size=[64, 64],
            )
            self._text = gr.Textbox(
                label="or a box x,y,width,height, or a key colour #rrggbb", elem_id="mask-text"
            )
            with gr.Row():
                self._from = NumberField("Box from second", float, "the start")
                self._to = NumberField("to second", float, "the end")
            self._file = gr.File(label="or a file, white where to fill", type="binary", height=150)
        self._canvas.input(_box_of, self._canvas, self._text, **EVENT)
        self.components = [self._canvas, self._text, self._file]
        self.components += [self._from.component, self._to.component]

    def with_picture(self, picture: bytes | None, size: tuple[int, int] = (64, 64)) -> Any:
        """The canvas with a picture of a clip, and nothing drawn on it."""
        source = data_uri(picture, "image/png") if picture else ""
        return gr.HTML(value="", picture=source, size=list(size))

    @property
    def canvas(self) -> gr.HTML:
        """Where `with_picture` goes."""
        return self._canvas

    def of(self, entered: Entered) -> tuple[str | None, bytes | None]:
        """The mask as a text or as a file. Raises UsageError for none, or for two."""
        text, file = (entered[self._text] or "").strip(), entered[self._file]
        drawn = _drawing(entered[self._canvas]).get("mask")
        if file is not None and text:
            raise UsageError("the mask is there as text and as a file; clear one of them")
        times = [self._from.of(entered), self._to.of(entered)]
        if times != [None, None]:
            if text.count(",") != 3 or file is not None or None in times:
                raise UsageError("from and to are for a box, and go together")
            text = ",".join([text, *(f"{seconds:g}" for seconds in times)])
        if file is not None:
            return None, file
        if text:
            return text, None
        if drawn is None:
            raise UsageError("there is no mask; draw on the picture where to fill")
        return None, drawn


def data_uri(content: bytes, kind: str) -> str:
    """A file as the source of a picture or clip."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def _drawing(value: Any) -> dict[str, Any]:
    """What the canvas says: a png under "mask", and numbers under "box"."""
    try:
        found = json.loads(value or "{}")
        mask, box = found.get("mask"), found.get("box")
        if mask is not None:
            found["mask"] = base64.b64decode(mask.removeprefix(PNG), validate=True)
        if box is not None:
            found["box"] = ",".join(str(int(number)) for number in box)
    except (ValueError, TypeError, AttributeError, binascii.Error):
        raise UsageError("the drawn mask cannot be read; draw it again") from None
    return found


def _box_of(value: Any) -> str:
    """The box that was drawn last, as text; none after a stroke of the brush."""
    return _drawing(value).get("box") or ""
