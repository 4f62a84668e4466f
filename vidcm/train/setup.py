"""The weights that a network starts with, and options that save memory and time."""

import os
import shutil
from typing import Any

import torch
from torch import nn

from vidcm.config import TrainConfig
from vidcm.diffusion.denoiser import Denoiser
from vidcm.errors import UsageError
from vidcm.families.cached_text import CachedText
from vidcm.families.text import PipelineText
from vidcm.models.backbone import TransformerBackbone
from vidcm.registry import build, lookup
from vidcm.store import load_model, load_weights, read_card, read_weights


class Models:
    """Builds the networks of a run, with the weights of their folders.

    Args:
        text: In the place of the frozen text tower of denoisers, if there is one.
    """

    def __init__(self, text: CachedText | None = None):
        self.text = text

    def build(self, spec: dict[str, Any]) -> Any:
        """A network with fresh weights, to be trained."""
        return self.with_text(build("model", spec))

    def with_text(self, model: Any) -> Any:
        """The network, its frozen text tower replaced."""
        frozen = isinstance(model, Denoiser) and isinstance(model.conditioner, PipelineText)
        if self.text is not None and frozen:
            model.conditioner = self.text
        return model

    def start(self, model: nn.Module, folder: str) -> None:
        """Give a network its first weights; see `init_from`."""
        init_from(model, folder)

    def start_text(self, model: nn.Module, folder: str) -> None:
        """Give a denoiser's text tower its first weights; see `init_text`."""
        init_text(model, folder)

    def load(self, folder: str, kind: type, device: torch.device) -> Any:
        """A frozen network with its weights."""
        return self.with_text(load_model(folder, kind, device))


def apply_memory_options(model: nn.Module, config: TrainConfig) -> None:
    """Checkpoint activations and compile as the config says; numbers stay.

    Raises:
        UsageError: The network cannot, or there is no compiler.
    """
    backbone = model.backbone if isinstance(model, Denoiser) else None
    if config.activation_checkpointing:
        if not isinstance(backbone, TransformerBackbone):
            raise UsageError(
                "activation_checkpointing is for denoisers whose backbone has blocks, such as dit; "
                "set activation_checkpointing=false"
            )
        backbone.activation_checkpointing = True
    if config.compile:
        if backbone is None:
            raise UsageError("compile is for denoisers; set compile=false")
        if not any(map(shutil.which, (os.environ.get("CXX") or "g++", "clang++"))):
            raise UsageError(
                "compile needs a C++ compiler, and there is no g++ or clang++; "
                "install one, or set compile=false"
            )
        # Prompts differ in length from batch to batch, so varying sizes become dynamic; fixed ones
        # would compile anew for each.
        backbone.compile()


def init_from(model: nn.Module, folder: str) -> None:
    """Load a model folder's weights. Inputs that only students have start at zero.

    Raises:
        UsageError: The folder has another kind of model.
    """
    kind = lookup("model", read_card(folder)["spec"].get("name"))
    if not isinstance(model, kind):
        raise UsageError(
            f"init {folder} holds a {kind.__name__}, and the model is a {type(model).__name__}; "
            "give the folder of such a model"
        )
    fresh = {}
    if isinstance(model, Denoiser) and isinstance(model.backbone, TransformerBackbone):
        prefixes = tuple(f"backbone.{name}." for name in model.backbone.student_inputs)
        fresh = {k: v for k, v in model.state_dict().items() if k.startswith(prefixes)}
    load_weights(model, fresh | read_weights(folder), folder)


def init_text(model: nn.Module, folder: str) -> None:
    """Load a caption reader's text tower into a denoiser.

    Raises:
        UsageError: The model is no denoiser, or the folder has no text tower.
    """
    if not isinstance(model, Denoiser):
        raise UsageError("init_text is for denoisers: it names the caption reader of their tower")
    prefix = "conditioner."
    weights = {
        k.removeprefix(prefix): v for k, v in read_weights(folder).items() if k.startswith(prefix)
    }
    if not weights:
        raise UsageError(f"init_text {folder} holds no text tower; give a caption reader's folder")
    load_weights(model.conditioner, weights, folder)
