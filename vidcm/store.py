"""Model folders: `model.json` (spec and metadata) beside `model.safetensors`."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from vidcm.errors import UsageError, VidcmError
from vidcm.files import file_hash, on_hub, replacing
from vidcm.registry import build, lookup
from vidcm.version import __version__

FORMAT = 2  # 2: matrices may be int8 with a scale per row
SCALE = "::scale"  # suffix of the names of these scales


def save_model(
    folder: str | Path,
    spec: dict,
    weights: dict[str, Tensor],
    *,
    metadata: dict | None = None,
    dtype: torch.dtype | None = None,
) -> None:
    """Write a model folder atomically.

    Args:
        folder: the folder.
        spec: argument of `build("model", spec)`.
        weights: its state dict.
        metadata: facts about the training (config, step, data).
        dtype: storage type of floating-point weights. torch.int8 stores matrices, kernels and
            tables as int8 with a float16 scale per row, an error near 0.8 % of the row's standard
            deviation, and the rest as float16.

    Raises:
        VidcmError: the folder cannot be written.
    """
    tensors = {}
    for name, v in weights.items():
        v = v.detach().to("cpu")
        if dtype == torch.int8 and v.is_floating_point():
            tensors |= _quantise(name, v)
        else:
            tensors[name] = v.to(dtype if v.is_floating_point() else None)
    with replacing(folder) as part:
        part.mkdir()
        save_tensors(tensors, part / "model.safetensors")
        card = {
            "format": FORMAT,
            "vidcm": __version__,
            "spec": spec,
            "metadata": metadata or {},
            "sha256": file_hash(part / "model.safetensors"),
        }
        (part / "model.json").write_text(json.dumps(card, indent=1), "utf-8")


def save_tensors(
    tensors: dict[str, Tensor], path: Path, metadata: dict[str, str] | None = None
) -> None:
    """Write a safetensors file with the usual permissions. Raises OSError if it cannot."""
    try:
        save_file({name: v.contiguous() for name, v in tensors.items()}, path, metadata)
    except SafetensorError as error:
        raise OSError(None, str(error)) from error
    path.chmod(0o644)  # safetensors writes for the owner alone


def local_folder(name: str | Path) -> Path:
    """A folder, downloaded first if the name is of the hub ("hf://owner/name/part").

    Raises:
        UsageError: There is neither such a folder nor such a part on the hub.
    """
    if on_hub(name):
        return lookup("folder_format", "hub")(str(name))
    return Path(name)


def _component(folder: Path) -> Any:
    """The component folder of diffusers that a folder is, or None."""
    if (folder / "model.json").exists() or not (folder / "config.json").is_file():
        return None
    return lookup("folder_format", "component")(folder)


def weights_hash(folder: str | Path) -> str:
    """sha256 of the weights of a model folder, or of weights and config of a component folder."""
    component = _component(local_folder(folder))
    return component.hash() if component else read_card(folder)["sha256"]


def read_card(folder: str | Path) -> dict:
    """The `model.json` of a model folder; the like of it for a component folder of diffusers.

    Raises:
        UsageError: it is not a model folder.
        VidcmError: the file is damaged, or of a newer version.
    """
    folder = local_folder(folder)
    if component := _component(folder):
        return component.card()
    try:
        card = json.loads((folder / "model.json").read_text("utf-8"))
    except FileNotFoundError:
        parts = [p for p in ("transformer", "vae") if (folder / p / "config.json").is_file()]
        raise UsageError(
            f"{folder} is a pipeline of diffusers; give its folder {' or '.join(parts)}"
            if parts
            else f"{folder} is not a model folder (no model.json); give the `final` folder of a run"
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise VidcmError(f"cannot read {folder / 'model.json'}: {error}") from None
    for key, kind in {"spec": dict, "format": int, "metadata": dict, "sha256": str}.items():
        if not isinstance(card, dict) or not isinstance(card.get(key), kind):
            raise VidcmError(f"{folder / 'model.json'} is damaged: it has no `{key}`")
    if card["format"] > FORMAT:
        raise VidcmError(
            f"{folder} was written by vidcm {card.get('vidcm')}, newer than {__version__}; upgrade"
        )
    return card


def read_weights(folder: str | Path) -> dict[str, Tensor]:
    """The tensors of a model folder.

    Raises:
        VidcmError: they do not match the recorded hash, or are not finite.
    """
    folder = local_folder(folder)
    if component := _component(folder):
        return component.weights()
    path = folder / "model.safetensors"
    card = read_card(folder)
    if not path.is_file():
        raise VidcmError(f"{folder} lacks model.safetensors; copy the whole folder")
    if file_hash(path) != card.get("sha256"):
        raise VidcmError(
            f"{path} is truncated or altered (its sha256 is not that in model.json); copy it again"
        )
    try:
        weights = load_file(path)
    except (SafetensorError, OSError) as error:
        raise VidcmError(f"cannot read {path}: {error}") from None
    for name, tensor in weights.items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise VidcmError(f"{path}: the tensor {name} holds values that are not finite")
    for name in [n for n in weights if n.endswith(SCALE)]:
        scale, matrix = weights.pop(name).float(), name.removesuffix(SCALE)
        rows = weights[matrix].float()
        weights[matrix] = rows * scale.view(-1, *[1] * (rows.ndim - 1))
    return weights


def _quantise(name: str, v: Tensor) -> dict[str, Tensor]:
    """Tensors that store a floating-point tensor in eight bits."""
    if v.ndim < 2:
        return {name: v.half()}
    scale = (v.float().flatten(1).abs().amax(1) / 127).clamp(min=2**-24).half()
    wide = scale.float().view(-1, *[1] * (v.ndim - 1))
    return {name: (v.float() / wide).round().clamp(-127, 127).to(torch.int8), name + SCALE: scale}


def load_model(
    folder: str | Path, kind: type | None = None, device: str | torch.device = "cpu", **options: Any
) -> Any:
    """Build the model of a folder with its weights, in evaluation mode, fp32, without gradients.

    Args:
        folder: the model folder.
        kind: required class.
        device: device of the weights.
        options: options of the spec that the folder does not have.

    Raises:
        UsageError: not a model folder, or of another class.
        VidcmError: it is damaged.
    """
    card = read_card(folder)
    with torch.random.fork_rng(devices=[]):  # initial weights are overwritten
        model: nn.Module = build("model", card["spec"] | options)
    if kind is not None and not isinstance(model, kind):
        raise UsageError(f"{folder} holds a {type(model).__name__}; expected a {kind.__name__}")
    load_weights(model, read_weights(folder), str(folder))
    return model.eval().requires_grad_(False).to(device, torch.float32)


def load_weights(model: nn.Module, weights: dict[str, Tensor], where: str) -> None:
    """Load weights whose names and shapes must all match.

    Args:
        model: the module.
        weights: its state dict.
        where: origin of the weights, for the error.

    Raises:
        VidcmError: lists the mismatches.
    """
    own = model.state_dict()
    problems = [f"{k} is missing" for k in own if k not in weights]
    problems += [f"{k} is unknown" for k in weights if k not in own]
    problems += [
        f"{k} is {tuple(weights[k].shape)}, not {tuple(v.shape)}"
        for k, v in own.items()
        if k in weights and weights[k].shape != v.shape
    ]
    if problems:
        more = [f"and {len(problems) - 5} more"] if len(problems) > 5 else []
        raise VidcmError(
            f"the weights of {where} do not fit the model: {'; '.join(problems[:5] + more)}"
        )
    model.load_state_dict({k: v.to(own[k].dtype) for k, v in weights.items()})
