"""Features of clips for the Fréchet distance."""

import difflib
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from vidcm.errors import UsageError, VidcmError


class FeatureExtractor(ABC):
    """Maps clips to vectors; registered as kind "features"."""

    @abstractmethod
    def __call__(self, frames: Tensor) -> np.ndarray:
        """Clips uint8 `(b t h w 3)` -> features `(b, d)`."""


class TimmFeatures(FeatureExtractor):
    """Features of an image network of timm, for clips of any subject and size.

    A clip's vector is the mean over its frames, and the mean absolute change from frame to frame,
    so that still clips are far from moving ones. Frames are scaled to the network's input size.

    Args:
        model: a name of timm's, such as "resnet18".
        checkpoint: file of weights; default: timm's pretrained ones, which it downloads.

    Raises:
        UsageError: for an unknown model, or a checkpoint of another one.
        VidcmError: timm is not installed, or cannot download the weights.
    """

    def __init__(self, model: str, checkpoint: str | Path | None = None):
        try:
            import timm  # pyright: ignore[reportMissingImports]
            from timm.data.config import resolve_model_data_config  # pyright: ignore[reportMissingImports]
        except (ImportError, RuntimeError) as error:  # the latter where torchvision is another's
            raise VidcmError(
                f"timm does not import ({' '.join(str(error).split())}); pip install -e '.[timm]'"
            ) from None
        if not timm.is_model(model):
            near = difflib.get_close_matches(model, timm.list_models(), n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise UsageError(f"timm has no model {model!r}{hint}")
        try:
            net = timm.create_model(model, pretrained=checkpoint is None, num_classes=0)
        except Exception as error:  # whatever its hub raises
            raise VidcmError(
                f"timm cannot load weights of {model}: {' '.join(str(error).split())}; give "
                "--features-checkpoint FILE"
            ) from None
        if checkpoint is not None:
            _load_weights(net, model, Path(checkpoint))
        self.net = net.eval().requires_grad_(False)
        config = resolve_model_data_config(net)
        self.size = config["input_size"][1:]
        self.mean, self.std = (torch.tensor(config[k]).view(3, 1, 1) for k in ("mean", "std"))

    @torch.no_grad()
    def __call__(self, frames: Tensor) -> np.ndarray:
        """Clips uint8 `(b t h w 3)` -> features `(b, 2 d)`, from one frame at a time."""
        return np.stack([self._clip(clip) for clip in frames])

    def _clip(self, clip: Tensor) -> np.ndarray:
        vectors = []
        for frame in clip.permute(0, 3, 1, 2).float() / 255:
            image = F.interpolate(frame[None], self.size, mode="bilinear", antialias=True)
            vectors.append(self.net((image - self.mean) / self.std)[0])
        features = torch.stack(vectors)
        change = features.diff(dim=0).abs().mean(0) if len(features) > 1 else 0 * features[0]
        return torch.cat([features.mean(0), change]).numpy()


def _load_weights(net: Any, model: str, checkpoint: Path) -> None:
    """Load a checkpoint without its classifier. Raises UsageError where it does not fit."""
    from timm.models import load_state_dict  # pyright: ignore[reportMissingImports]

    if not checkpoint.is_file():
        raise UsageError(f"there is no checkpoint {checkpoint}")
    classifiers = net.pretrained_cfg.get("classifier") or ()
    names = (classifiers,) if isinstance(classifiers, str) else tuple(classifiers)
    try:
        weights = load_state_dict(str(checkpoint), weights_only=True)
        heads = tuple(f"{name}." for name in names)
        net.load_state_dict({k: v for k, v in weights.items() if not k.startswith(heads)})
    except Exception as error:  # pickle, zip, safetensors and torch each have their own
        reason = " ".join(str(error).split())[:200]
        raise UsageError(f"{checkpoint} holds no weights of {model}: {reason}") from None
