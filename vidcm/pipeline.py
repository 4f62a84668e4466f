"""The Python API: prompts to clips, and edits of clips, by a student or its teacher."""

import math
import os
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vidcm.arguments import SYNONYMS, checked_names, flag, integer, texts
from vidcm.arguments import text as check_text
from vidcm.conditioning.completion import PromptReader, complete_prompts
from vidcm.conditioning.prompts import check_length, check_prompts
from vidcm.control_inputs import ControlArguments, Picture, check_control
from vidcm.diffusion.base import Cond
from vidcm.editing.edit import TaskSpec, edit
from vidcm.errors import UsageError
from vidcm.generation import Generation
from vidcm.inputs import (
    check_callback,
    check_clips,
    check_latents,
    check_prompt,
    check_prompt_schedule,
    check_size,
    draw_seeds,
)
from vidcm.limits import BATCH_PIXELS, check_memory
from vidcm.media.clips import OUTPUT_TYPES, Clips, Clock, as_output
from vidcm.pipeline_models import PipelineModels
from vidcm.registry import build
from vidcm.rng import SampleRng
from vidcm.settings import MAX_CLIPS

# Called after each step as (pipe, step from 0, time, {"latents": x}); returns {} or new latents.
StepCallback = Callable[
    ["VideoPipeline", int, float, dict[str, Tensor]], Mapping[str, Tensor] | None
]


class VideoPipeline(PipelineModels):
    """A student, its teacher, their codec, and the settings they were tuned with.

    `folder`, `settings`, `device`, `dtype` and `codec` are those of `PipelineModels`.
    """

    def generation(
        self,
        role: str = "student",
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        solver: str | None = None,
        negative_prompt_method: str | None = None,
        nag_scale: float | None = None,
    ) -> Generation:
        """Resolve how a role samples; None for the checkpoint's own numbers.

        Args:
            role: "student" or "teacher".
            num_inference_steps: Evaluations of a student, solver steps of a teacher, 1 to 1000.
            guidance_scale: 0 to 100, 1 is without.
            solver: The teacher's, "euler", "heun" or "dpm".
            negative_prompt_method: As in a call.
            nag_scale: As in a call.

        Raises:
            UsageError: A number of another type or out of range.
        """
        numbers = num_inference_steps, guidance_scale, solver, negative_prompt_method, nag_scale
        model = self.model(role)
        return Generation.resolve(
            model, self.codec, self.settings, role, *numbers, offload=self._offload
        )

    @cached_property
    def prompt_reader(self) -> PromptReader | None:
        """What completes prompts for this checkpoint."""
        name = self.settings.prompt_reader
        return build("prompt_reader", {"name": name}) if name else None

    @checked_names(SYNONYMS)
    def encode_prompt(self, prompt: str | Sequence[str], *, use_teacher: bool = False) -> Cond:
        """Prompts as `prompt_embeds` of a call, one sample each."""
        prompts = texts("prompt", prompt)
        check_prompts(prompts)
        with torch.no_grad(), self.autocast():
            return self.model("teacher" if use_teacher else "student").encode(prompts)

    @checked_names(SYNONYMS)
    def __call__(
        self,
        prompt: str | Sequence[str] | None = None,
        *,
        image: Picture | Sequence[Picture] | None = None,
        control_video: str | os.PathLike[str] | np.ndarray | None = None,
        control_mask: np.ndarray | None = None,
        control_scale: float | Sequence[float] | None = None,
        negative_prompt: str = "",
        negative_prompt_method: str | None = None,
        nag_scale: float | None = None,
        negative_prompt_embeds: Cond | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        num_frames: int | None = None,
        height: int | None = None,
        width: int | None = None,
        num_videos_per_prompt: int = 1,
        seed: int | Sequence[int] | None = None,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        latents: Tensor | None = None,
        prompt_embeds: Cond | None = None,
        output_type: str = "np",
        callback_on_step_end: StepCallback | None = None,
        prompt_schedule: Sequence[tuple[int, str]] = (),
        complete_prompt: bool = True,
        use_teacher: bool = False,
        solver: str | None = None,
        batch_size: int | None = None,
    ) -> Clips:
        """Generate clips of prompts.

        Args:
            prompt: One prompt or several.
            image: The picture that clips begin with, or one for each prompt, for models that take
                one: a path, uint8 `(h, w, 3)` or a picture of Pillow. It is scaled and cut at the
                centre to the size of the clips.
            control_video: A clip to follow, for models that take one, as of depths, poses or parts
                that stay: a path or uint8 `(t, h, w, 3)`; fitted as `image`.
            control_mask: Where it is to be generated, bool `(t, h, w)` or `(h, w)` of its size;
                elsewhere it stays (default: everywhere).
            control_scale: Weight of the control, or one for each layer of its branch, 0 to 10
                (default: 1).
            negative_prompt: The prompt to move away from; without effect at guidance 1 unless
                by nag.
            negative_prompt_method: "guidance", which evaluates the network three times a step, or
                "nag", normalized attention guidance, for students alone (default: nag for students
                with one guidance scale built in, as of public models; guidance for others).
            nag_scale: Strength of nag, 0 to 100 (default: 5).
            negative_prompt_embeds: One prompt by `encode_prompt`; instead of `negative_prompt`.
            num_inference_steps: Evaluations of the student, or solver steps of the teacher, 1 to
                1000 (default: the checkpoint's).
            guidance_scale: 0 to 100, 1 is without (default: the checkpoint's).
            num_frames: Frames of a clip, 4k + 1 (default: the checkpoint's). Clips longer or larger
                than the models were trained on are generated in windows (`diffusion/windows.py`).
            height: In pixels (default: the checkpoint's).
            width: In pixels (default: the checkpoint's).
            num_videos_per_prompt: Clips of each prompt.
            seed: Seed of the first clip, which counts up, or one per clip (default: 0). A seed
                gives the same clip in any batch but for rounding.
            generator: Generator of the seeds, or one per clip; instead of `seed`.
            latents: Unit noise to begin from, `(n, c, t, h, w)`; instead of drawn noise.
            prompt_embeds: Prompts by `encode_prompt`; instead of `prompt`.
            output_type: "np" uint8 `(n, t, h, w, 3)`, "pt" the same as a tensor, "pil" lists of
                pictures, or "latent" `(n, c, t, h, w)`.
            callback_on_step_end: Called after each step of each batch as
                `(pipe, step, time, {"latents": x})`; may return {"latents": x} to go on with
                others, and may raise to cancel.
            prompt_schedule: (frame, prompt) of prompts that take over along a clip of several
                windows.
            complete_prompt: Draw what a prompt leaves open from the seed of each clip before the
                model reads it, if the checkpoint knows how. Later prompts of a schedule keep what
                they do not name. `captions` of the result are the completed prompts.
            use_teacher: Sample the teacher.
            solver: The teacher's, "euler", "heun" or "dpm" (default: the checkpoint's).
            batch_size: Clips that are sampled at once (default: as many as memory should hold). It
                changes clips by rounding alone.

        Raises:
            UsageError: An argument of another type, an empty or huge prompt, a number out of range,
                or a size that the strides of codec and network do not divide.
        """
        # 1. Check inputs and resolve the checkpoint's own numbers.
        role = "teacher" if flag("use_teacher", use_teacher) else "student"
        generation = self.generation(
            role, num_inference_steps, guidance_scale, solver, negative_prompt_method, nag_scale
        )
        if solver is not None and role == "student":
            raise UsageError("solver is the teacher's ODE solver; set use_teacher=True")
        channels, *size = generation.latent_shape(*check_size(num_frames, height, width))
        if output_type not in OUTPUT_TYPES:
            raise UsageError(f"output_type is {output_type!r}; use {', '.join(OUTPUT_TYPES)}")
        check_length("negative_prompt", check_text("negative_prompt", negative_prompt))
        negative = negative_prompt if negative_prompt_embeds is None else negative_prompt_embeds
        if isinstance(negative, Cond) and (negative_prompt or len(negative) != 1):
            raise UsageError(
                f"negative_prompt_embeds has {len(negative)} prompts; give one by encode_prompt, "
                "in the place of negative_prompt"
            )
        prompts = check_prompt(prompt, prompt_embeds)
        copies = integer("num_videos_per_prompt", num_videos_per_prompt, 1, MAX_CLIPS)
        count, clip_shape = len(prompts) * copies, generation.pixel_shape(size)
        batch = max(BATCH_PIXELS // math.prod(clip_shape), 1)
        if batch_size is not None:
            batch = integer("batch_size", batch_size, 1, MAX_CLIPS)
        check_memory(count, *clip_shape, batch)
        windowed = generation.denoiser
        shape = (channels, windowed.padded_frames(size[0]), *size[1:])
        check_prompt_schedule(prompt_schedule, generation, shape[1:])
        clip_seeds = draw_seeds(generator, seed, count)
        if latents is not None:
            latents = check_latents(latents, (count, *shape))
        on_step = check_callback(self, callback_on_step_end)
        pixels = generation.pixel_shape(shape[1:])
        given = ControlArguments(image, control_video, control_mask, control_scale)
        control = check_control(given, generation, len(prompts), copies, pixels)
        prompts = [prompt for prompt in prompts for _ in range(copies)]
        embeds = None if prompt_embeds is None else prompt_embeds.repeat(copies)
        reader = self.prompt_reader if complete_prompt and embeds is None else None
        captions, schedule = complete_prompts(reader, prompts, prompt_schedule, clip_seeds)
        clock = Clock(self.device)
        made: list[Any] = []
        with torch.no_grad(), self.autocast():
            for first in range(0, count, batch):
                part = slice(first, min(first + batch, count))
                # 2. Encode the captions.
                text = captions[part] if embeds is None else embeds.rows(part)
                cond = generation.scheduled(
                    generation.encode(text), [(frame, c[part]) for frame, c in schedule]
                )
                clock("text")
                if control is not None:
                    cond = cond.with_control(control.control(part))
                    clock("encode")
                # 3. Draw the noise of each clip from its seed.
                rng = windowed.repeated_noise(SampleRng.of_seeds(clip_seeds[part], self.device))
                noise = rng.normal(*shape)
                if latents is not None:
                    noise = latents[part].to(self.device)
                # 4. Denoise.
                x = generation.sample(cond, noise, rng, negative_prompt=negative, on_step=on_step)[
                    :, :, : size[0]
                ]
                clock("denoise")
                # 5. Decode.
                made.append(x.cpu() if output_type == "latent" else generation.decode(x))
                clock("decode")
        # 6. Give the clips the asked form.
        return Clips(
            as_output(torch.cat(made), output_type),
            prompts,
            clip_seeds,
            self.settings.fps,
            generation.evaluations(shape[1:], negative),
            clock.seconds,
            output_type,
            captions,
        )

    @checked_names(SYNONYMS | {"tasks": "task", "clip": "clips", "video": "clips"})
    def edit(
        self,
        task: TaskSpec | Sequence[TaskSpec],
        clips: Sequence[np.ndarray] = (),
        prompt: str | Sequence[str] = "",
        *,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        seed: int | Sequence[int] | None = None,
        num_frames: int | None = None,
        height: int | None = None,
        width: int | None = None,
        use_teacher: bool = False,
        zero_shot: bool = False,
        callback_on_step_end: StepCallback | None = None,
    ) -> Clips:
        """Edit clips without training.

        Known pixels of the clips stay exactly, the prompt describes the rest ("" leaves it open).

        Args:
            task: A name ("extend"), a name with options ({"name": "inpaint", "mask": mask}), or
                several to do at once; `vidcm edit --help` lists them.
            clips: uint8 `(t, h, w, 3)` each, as many as the task takes, of the size it takes
                (`vidcm.load_video` reads files so).
            prompt: One result each; two of them are the ends of the task interpolate.
            num_inference_steps: As in a call.
            guidance_scale: As in a call (default: 1 for a student with an input clip).
            seed: As in a call.
            num_frames: Frames of the model's clip, given ones among them (default: the
                checkpoint's); for tasks that follow their input, the most.
            height: Of the result (default: the checkpoint's).
            width: Of the result (default: the checkpoint's).
            use_teacher: Sample the teacher.
            zero_shot: Give frames by projection alone, also to a model trained with given frames.
            callback_on_step_end: As in a call.

        Raises:
            UsageError: Tasks, clips or numbers that do not fit.
        """
        check_size(num_frames, height, width)
        flag("zero_shot", zero_shot)
        role = "teacher" if flag("use_teacher", use_teacher) else "student"
        generation = self.generation(role, num_inference_steps, guidance_scale)
        with torch.no_grad(), self.autocast():
            return edit(
                generation,
                task,
                check_clips(clips),
                texts("prompt", prompt),
                seed,
                num_frames=num_frames,
                height=height,
                width=width,
                zero_shot=zero_shot,
                on_step=check_callback(self, callback_on_step_end),
            )
