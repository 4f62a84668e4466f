"""Clips from prompts, several requests in one forward."""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from vidcm.conditioning.prompts import check_prompts
from vidcm.generation import Generation
from vidcm.inputs import check_prompt_schedule, warnings_about
from vidcm.pipeline import StepCallback, VideoPipeline
from vidcm.serve.checkpoints import Checkpoint, draw_seed
from vidcm.serve.jobs import Progress, Result, Work
from vidcm.serve.requests import VideoRequest


@dataclass(frozen=True, eq=False)
class GenerationWork:
    """A clip from a prompt. See `jobs.Work`.

    Attributes:
        request: What was asked.
        checkpoint: The model.
        generation: How it samples.
        shape: Frames, height and width.
        fps: Frames per second of the file.
        seed: Of the noise.
        warnings: See `jobs.Work`.
    """

    request: VideoRequest
    checkpoint: Checkpoint
    generation: Generation
    shape: tuple[int, int, int]
    fps: float
    seed: int
    warnings: Sequence[str]

    @classmethod
    def of(cls, request: VideoRequest, checkpoint: Checkpoint) -> "GenerationWork":
        """Check a request. Raises UsageError."""
        check_prompts([request.prompt])
        generation = checkpoint.generation(request)
        settings = checkpoint.pipe.settings
        fps = settings.fps if request.fps is None else request.fps
        height, width = request.height_width
        shape = (
            num_frames(request, generation, fps),
            settings.height if height is None else height,
            settings.width if width is None else width,
        )
        checkpoint.check_shape(generation, *shape, request.scale)
        _, *latents = generation.latent_shape(*shape)
        padded = generation.denoiser.padded_frames(latents[0])
        check_prompt_schedule(request.prompt_schedule, generation, (padded, *latents[1:]))
        seed = draw_seed() if request.seed is None else request.seed
        reader = checkpoint.pipe.prompt_reader if request.complete_prompt else None
        prompts = [request.prompt, *(prompt for _, prompt in request.prompt_schedule)]
        warnings = warnings_about(generation, prompts, request.negative_prompt, *shape, reader)
        return cls(request, checkpoint, generation, shape, fps, seed, warnings)

    @property
    def kind(self) -> Literal["generation"]:
        return "generation"

    @property
    def model(self) -> str:
        return self.checkpoint.name

    @property
    def seeds(self) -> list[int]:
        return [self.seed]

    @property
    def scale(self) -> int:
        return self.request.scale

    @property
    def max_batch(self) -> int:
        return self.checkpoint.max_batch(*self.shape)

    @property
    def batch_key(self) -> Hashable:
        """What one call of the pipeline takes for all of its clips."""
        request, generation = self.request, self.generation
        return (
            self.model,
            generation.role,
            generation.num_inference_steps,
            generation.guidance_scale,
            self.shape,
            request.negative_prompt,
            request.complete_prompt,
            tuple(map(tuple, request.prompt_schedule)),
        )

    @property
    def facts(self) -> Mapping[str, Any]:
        frames, height, width = self.shape
        return {
            "prompt": self.request.prompt,
            "size": f"{width}x{height}",
            "num_frames": frames,
            "fps": self.fps,
            "num_inference_steps": self.generation.num_inference_steps,
            "guidance_scale": self.generation.guidance_scale,
        }

    def run(self, batch: Sequence[Work], progress: Progress) -> list[Result]:
        own = [work for work in batch if isinstance(work, GenerationWork)]
        request, generation = self.request, self.generation
        frames, height, width = self.shape
        clips = self.checkpoint.pipe(
            [work.request.prompt for work in own],
            negative_prompt=request.negative_prompt,
            num_inference_steps=generation.num_inference_steps,
            guidance_scale=generation.guidance_scale,
            num_frames=frames,
            height=height,
            width=width,
            seed=[work.seed for work in own],
            callback_on_step_end=on_step(progress, generation.num_inference_steps),
            prompt_schedule=request.prompt_schedule,
            complete_prompt=request.complete_prompt,
            use_teacher=request.use_teacher,
            batch_size=len(own),
        )
        return [
            Result(
                clips.frames[i : i + 1].copy(),
                work.fps,
                [clips.captions[i]],
                [],
                clips.evaluations,
                clips.seconds,
                len(own),
            )
            for i, work in enumerate(own)
        ]

    def close(self) -> None:
        """There is no file."""

    def public(self, message: str) -> str:
        return message


def num_frames(request: VideoRequest, generation: Generation, fps: float) -> int:
    """Frames of a request: as many as it says, else those of its seconds, else the model's."""
    if request.num_frames is not None:
        return request.num_frames
    if request.seconds is None:
        return generation.settings.num_frames
    stride = generation.codec.time_stride
    groups = round((float(request.seconds) * fps - 1) / stride)
    return max(groups, 0) * stride + 1


def on_step(progress: Progress, steps: int) -> StepCallback:
    """A pipeline's callback that tells how far it is, and stops it when nobody waits."""

    def callback(pipe: VideoPipeline, step: int, time: float, state: dict) -> dict:
        done = step + 1
        progress("denoise" if done < steps else "decode", done, steps)
        return {}

    return callback
