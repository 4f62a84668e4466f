"""From a config to a task: which model, objective and data, what to draw, what to export."""

import inspect
from pathlib import Path
from typing import Any, get_type_hints

import torch
from torch import Tensor, nn

from vidcm.codecs.causal_vae import CausalVAE
from vidcm.config import TrainConfig
from vidcm.diffusion.denoiser import Denoiser
from vidcm.errors import UsageError
from vidcm.lpc.attribute_net import AttributeNet
from vidcm.lpc.caption_reader import CaptionReader
from vidcm.lpc.naming_task import caption_task, naming_task
from vidcm.media.contact_sheet import contact_sheet
from vidcm.media.pixels import to_frames, to_video
from vidcm.metrics.fidelity import psnr
from vidcm.registry import build, lookup
from vidcm.store import load_weights, read_weights
from vidcm.train.loop import Task
from vidcm.train.setup import apply_memory_options, init_from

PREVIEW_SEED = 2**31  # a stretch of the data that training does not reach


def make_task(config: TrainConfig, device: torch.device) -> Task:
    """Build everything a config names. Raises UsageError where parts do not fit together."""
    model = build("model", config.model)
    check_objective(model, config)
    if config.start:
        init_from(model, config.start)
    if config.init_text:
        _load_text(model, config.init_text)
    if config.lora and config.start:
        from vidcm.train import lora

        base = lora.adapt(model, config.lora, config.start)
        return lora.plainly(_task(config, model, device), config.lora, base)
    return _task(config, model, device)


def _task(config: TrainConfig, model: Any, device: torch.device) -> Task:
    apply_memory_options(model.to(device), config)
    data = build("data", config.data, batch_size=config.batch_size)
    if isinstance(model, CausalVAE):
        return _codec_task(config, model, data, device)
    if isinstance(model, AttributeNet):
        return naming_task(config, model, data)
    if isinstance(model, CaptionReader):
        return caption_task(config, model, data)
    from vidcm.train.denoiser_task import video_task

    return video_task(config, model, data, device)


def check_objective(model: nn.Module, config: TrainConfig) -> None:
    """Raises UsageError where the objective is for other models, as its call is annotated, or where
    a teacher is named to one that asks none."""
    name = config.objective.get("name", "")
    objective: Any = lookup("objective", name)
    trains = get_type_hints(objective.__call__).get("model", nn.Module)
    if not isinstance(model, trains):
        raise UsageError(
            f"objective {name} trains a {trains.__name__}, and model {config.model['name']} is a "
            f"{type(model).__name__}; choose an objective for it, or another model"
        )
    if config.teacher is not None and "teacher" not in inspect.signature(objective).parameters:
        raise UsageError(f"objective {name} asks no teacher; leave out teacher: {config.teacher}")


def _load_text(model: nn.Module, folder: str) -> None:
    """Start a denoiser's text tower as a caption reader's."""
    if not isinstance(model, Denoiser):
        raise UsageError(
            "init_text is for denoisers: it names the caption reader their tower starts as"
        )
    prefix = "conditioner."
    weights = {
        k.removeprefix(prefix): v for k, v in read_weights(folder).items() if k.startswith(prefix)
    }
    if not weights:
        raise UsageError(f"init_text {folder} holds no text tower; give a caption reader's folder")
    load_weights(model.conditioner, weights, folder)


def _codec_task(config: TrainConfig, model: CausalVAE, data, device: torch.device) -> Task:
    objective = build("objective", config.objective)
    if objective.decoder_only:
        model.encoder.requires_grad_(False)
    held: Tensor | None = data.batch(PREVIEW_SEED, range(8)).frames
    if held is None:
        raise UsageError(
            f"a codec is trained on frames, and the data {config.data['name']} have none; use the "
            "data lpc or folder"
        )
    video = to_video(held)
    if not config.init:
        model.init_from_pca(to_video(data.batch(PREVIEW_SEED + 1, range(128)).frames).to(device))

    @torch.no_grad()
    def rebuild(weights: dict[str, Tensor]) -> tuple[CausalVAE, Tensor]:
        copy = build("model", config.model)
        copy.load_state_dict(weights)
        return copy, copy.reconstruct(copy.posterior(video)[0]).clamp(-1, 1)

    def preview(weights: dict[str, Tensor], path: Path) -> dict[str, float]:
        rebuilt = rebuild(weights)[1]
        pairs = zip(held.numpy()[:4], to_frames(rebuilt).numpy()[:4], strict=True)
        contact_sheet([[a, b] for a, b in pairs], None, path, scale=2, overwrite=True)
        return {"preview/psnr": float(psnr(rebuilt, video, peak=2).mean())}

    @torch.no_grad()
    def finish(weights: dict[str, Tensor]) -> dict[str, Tensor]:
        """Settle the latents' axes and scale; a new decoder leaves them as they are."""
        if objective.decoder_only:
            return weights
        copy = rebuild(weights)[0]
        posteriors = []
        for start in range(0, 1024, 32):
            frames = data.batch(PREVIEW_SEED + 1, range(start, start + 32)).frames
            posteriors.append(copy.posterior(to_video(frames)))
        mean, logvar = (torch.cat(parts) for parts in zip(*posteriors, strict=True))
        copy.whiten(mean, logvar)
        return copy.state_dict()

    return Task(model, objective, data, preview, finish)
