"""What may be asked of a service: one definition for programs in this process and over HTTP.

Fields are named as those of OpenAI's videos API and of `VideoPipeline`; what is left out, or None,
takes the checkpoint's own value. Needs no torch.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from vidcm.arguments import MAX_SEED
from vidcm.conditioning.prompts import MAX_PROMPT
from vidcm.settings import MAX_FPS, MAX_FRAMES, MAX_GUIDANCE, MAX_STEPS

MAX_SCALE = 16
MAX_EDIT_PROMPTS = 2  # the ends of the task interpolate

Prompt = Annotated[str, Field(min_length=1, max_length=MAX_PROMPT)]
AnyPrompt = Annotated[str, Field(max_length=MAX_PROMPT)]
Seed = Annotated[int, Field(ge=0, lt=MAX_SEED)]
Decimal = Annotated[str, Field(pattern=r"^\d{1,5}(\.\d{1,6})?$")]
Seconds = Annotated[float, Field(gt=0, le=86400)]


def _without_null(schema: dict[str, Any]) -> None:
    """Take null out of a JSON schema: over HTTP a field is there with a value, or absent."""
    for spec in schema.get("properties", {}).values():
        if spec.get("default", ...) is None:
            del spec["default"]
        kinds = [kind for kind in spec.get("anyOf", []) if kind != {"type": "null"}]
        if len(kinds) == 1:
            del spec["anyOf"]
            spec.update(kinds[0])
        elif kinds:
            spec["anyOf"] = kinds


class SamplingRequest(BaseModel):
    """What requests of all kinds have in common."""

    model_config = ConfigDict(
        extra="forbid",
        strict=True,
        frozen=True,
        allow_inf_nan=False,
        json_schema_extra=_without_null,
    )

    model: Annotated[str, Field(max_length=255)] | None = Field(
        None, description="One of GET /v1/models (default: the first)."
    )
    size: Annotated[str, Field(pattern=r"^[1-9]\d{0,4}x[1-9]\d{0,4}$")] | None = Field(
        None, description="Width x height in pixels, as 64x64 (default: the model's)."
    )
    num_frames: Annotated[int, Field(ge=1, le=MAX_FRAMES)] | None = Field(
        None, description="Frames, 4k + 1 (default: the model's)."
    )
    guidance_scale: Annotated[float, Field(ge=0, le=MAX_GUIDANCE)] | None = Field(
        None, description="1 is without guidance (default: the model's)."
    )
    num_inference_steps: Annotated[int, Field(ge=1, le=MAX_STEPS)] | None = Field(
        None, description="Sampling steps (default: the model's)."
    )
    use_teacher: bool = Field(False, description="Sample the many-step teacher.")
    scale: Annotated[int, Field(ge=1, le=MAX_SCALE)] = Field(
        1, description="Enlarge pixels of the files so many times."
    )

    @property
    def height_width(self) -> tuple[int | None, int | None]:
        """`size` as height and width; None for the model's."""
        if self.size is None:
            return None, None
        width, height = map(int, self.size.split("x"))
        return height, width


class VideoRequest(SamplingRequest):
    """A clip from a prompt."""

    prompt: Prompt = Field(description="What the clip shows.")
    negative_prompt: AnyPrompt = Field("", description="What to move away from.")
    seconds: Seconds | Decimal | None = Field(
        None, description="Length; the nearest number of frames 4k + 1. `num_frames` comes first."
    )
    fps: Annotated[float, Field(ge=0.1, le=min(MAX_FPS, 240))] | None = Field(
        None, description="Frames per second of the file (default: the model's)."
    )
    seed: Seed | None = Field(None, description="Of the noise (default: drawn, and reported).")
    complete_prompt: bool = Field(
        True, description="Draw from the seed what the prompt leaves open, if the model can."
    )
    prompt_schedule: Annotated[list[tuple[int, Prompt]], Field(max_length=64)] = Field(
        default_factory=list,
        description="[frame, prompt] of prompts that take over along a long clip.",
    )


class VideoReference(BaseModel):
    """An earlier result as input."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    id: Annotated[str, Field(max_length=64)]


class EditRequest(SamplingRequest):
    """An edit of clips, or of none: a task of `vidcm edit`, or several in commas."""

    task: Annotated[str, Field(min_length=1, max_length=200)] = Field(
        "variation", description="A task of `vidcm edit`, or several, as colorize,extend."
    )
    prompt: AnyPrompt | Annotated[list[AnyPrompt], Field(max_length=MAX_EDIT_PROMPTS)] = Field(
        "", description="What the result shows; two for interpolate."
    )
    seed: Seed | Annotated[list[Seed], Field(min_length=1, max_length=2)] | None = Field(
        None, description="Of the noise (default: drawn, and reported); two for interpolate."
    )
    video: VideoReference | None = Field(
        None, description="An earlier result to edit, instead of an uploaded file."
    )
    start: Annotated[float, Field(ge=0, le=1e6)] = Field(
        0.0, description="Seconds of the input to skip."
    )
    mask: Annotated[str, Field(max_length=200)] | None = Field(
        None,
        description="inpaint: x,y,width,height[,from,to] in the input's pixels and seconds, or a "
        "key colour #rrggbb. A file of this name is white where to fill.",
    )
    place: Annotated[str, Field(pattern=r"^\d{1,5}(,\d{1,5}){3}$")] | None = Field(
        None, description="outpaint: x,y,width,height of the input in the result's pixels."
    )
    factor: Annotated[int, Field(ge=2, le=64)] | None = Field(
        None, description="upscale, interpolate_frames: times as large, or as many frames."
    )
    given: Annotated[int, Field(ge=1, le=MAX_FRAMES)] | None = Field(
        None, description="extend, extend_backward, inbetween, loop: frames that the model sees."
    )
    at: Literal["first", "last"] | None = Field(
        None, description="animate: which frame the picture is."
    )
    strength: Annotated[float, Field(ge=0, le=1)] | None = Field(
        None, description="variation, interpolate: how much to change."
    )
    noise: Annotated[float, Field(gt=0, le=255)] | None = Field(
        None, description="denoise: of the input, in grey levels."
    )
    count: Annotated[int, Field(ge=2, le=64)] | None = Field(
        None, description="interpolate: clips from end to end."
    )

    @property
    def prompts(self) -> list[str]:
        """The prompts; one that is empty if there is none."""
        return [self.prompt] if isinstance(self.prompt, str) else list(self.prompt) or [""]
