"""Clips that diffusers makes from an exported student, for the rows of a results table."""

import time
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from vidcm.errors import UsageError
from vidcm.evaluation.row_clips import ClipGenerator, GeneratedClips
from vidcm.evaluation.rows import Row
from vidcm.exports.base import read_manifest
from vidcm.exports.diffusers_folder import (
    check_scheduler,
    load_pipeline,
    manifest_layout,
    pipeline_call,
)
from vidcm.pipeline import VideoPipeline
from vidcm.rng import SampleRng


def diffusers_generator(
    pipe: VideoPipeline, exported: Path, row: Row, batch_size: int
) -> ClipGenerator:
    """A function that makes the clips of a row with the pipeline of diffusers in an export.

    Prompts are encoded and latents decoded by vidcm; network, scheduler and sampling loop are those
    that diffusers loads. Clips start from the noise that vidcm starts from. Noise that is added
    between steps is drawn otherwise, so clips of more than one step are others than vidcm's.

    Args:
        pipe: The pipeline of the same student.
        exported: Folder that `vidcm export --to diffusers` wrote.
        row: Its number of steps.
        batch_size: Clips at a time.

    Raises:
        UsageError: The folder is no export to diffusers.
        VidcmError: It is damaged, or diffusers cannot load it.
    """
    manifest = read_manifest(exported)
    if manifest.get("target") != "diffusers":
        raise UsageError(
            f"{exported} is an export to {manifest.get('target')}, and rows diffusers-N need one "
            "of vidcm export --to diffusers"
        )
    check_scheduler(exported, manifest)
    pipeline = load_pipeline(exported, manifest, remote_code=True)
    packed, generation, steps = (
        manifest_layout(manifest),
        pipe.generation(),
        row.num_inference_steps,
    )
    shape = generation.latent_shape()

    def latents(prompts: Sequence[str], seeds: Sequence[int]) -> Tensor:
        cond, noise = generation.model.encode(prompts), SampleRng.of_seeds(seeds).normal(*shape)
        made = pipeline(
            latents=packed.pack(noise),
            num_inference_steps=steps,
            output_type="latent",
            **pipeline_call(pipeline, manifest, noise.shape, cond),
        )
        return packed.unpack(made.frames, noise.shape)

    @torch.no_grad()
    def generate(
        prompts: Sequence[str],
        true_clips: Tensor,
        seeds: Sequence[int],
        *,
        complete_prompt: bool = False,
    ) -> GeneratedClips:
        seconds, frames = {"denoise": 0.0, "decode": 0.0}, []
        batches = range(0, len(prompts), batch_size)
        for i in tqdm(batches, desc=str(row), unit="batch", leave=False):
            part, clock = slice(i, i + batch_size), time.perf_counter()
            found = latents(prompts[part], seeds[part])
            seconds["denoise"] += time.perf_counter() - clock
            clock = time.perf_counter()
            frames.append(generation.decode(found))
            seconds["decode"] += time.perf_counter() - clock
        return GeneratedClips(torch.cat(frames), steps, seconds)

    return generate
