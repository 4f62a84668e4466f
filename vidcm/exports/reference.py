"""What a student computes, kept beside its export so that any consumer can be compared with it."""

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from vidcm.codecs.base import VideoCodec
from vidcm.diffusion import samplers
from vidcm.diffusion.base import Cond
from vidcm.errors import VidcmError
from vidcm.exports.control import (
    FRAMES,
    OF_SOURCES,
    PREFIX,
    draw_control,
    draw_frames,
    needed,
    read_control,
)
from vidcm.exports.layout import SampleLayout
from vidcm.exports.scheduling_few_step import draw, generators_of
from vidcm.exports.student import PublicStudent
from vidcm.families.base import Family
from vidcm.store import load_model, save_tensors

FILE = "reference.safetensors"
PROMPT = "a test"
LATENT_FRAMES = 3
SIDE = 8  # latents along height and width
TIMES, TOKENS = (999.0, 750.0, 20.0), 16  # of the network's outputs

Reference = dict[str, Tensor]


class SchedulerNoise:
    """The fresh noise that `FewStepScheduler` draws, in our layout.

    Args:
        noise: The noise `(b c t h w)` that sampling starts from.
        layout: Of the pipeline's latents.
    """

    def __init__(self, noise: Tensor, layout: SampleLayout):
        self.shape, self.layout, packed = tuple(noise.shape), layout, layout.pack(noise)
        self.generators, self.packed = generators_of(packed), packed.shape[1:]

    def __len__(self) -> int:
        return len(self.generators)

    def normal(self, *shape: int) -> Tensor:
        return self.layout.unpack(draw(self.generators, self.packed), self.shape)


def start_noise(student: PublicStudent) -> Tensor:
    """Noise of a small clip, `(1 c t h w)`."""
    shape = (1, student.denoiser.channels, LATENT_FRAMES, SIDE, SIDE)
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def clips(student: PublicStudent, layout: SampleLayout, codec: VideoCodec | None) -> Reference:
    """Latents of whole clips by vidcm's samplers, by number of steps, and one decoded.

    Args:
        student: The student.
        layout: Of its pipeline's latents.
        codec: The pipeline's codec, if there is one.
    """
    noise, cond = start_noise(student), student.denoiser.encode([PROMPT])
    found = {"noise": noise, "tokens": cond.tokens, "mask": cond.mask}
    if (source := needed(student.denoiser.control)) is not None:
        assert codec is not None  # exports check it
        found[FRAMES] = frames = draw_frames(codec, noise.shape[1:])
        cond = cond.with_control(OF_SOURCES[type(source)].control(source, codec, frames))
    sampler = samplers.SAMPLERS[student.settings.sampler]
    for steps in student.checked_counts:
        rng = SchedulerNoise(noise, layout)
        found[f"clip.{steps}"] = sampler(student.sampled, noise, student.times(steps), cond, rng)
    if codec is not None:
        found["video"] = codec.decode(found[f"clip.{student.checked_counts[-1]}"])
    return found


@torch.no_grad()
def outputs(student: PublicStudent) -> Reference:
    """Outputs of the network for noise and the first tokens of a prompt."""
    tokens, noise = student.denoiser.encode([PROMPT]).tokens, start_noise(student)
    control = draw_control(student.denoiser.control, noise.shape[1:])
    if f"{PREFIX}tokens" not in control:  # networks find tokens of pictures before 512 of text
        tokens = tokens[:, :TOKENS]
    found = {"noise": noise, "tokens": tokens, **control}
    return found | {"outputs": network_outputs(student.family, student.transformer, found)}


@torch.no_grad()
def network_outputs(family: Family, transformer: Any, inputs: Reference) -> Tensor:
    """What a network gives for the inputs of `outputs`, at `TIMES`."""
    noise, tokens = inputs["noise"], inputs["tokens"]
    mask = torch.ones(tokens.shape[:2], dtype=torch.bool)
    cond = Cond(tokens, mask, control=read_control(inputs))
    times = (torch.tensor([t]) for t in TIMES)
    return torch.cat([family.forward(transformer, noise, t, cond, None) for t in times]).float()


def difference(found: Tensor, expected: Tensor) -> float:
    """The largest difference, as a share of the largest number that is expected."""
    return float((found.float() - expected).abs().max() / expected.abs().max())


def save(reference: Reference, folder: Path) -> None:
    """Write a reference beside an export."""
    save_tensors(reference, folder / FILE)


def load(folder: Path) -> Reference:
    """The reference of an export. Raises VidcmError if it cannot be read."""
    try:
        return load_file(folder / FILE)
    except (SafetensorError, OSError) as error:
        raise VidcmError(f"cannot read {folder / FILE}: {error}") from None


def pipeline_codec(root: Path) -> VideoCodec | None:
    """The codec of a pipeline folder, if it has one."""
    return load_model(root / "vae", VideoCodec) if (root / "vae").is_dir() else None
