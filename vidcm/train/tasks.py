"""From a config to a task: which model, objective and data, what to draw, what to export."""

import inspect
import os
import shutil
from pathlib import Path
from typing import Any, get_type_hints

import torch
from torch import Tensor, nn

from vidcm.codecs.causal_vae import CausalVAE
from vidcm.codecs.losses import psnr
from vidcm.config import TrainConfig
from vidcm.contact import contact_sheet
from vidcm.denoiser import Denoiser
from vidcm.errors import UsageError
from vidcm.models.attribute_net import AttributeNet
from vidcm.models.caption_reader import CaptionReader
from vidcm.registry import build, lookup
from vidcm.store import load_weights, read_card, read_weights
from vidcm.train.loop import Task
from vidcm.train.naming_task import caption_task, naming_task
from vidcm.video import to_frames, to_video

PREVIEW_SEED = 2**31  # a stretch of the data that training does not reach


def make_task(config: TrainConfig, device: torch.device) -> Task:
    """Build everything a config names. Raises UsageError where parts do not fit together."""
    model = build("model", config.model)
    check_objective(model, config)
    if config.start:
        start_as(model, config.start)
    if config.text:
        _load_text(model, config.text)
    if config.lora and config.start:
        from vidcm.train import lora

        base = lora.adapt(model, config.lora, config.start)
        return lora.plainly(_task(config, model, device), config.lora, base)
    return _task(config, model, device)


def _task(config: TrainConfig, model: Any, device: torch.device) -> Task:
    spare(model.to(device), config)
    data = build("data", config.data, batch_size=config.batch_size)
    if isinstance(model, CausalVAE):
        return _codec_task(config, model, data, device)
    if isinstance(model, AttributeNet):
        return naming_task(config, model, data)
    if isinstance(model, CaptionReader):
        return caption_task(config, model, data)
    from vidcm.train.video_task import video_task

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


def spare(model: nn.Module, config: TrainConfig) -> None:
    """Make a network spare memory and time as the config says, without changing what it computes.

    Raises UsageError for a network that cannot, and for compilation without a compiler."""
    backbone: Any = getattr(model, "backbone", None)
    if config.checkpointing:
        if not hasattr(backbone, "checkpointing"):
            raise UsageError(
                "checkpointing is for denoisers whose backbone has blocks, such as dit; "
                "set checkpointing=false"
            )
        backbone.checkpointing = True
    if config.compile:
        if backbone is None:
            raise UsageError("compile is for denoisers; set compile=false")
        if not any(map(shutil.which, (os.environ.get("CXX") or "g++", "clang++"))):
            raise UsageError(
                "compile needs a C++ compiler, and there is no g++ or clang++; "
                "install one, or set compile=false"
            )
        # Prompts differ in length from batch to batch, so shapes that turn out to vary become
        # dynamic; fixed ones would compile anew for each.
        backbone.compile()


def start_as(model: nn.Module, folder: str) -> None:
    """Take a model folder's weights. A student starts as its teacher; the guidance input that it
    has beyond it starts at zero. Raises UsageError for a folder of another kind of model."""
    kind = lookup("model", read_card(folder)["spec"].get("name"))
    if not isinstance(model, kind):
        raise UsageError(
            f"init {folder} holds a {kind.__name__}, and the model is a {type(model).__name__}; "
            "give the folder of such a model"
        )
    fresh = {
        k: v
        for k, v in model.state_dict().items()
        if k.startswith(("backbone.guidance.", "backbone.span."))
    }
    load_weights(model, fresh | read_weights(folder), folder)


def _load_text(model: nn.Module, folder: str) -> None:
    """Start a denoiser's text tower as a caption reader's."""
    if not isinstance(model, Denoiser):
        raise UsageError("text is for denoisers: it names the caption reader their tower starts as")
    prefix = "conditioner."
    weights = {
        k.removeprefix(prefix): v for k, v in read_weights(folder).items() if k.startswith(prefix)
    }
    if not weights:
        raise UsageError(f"text {folder} holds no text tower; give a caption reader's folder")
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
        model.start_from_data(to_video(data.batch(PREVIEW_SEED + 1, range(128)).frames).to(device))

    @torch.no_grad()
    def rebuild(weights: dict[str, Tensor]) -> tuple[CausalVAE, Tensor]:
        copy = build("model", config.model)
        copy.load_state_dict(weights)
        return copy, copy.reconstruct(copy.posterior(video)[0]).clamp(-1, 1)

    def preview(weights: dict[str, Tensor], path: Path) -> dict[str, float]:
        rebuilt = rebuild(weights)[1]
        pairs = zip(held.numpy()[:4], to_frames(rebuilt).numpy()[:4], strict=True)
        contact_sheet([[a, b] for a, b in pairs], None, path, scale=2, overwrite=True)
        return {"preview/psnr": float(psnr(rebuilt, video).mean())}

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
        copy.settle(mean, logvar)
        return copy.state_dict()

    return Task(model, objective, data, preview, finish)
