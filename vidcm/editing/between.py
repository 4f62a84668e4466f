"""Clips on the way between two: slerped noises, lerped text, lerped latents."""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from vidcm.diffusion.base import Cond
from vidcm.diffusion.shapes import like
from vidcm.editing.tasks import Interpolate
from vidcm.editing.walk import How, text, walk
from vidcm.errors import UsageError
from vidcm.media.pixels import to_frames, to_video
from vidcm.rng import SampleRng

if TYPE_CHECKING:
    from vidcm.media.clips import Clips
    from vidcm.pipeline import VideoPipeline


@torch.no_grad()
def interpolate(
    pipe: "VideoPipeline",
    task: Interpolate,
    clips: Sequence[np.ndarray],
    prompts: list[str],
    seeds: list[int],
    how: How,
) -> "Clips":
    """`task.count` clips. clips: none or two. prompts, seeds: one or two of each.

    Raises UsageError when there is nothing to go between."""
    from vidcm.media.clips import Clips, Clock
    from vidcm.rng import SampleRngs

    for what, given in (("clips", clips), ("prompts", prompts), ("seeds", seeds)):
        if len(given) not in ((0, 2) if what == "clips" else (1, 2)):
            raise UsageError(f"interpolate goes between two {what}, not {len(given)}")
    if len(clips) != 2 and len(set(prompts)) < 2 and len(set(seeds)) < 2:
        raise UsageError("interpolate needs two of something: seeds, prompts or clips")
    how, clock, device = how.settled(pipe), Clock(pipe.device), pipe.device
    weights = torch.linspace(0, 1, task.count, device=device)
    ends = [text(pipe, how, [p]) for p in (prompts[0], prompts[-1])]
    cond = between(ends[0], ends[1], weights)
    clock("text")
    size = [pipe.settings[k] for k in ("frames", "height", "width")]
    one, two = (SampleRngs([s], device) for s in (seeds[0], seeds[-1]))
    rng = SlerpRng(one, two, weights)
    noise = rng.normal(*pipe.codec.latent_shape(*size))
    begin, until = torch.zeros_like(noise), 1.0
    if len(clips) == 2:
        for clip in clips:
            if clip.shape != (*size, 3):
                raise UsageError(
                    f"a clip has {len(clip)} frames of {clip.shape[2]}x{clip.shape[1]}; interpolate "
                    f"takes {size[0]} frames of {size[2]}x{size[1]}"
                )
        video = to_video(torch.from_numpy(np.stack(clips))).to(device)
        left, right = pipe.codec.encode(video).split(1)
        begin, until = torch.lerp(left, right, like(weights, noise)), task.strength
    clock("encode")
    x = walk(pipe, how, cond, begin, noise, until, lambda x0: x0, rng)
    clock("denoise")
    frames = to_frames(pipe.codec.decode(x)).cpu().numpy()
    if len(clips) == 2:
        frames[0], frames[-1] = clips
    clock("decode")
    middle = prompts[0] if prompts[0] == prompts[-1] else f"{prompts[0]} > {prompts[-1]}"
    said = [prompts[0], *[middle] * (task.count - 2), prompts[-1]]
    drawn = [seeds[0]] * (task.count - 1) + [seeds[-1]]
    evaluations = how.evaluations(pipe)
    return Clips(frames, said, drawn, pipe.settings["fps"], evaluations, clock.seconds)


def between(one: Cond, two: Cond, weights: Tensor) -> Cond:
    """Conditions of one sample each, `len(weights)` on the way; the ends are just their own."""
    both = one.stack(two)
    share = weights.view(-1, 1, 1)
    tokens = torch.lerp(both.tokens[:1], both.tokens[1:], share)
    used = both.mask[:1] & (weights < 1)[:, None] | both.mask[1:] & (weights > 0)[:, None]
    scale = None if one.guidance_scale is None else one.guidance_scale.expand(len(weights))
    return replace(one, tokens=tokens, mask=used, guidance_scale=scale)


def slerp(one: Tensor, two: Tensor, weights: Tensor) -> Tensor:
    """On the great circle from `one` to `two` `(1 ...)`, at weights `(b,)`: `(b ...)`. Unit noise
    stays unit noise, which on the straight line it would not."""
    cosine = torch.cosine_similarity(one.flatten(), two.flatten(), dim=0).clamp(-1, 1)
    angle = torch.acos(cosine.double())
    if angle < 1e-3:  # one and the same
        return torch.lerp(one, two, like(weights, one))
    left, right = (torch.sin(w * angle) / torch.sin(angle) for w in (1 - weights, weights))
    return like(left, one).to(one.dtype) * one + like(right, two).to(two.dtype) * two


class SlerpRng(SampleRng):
    """Draws between those of two generators of one sample each."""

    def __init__(self, one: SampleRng, two: SampleRng, weights: Tensor):
        super().__init__(0, [], one.device)
        self.one, self.two, self.weights = one, two, weights

    def __len__(self) -> int:
        return len(self.weights)

    def normal(self, *shape: int) -> Tensor:
        """`(b, *shape)`, each standard normal."""
        return slerp(self.one.normal(*shape), self.two.normal(*shape), self.weights)
