"""Low-rank updates in files, as ComfyUI and diffusers read them: W + scale alpha / rank B A."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from vidcm.errors import UsageError, VidcmError
from vidcm.families.base import Family
from vidcm.families.original import RULES, original_names

ORIGINAL, DIFFUSERS = "diffusion_model.", "transformer."  # prefixes of the two ways to name layers
DOWN, UP, ALPHA = ".lora_A.weight", ".lora_B.weight", ".alpha"
SYNONYMS = {".lora_down.weight": DOWN, ".lora_up.weight": UP}


@dataclass(frozen=True)
class LowRank:
    """The update of one layer.

    Attributes:
        down: A, `(rank, in)`.
        up: B, `(out, rank)`.
        alpha: Its scale times the rank.
    """

    down: Tensor
    up: Tensor
    alpha: float

    def matrix(self) -> Tensor:
        """alpha / rank B A, float32."""
        return self.alpha / len(self.down) * (self.up.float() @ self.down.float())


@dataclass(frozen=True)
class LoraFile:
    """A file of low-rank updates.

    Attributes:
        path: Where it is.
        layers: By the layer's name in the file, prefix included.
        facts: What vidcm wrote of it; {} for files of others.
    """

    path: Path
    layers: dict[str, LowRank]
    facts: dict[str, Any]

    @classmethod
    def read(cls, path: str | Path) -> Self:
        """Read a file.

        Raises:
            UsageError: It is no file of low-rank updates that vidcm reads.
            VidcmError: It is damaged.
        """
        path = Path(path)
        if not path.is_file():
            raise UsageError(f"there is no LoRA file {path}")
        if path.suffix != ".safetensors":
            raise UsageError(
                f"{path} is no .safetensors file; other formats can execute code and are not read"
            )
        try:
            with safe_open(path, "pt") as file:
                tensors = {k: file.get_tensor(k) for k in file.keys()}
                facts = json.loads((file.metadata() or {}).get("vidcm", "{}"))
        except (SafetensorError, OSError, ValueError) as error:
            raise VidcmError(f"cannot read {path}: {error}") from None
        return cls(path, _layers(tensors, path), facts if isinstance(facts, dict) else {})

    def updates(self, family: Family, network: Any) -> dict[str, Tensor]:
        """Updates of a network's weights, by their names.

        Args:
            family: The network's.
            network: diffusers' transformer.

        Raises:
            UsageError: A layer is not in the network, or has another shape there.
        """
        weights = {k: v for k, v in network.state_dict().items() if k.endswith(".weight")}
        names = {DIFFUSERS + k: k for k in weights}
        if family.name in RULES:
            names |= {ORIGINAL + v: k for k, v in original_names(family, weights).items()}
        found: dict[str, Tensor] = {}
        for layer, update in self.layers.items():
            name, shape = names.get(f"{layer}.weight"), (len(update.up), update.down.shape[1])
            own = None if name is None else tuple(weights[name].shape)
            if name is None or own != shape:
                has = "which it has not" if own is None else f"and the network's is {own}"
                raise UsageError(
                    f"{self.path} is for another network than this {family.name}: it updates "
                    f"{layer} of {shape}, {has}"
                )
            found[name] = update.matrix()
        return found


def _layers(tensors: dict[str, Tensor], path: Path) -> dict[str, LowRank]:
    parts: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        ending = next((e for e in (DOWN, UP, ALPHA, *SYNONYMS) if key.endswith(e)), None)
        if ending is None or not key.startswith((ORIGINAL, DIFFUSERS)):
            raise UsageError(
                f"{path} has the tensor {key}; vidcm reads low-rank updates of layers named "
                f"{ORIGINAL}* or {DIFFUSERS}*, with {DOWN}, {UP} and {ALPHA}"
            )
        parts.setdefault(key.removesuffix(ending), {})[SYNONYMS.get(ending, ending)] = tensor
    layers: dict[str, LowRank] = {}
    for layer, found in parts.items():
        down, up = found.get(DOWN), found.get(UP)
        if down is None or up is None or down.ndim != 2 or up.ndim != 2 or len(down) != up.shape[1]:
            raise VidcmError(f"{path} is damaged: {layer} has no pair of matrices of one rank")
        alpha = float(found[ALPHA]) if ALPHA in found else float(len(down))
        layers[layer] = LowRank(down, up, alpha)
    if not layers:
        raise UsageError(f"{path} holds no low-rank update")
    return layers


@torch.no_grad()
def add_updates(network: Any, updates: dict[str, Tensor], scale: float) -> None:
    """Add updates to a network's weights; with the negative scale they are taken away again."""
    parameters = dict(network.named_parameters())
    for name, update in updates.items():
        parameters[name].add_(scale * update.to(parameters[name]))
