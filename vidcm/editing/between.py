"""Clips on the way between two: slerped noise, lerped text embeddings, lerped latents."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from vidcm.arguments import seeds
from vidcm.diffusion.base import Cond
from vidcm.diffusion.samplers import OnStep
from vidcm.diffusion.shapes import like
from vidcm.editing.tasks import Interpolate
from vidcm.errors import UsageError
from vidcm.generation import Generation
from vidcm.media.clips import Clips, Clock
from vidcm.media.pixels import to_video
from vidcm.rng import Noise, SampleRng


@torch.no_grad()
def interpolate(
    generation: Generation,
    task: Interpolate,
    clips: Sequence[np.ndarray],
    prompts: list[str],
    seed: int | Sequence[int] | None,
    on_step: OnStep,
) -> Clips:
    """`task.count` clips between two ends.

    Args:
        generation: The model.
        task: Number of clips, and how much noise is put on input clips.
        clips: None or two input clips.
        prompts: One or two.
        seed: One or two.
        on_step: The sampler's callback.

    Raises:
        UsageError: There is nothing to go between.
    """
    ends = seeds(seed, None, "clips")
    for name, found in (("clips", clips), ("prompts", prompts), ("seeds", ends)):
        if len(found) not in ((0, 2) if name == "clips" else (1, 2)):
            raise UsageError(f"interpolate goes between two {name}, not {len(found)}")
    if len(clips) != 2 and len(set(prompts)) < 2 and len(set(ends)) < 2:
        raise UsageError("interpolate needs two of something: seeds, prompts or clips")
    clock, device = Clock(generation.device), generation.device
    weights = torch.linspace(0, 1, task.count, device=device, dtype=torch.float32)
    first, last = (generation.encode([p]) for p in (prompts[0], prompts[-1]))
    cond = between(first, last, weights)
    clock("text")
    one, two = (SampleRng.of_seeds([s], device) for s in (ends[0], ends[-1]))
    rng = SlerpNoise(one, two, weights)
    noise, size = rng.normal(*generation.latent_shape()), generation.settings.size
    init, start = torch.zeros_like(noise), 1.0
    if len(clips) == 2:
        for clip in clips:
            if clip.shape != (*size, 3):
                raise UsageError(
                    f"a clip has {len(clip)} frames of {clip.shape[2]}x{clip.shape[1]}; "
                    f"interpolate takes {size[0]} frames of {size[2]}x{size[1]}"
                )
        video = to_video(torch.from_numpy(np.stack(clips))).to(device)
        left, right = generation.codec.encode(video).split(1)
        init, start = torch.lerp(left, right, like(weights, noise)), task.strength
    clock("encode")
    x = generation.sample(cond, noise, rng, init_latents=init, start=start, on_step=on_step)
    clock("denoise")
    frames = generation.decode(x).numpy()
    if len(clips) == 2:
        frames[0], frames[-1] = clips
    clock("decode")
    middle = prompts[0] if prompts[0] == prompts[-1] else f"{prompts[0]} > {prompts[-1]}"
    named = [prompts[0], *[middle] * (task.count - 2), prompts[-1]]
    drawn = [ends[0]] * (task.count - 1) + [ends[-1]]
    evaluations, fps = generation.evaluations(noise.shape[2:]), generation.settings.fps
    return Clips(frames, named, drawn, fps, evaluations, clock.seconds)


def between(one: Cond, two: Cond, weights: Tensor) -> Cond:
    """Conditions on the line between two of one sample each; both ends keep their own mask.

    Args:
        one: Condition of one sample, at weight 0.
        two: Condition of one sample, at weight 1.
        weights: `(b,)` in [0, 1].
    """
    both = one.stack(two)
    share = weights.view(-1, 1, 1)
    tokens = torch.lerp(both.tokens[:1], both.tokens[1:], share.to(both.tokens))
    used = both.mask[:1] & (weights < 1)[:, None] | both.mask[1:] & (weights > 0)[:, None]
    scale = None if one.guidance_scale is None else one.guidance_scale.expand(len(weights))
    return replace(one, tokens=tokens, mask=used, guidance_scale=scale)


def slerp(one: Tensor, two: Tensor, weights: Tensor) -> Tensor:
    """Points on the great circle from `one` to `two`: unit noise stays unit noise.

    Args:
        one: `(1, ...)`, at weight 0.
        two: `(1, ...)`, at weight 1.
        weights: `(b,)` in [0, 1].

    Returns:
        `(b, ...)`.
    """
    cosine = torch.cosine_similarity(one.flatten(), two.flatten(), dim=0).clamp(-1, 1)
    angle = torch.acos(cosine.double())
    if angle < 1e-3:  # one and the same
        return torch.lerp(one, two, like(weights, one))
    left, right = (torch.sin(w * angle) / torch.sin(angle) for w in (1 - weights, weights))
    return like(left, one).to(one.dtype) * one + like(right, two).to(two.dtype) * two


class SlerpNoise:
    """Noise between that of two generators of one sample each."""

    def __init__(self, one: Noise, two: Noise, weights: Tensor):
        self.one, self.two, self.weights = one, two, weights

    def __len__(self) -> int:
        return len(self.weights)

    def normal(self, *shape: int) -> Tensor:
        """Standard normal `(b, *shape)`."""
        return slerp(self.one.normal(*shape), self.two.normal(*shape), self.weights)
