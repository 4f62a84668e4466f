"""What a network starts as, and how it saves memory and time, before it is trained."""

import os
import shutil
from typing import Any

from torch import nn

from vidcm.config import TrainConfig
from vidcm.errors import UsageError
from vidcm.registry import lookup
from vidcm.store import load_weights, read_card, read_weights


def apply_memory_options(model: nn.Module, config: TrainConfig) -> None:
    """Make a network apply_memory_options memory and time as the config says, without changing what it computes.

    Raises UsageError for a network that cannot, and for compilation without a compiler."""
    backbone: Any = getattr(model, "backbone", None)
    if config.activation_checkpointing:
        if not hasattr(backbone, "activation_checkpointing"):
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
        # Prompts differ in length from batch to batch, so shapes that turn out to vary become
        # dynamic; fixed ones would compile anew for each.
        backbone.compile()


def init_from(model: nn.Module, folder: str) -> None:
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
