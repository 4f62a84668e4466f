"""Checks of the tensors, prompts and clips that a pipeline is called with, and warnings."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vidcm.arguments import MAX_SEED, integer, seeds, texts
from vidcm.conditioning.completion import PromptReader
from vidcm.conditioning.prompts import check_prompts, unknown_words
from vidcm.diffusion import samplers
from vidcm.diffusion.base import Cond
from vidcm.diffusion.windows import check_schedule
from vidcm.errors import UsageError
from vidcm.generation import Generation
from vidcm.media.write import check_clip
from vidcm.settings import MAX_FRAMES, MAX_SIDE


def check_size(num_frames: Any, height: Any, width: Any) -> tuple[int | None, ...]:
    """Frames, height and width as whole numbers; None stays. Raises UsageError."""
    limits = {"num_frames": MAX_FRAMES, "height": MAX_SIDE, "width": MAX_SIDE}
    return tuple(
        None if value is None else integer(name, value, 1, high)
        for (name, high), value in zip(limits.items(), (num_frames, height, width), strict=True)
    )


def check_prompt(prompt: Any, embeds: Any) -> list[str]:
    """The prompts; "" for each row of embeddings.

    Raises:
        UsageError: Neither or both are there, or one of them is of no use.
    """
    if (prompt is None) == (embeds is None):
        raise UsageError("give either a prompt or prompt_embeds")
    if embeds is None:
        prompts = texts("prompt", prompt)
        check_prompts(prompts)
        return prompts
    if not isinstance(embeds, Cond):
        raise UsageError(f"prompt_embeds is a {type(embeds).__name__}; use encode_prompt")
    return [""] * len(embeds)


def check_prompt_schedule(schedule: Any, generation: Generation, shape: Sequence[int]) -> None:
    """Refuse prompts that a clip of latents `(t, h, w)` has no window for. Raises UsageError."""
    try:
        pairs = [(integer("prompt_schedule", f, 1, MAX_FRAMES), p) for f, p in schedule]
    except (TypeError, ValueError):
        message = f"prompt_schedule is {schedule!r}; expected [(frame, prompt), ...]"
        raise UsageError(message) from None
    if not pairs:
        return
    check_prompts([prompt for _, prompt in pairs])
    windows = generation.denoiser.windows(shape[0], shape[1], shape[2])
    places = [generation.latent_position(frame) for frame, _ in pairs]
    check_schedule(pairs, places, [w.place for w in windows])


def draw_seeds(generator: Any, seed: Any, count: int) -> list[int]:
    """One seed per clip, drawn from generators if there are any. Raises UsageError."""
    if generator is None:
        return seeds(seed, count, "clips")
    if seed is not None:
        raise UsageError("give either a seed or a generator")
    if isinstance(generator, torch.Generator):
        generators = [generator] * count
    else:
        generators = list(generator) if isinstance(generator, Sequence) else [generator]
    if len(generators) != count or not all(isinstance(g, torch.Generator) for g in generators):
        raise UsageError(f"generator is {generator!r}; give a torch.Generator, or {count} of them")
    return [
        int(torch.randint(MAX_SEED - 1, (), generator=g, device=g.device, dtype=torch.int64))
        for g in generators
    ]


def check_latents(latents: Any, shape: tuple[int, ...]) -> Tensor:
    """Noise of a shape, float32. Raises UsageError."""
    if not isinstance(latents, Tensor) or tuple(latents.shape) != shape:
        got = tuple(latents.shape) if isinstance(latents, Tensor) else type(latents).__name__
        raise UsageError(f"latents is {got}; expected a tensor of unit noise of shape {shape}")
    if not latents.is_floating_point() or latents.layout != torch.strided or latents.is_meta:
        raise UsageError(
            f"latents is a {latents.layout} tensor of {latents.dtype} on {latents.device}; "
            "expected dense real numbers, as torch.randn gives them"
        )
    if not latents.isfinite().all():
        raise UsageError("latents holds values that are not finite; expected unit noise")
    return latents.detach().float()


def check_clips(clips: Any) -> list[np.ndarray]:
    """Clips for editing, uint8 `(t, h, w, 3)` each. Raises UsageError."""
    if isinstance(clips, np.ndarray):
        raise UsageError("clips is one array; give a list of clips, as [clip]")
    if not isinstance(clips, Sequence):
        raise UsageError(f"clips is {named(clips)}; give a list of uint8 arrays (t, h, w, 3)")
    for clip in clips:
        if not isinstance(clip, np.ndarray):
            raise UsageError(f"a clip is {named(clip)}; give arrays (load_video reads files so)")
        try:
            check_clip(clip, (3,))
        except ValueError as error:
            raise UsageError(f"a clip does not fit: {error}") from None
    return list(clips)


def named(value: Any) -> str:
    """A value in a message: itself if it is short, else its type."""
    short = value is None or isinstance(value, str | int | float)
    return repr(value)[:60] if short else f"a {type(value).__name__}"


def warnings_about(
    generation: Generation,
    prompts: Sequence[str],
    negative_prompt: str = "",
    num_frames: int | None = None,
    height: int | None = None,
    width: int | None = None,
    reader: PromptReader | None = None,
) -> list[str]:
    """Sentences on inputs without effect or outside the range the models were tuned for.

    Args:
        generation: Role, steps and guidance.
        prompts: All prompts.
        negative_prompt: The prompt to move away from.
        num_frames: Frames of a clip; None for the checkpoint's.
        height: In pixels.
        width: In pixels.
        reader: What completes the prompts.
    """
    settings, found = generation.settings, []
    least = [min(axis) for axis in zip(*settings.shapes, strict=True)]
    sizes = zip(("frames", "height", "width"), (num_frames, height, width), least, strict=True)
    for name, value, low in sizes:
        if value is not None and value < low:
            found.append(f"the model was trained on {name} of {low} or more, not {value}")
    scale, steps = generation.guidance_scale, generation.num_inference_steps
    student = settings.student
    low, high = student.guidance_range
    if generation.role == "student" and not low <= scale <= high:
        found.append(f"the model was trained with guidance {low:g} to {high:g}, not {scale:g}")
    if generation.role == "student" and steps > student.max_inference_steps:
        most = student.max_inference_steps
        found.append(f"the model was tuned for 1 to {most} steps, not {steps}")
    named = [("a prompt", p) for p in prompts] + [("the negative prompt", negative_prompt)]
    for name, prompt in named[len(prompts) if reader else 0 :]:  # a reader reads all of a prompt
        if words := generation.model.conditioner.dropped(prompt):
            found.append(f"too long, the end of {name} is not read: {' '.join(words[:8])} ...")
    known = set(settings.known_words.split())
    words = unknown_words([p for _, p in named], known)
    if reader is not None:
        words = [word for word in words if not reader.knows(word)]
    if words and (known or reader):
        more = " ..." * (len(words) > 8)
        found.append(f"the model does not know: {', '.join(words[:8])}{more}")
    if negative_prompt and scale == 1 and not generation.nag:
        found.append("the negative prompt has no effect at guidance 1; raise the guidance")
    return found


def check_callback(pipe: Any, callback: Any) -> samplers.OnStep:
    """The callback that a sampler calls, of the one that a user passes.

    Raises:
        UsageError: It is no function, or what it returns are no latents.
    """
    if callback is None:
        return samplers.keep
    if not callable(callback):
        raise UsageError(f"callback_on_step_end is {callback!r}; expected a function")

    def on_step(step: int, time: float, x: Tensor) -> Tensor:
        found = callback(pipe, step, time, {"latents": x})
        if found is not None and not (isinstance(found, Mapping) and found.keys() <= {"latents"}):
            raise UsageError(
                f"callback_on_step_end returned a {type(found).__name__}; expected "
                '{"latents": ...}, {} or None'
            )
        changed = (found or {}).get("latents", x)
        if not isinstance(changed, Tensor) or changed.shape != x.shape:
            raise UsageError(f"callback_on_step_end returned other latents than {tuple(x.shape)}")
        return changed.to(x)

    return on_step
