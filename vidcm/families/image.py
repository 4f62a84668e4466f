"""Pictures as tokens, as a family's own pipeline encodes them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vidcm.errors import UsageError
from vidcm.families.base import library_class
from vidcm.families.component import ComponentFolder, component, read_config
from vidcm.models.offload import Offload

ENCODER, PROCESSOR = "image_encoder", "image_processor"


class PipelineImage:
    """The frozen picture encoder of a diffusers folder (CLIP); it is no part of a model's weights.

    It is loaded at the first picture.

    Args:
        root: The pipeline's folder, with `image_encoder` and `image_processor`.

    Attributes:
        offload: Moves it to its device; None if it stays there.
    """

    def __init__(self, root: Path):
        self.root = root
        self._parts: tuple[Any, Any] | None = None
        self.offload: Offload | None = None

    def release(self) -> None:
        """Free the encoder; the next picture loads it again."""
        self._parts = None

    def to(self, device: torch.device | str) -> None:
        """Move the encoder if it is loaded."""
        if self._parts is not None:
            self._parts[0].to(device)

    @property
    def hash(self) -> str:
        """sha256 of its weights and config."""
        return ComponentFolder(self.root / ENCODER).hash()

    @property
    def tokens(self) -> tuple[int, int]:
        """Tokens of a picture, and their width."""
        config = self._config()
        return (config["image_size"] // config["patch_size"]) ** 2 + 1, config["hidden_size"]

    @torch.no_grad()
    def __call__(self, pictures: Sequence[np.ndarray], device: torch.device | str) -> Tensor:
        """Tokens `(b, n, d)`, float32: the encoder's states before its last layer.

        Args:
            pictures: uint8 `(h, w, 3)` each.
            device: Where the encoder runs.
        """
        encoder, processor = self._load()
        if self.offload is None:
            encoder.to(device)
        else:
            self.offload.use(self)
        images = [Image.fromarray(picture) for picture in pictures]
        inputs = processor(images=images, return_tensors="pt")["pixel_values"]
        weight = next(encoder.parameters())
        found = encoder(inputs.to(weight), output_hidden_states=True)
        return found.hidden_states[-2].float()

    def without_data(self) -> Any:
        """The encoder on the meta device, from its config alone."""
        kind = library_class(self._class_name(), "transformers")
        config = kind.config_class.from_pretrained(self.root / ENCODER, local_files_only=True)
        with torch.device("meta"):
            return kind(config).eval().requires_grad_(False)

    def _load(self) -> tuple[Any, Any]:
        if self._parts is None:
            encoder = component(self.root / ENCODER, self._class_name(), "transformers")
            processor = library_class("AutoImageProcessor", "transformers").from_pretrained(
                self.root / PROCESSOR, local_files_only=True
            )
            self._parts = encoder, processor
        return self._parts

    def _config(self) -> dict[str, Any]:
        config = read_config(self.root / ENCODER)
        return config.get("vision_config", config)

    def _class_name(self) -> str:
        names = read_config(self.root / ENCODER).get("architectures") or []
        if len(names) != 1:
            raise UsageError(f"{self.root / ENCODER}/config.json names no architecture")
        return names[0]
