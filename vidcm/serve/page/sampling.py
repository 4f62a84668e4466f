"""The options of sampling that clips and edits have in common."""

from typing import Any

import gradio as gr

from vidcm.serve.checkpoints import Checkpoint, find
from vidcm.serve.page.fields import NumberField
from vidcm.serve.page.panel import EVENT, Entered
from vidcm.serve.service import JobService


class Sampling:
    """Checkpoint, guidance, frames, size and enlargement; empty ones are the checkpoint's own.

    Attributes:
        components: All of them, as inputs of an event.
    """

    def __init__(self, service: JobService, frames_label: str, scale: int):
        names, first = list(service.checkpoints), next(iter(service.checkpoints.values()))
        several = len(names) > 1
        self._model = gr.Dropdown(names, value=names[0], label="Checkpoint", visible=several)
        with gr.Row():
            self._guidance = NumberField("Guidance", float)
            self._frames = NumberField(frames_label)
        with gr.Row():
            self._width = NumberField("Width")
            self._height = NumberField("Height")
        self._scale = gr.Slider(1, 8, scale, step=1, label="Enlarge the pixels of the files")
        self._own = gr.HTML(_text(first), elem_classes="hint")
        self._model.change(
            lambda name: _text(find(service.checkpoints, name)), self._model, self._own, **EVENT
        )
        self.components = [
            self._model,
            self._guidance.component,
            self._frames.component,
            self._width.component,
            self._height.component,
            self._scale,
        ]
        self._service = service

    def checkpoint(self, entered: Entered) -> Checkpoint:
        """What was chosen."""
        return find(self._service.checkpoints, entered[self._model])

    def fields(self, entered: Entered) -> dict[str, Any]:
        """What was entered, as fields of a request."""
        width, height = self._width.of(entered), self._height.of(entered)
        own = self.checkpoint(entered).pipe.settings
        size = f"{width or own.width}x{height or own.height}" if width or height else None
        return {
            "model": entered[self._model],
            "guidance_scale": self._guidance.of(entered),
            "num_frames": self._frames.of(entered),
            "size": size,
            "scale": entered[self._scale],
        }


def _text(checkpoint: Checkpoint) -> str:
    own = checkpoint.pipe.settings
    student, teacher = own.student, own.teacher
    return (
        f"<p>What is empty is the checkpoint's own: guidance {student.guidance_scale:g} (teacher "
        f"{teacher.guidance_scale:g}), {own.num_frames} frames, {own.width} x {own.height} "
        "pixels. Frames are a multiple of 4, and one.</p>"
    )
