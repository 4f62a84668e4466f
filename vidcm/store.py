"""A model folder: `model.json` (what to build, how it was made) beside `model.safetensors`."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from vidcm.errors import UsageError, VidcmError
from vidcm.files import file_hash, replacing
from vidcm.registry import build
from vidcm.version import __version__

FORMAT = 2  # 2: matrices may be int8 with a scale per row
SCALE = "::scale"


def save_model(
    folder: str | Path,
    spec: dict,
    weights: dict[str, Tensor],
    *,
    made: dict | None = None,
    dtype: torch.dtype | None = None,
) -> None:
    """Write a model folder, whole or not at all. spec: what `build("model", spec)` takes. made:
    facts about the making (config, step, data). dtype: storage type of the floating weights;
    torch.int8 stores matrices (and kernels, tables) as int8 with a float16 scale for each of their
    rows, an error near 0.8 % of a row's spread, and all else as float16."""
    tensors = {}
    for name, v in weights.items():
        v = v.detach().to("cpu")
        if dtype == torch.int8 and v.is_floating_point():
            tensors |= _rounded(name, v)
        else:
            tensors[name] = v.to(dtype if v.is_floating_point() else None).contiguous()
    with replacing(folder) as part:
        part.mkdir()
        save_file(tensors, part / "model.safetensors")
        (part / "model.safetensors").chmod(0o644)  # safetensors writes for the owner alone
        card = {
            "format": FORMAT,
            "vidcm": __version__,
            "spec": spec,
            "made": made or {},
            "sha256": file_hash(part / "model.safetensors"),
        }
        (part / "model.json").write_text(json.dumps(card, indent=1), "utf-8")


def read_card(folder: str | Path) -> dict:
    """The `model.json` of a model folder. Raises UsageError when it is not one."""
    folder = Path(folder)
    try:
        card = json.loads((folder / "model.json").read_text("utf-8"))
    except FileNotFoundError:
        raise UsageError(
            f"{folder} is not a model folder (no model.json); give the `final` folder of a run"
        ) from None
    except (OSError, ValueError) as error:
        raise VidcmError(f"cannot read {folder / 'model.json'}: {error}") from None
    for key, kind in {"spec": dict, "format": int, "made": dict, "sha256": str}.items():
        if not isinstance(card, dict) or not isinstance(card.get(key), kind):
            raise VidcmError(f"{folder / 'model.json'} is damaged: it has no `{key}`")
    if card["format"] > FORMAT:
        raise VidcmError(
            f"{folder} was made by vidcm {card.get('vidcm')}, newer than {__version__}; upgrade"
        )
    return card


def read_weights(folder: str | Path) -> dict[str, Tensor]:
    """The tensors of a model folder, checked against the recorded hash and for finiteness."""
    path = Path(folder) / "model.safetensors"
    card = read_card(folder)
    if not path.is_file():
        raise VidcmError(f"{folder} lacks model.safetensors; copy the whole folder")
    if file_hash(path) != card.get("sha256"):
        raise VidcmError(
            f"{path} is truncated or altered (its sha256 is not the one in model.json); copy it again"
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


def _rounded(name: str, v: Tensor) -> dict[str, Tensor]:
    """A floating tensor for storage in eight bits."""
    if v.ndim < 2:
        return {name: v.half().contiguous()}
    scale = (v.float().flatten(1).abs().amax(1) / 127).clamp(min=2**-24).half()
    wide = scale.float().view(-1, *[1] * (v.ndim - 1))
    return {
        name: (v.float() / wide).round().clamp(-127, 127).to(torch.int8),
        name + SCALE: scale,
    }


def load_model(
    folder: str | Path, kind: type | None = None, device: str | torch.device = "cpu"
) -> Any:
    """Build and fill the model of a folder, in evaluation mode, fp32, without gradients.

    kind: the class it must be. Raises UsageError for another kind and VidcmError for damage."""
    card = read_card(folder)
    model: nn.Module = build("model", card["spec"])
    if kind is not None and not isinstance(model, kind):
        raise UsageError(f"{folder} holds a {type(model).__name__}; expected a {kind.__name__}")
    load_weights(model, read_weights(folder), str(folder))
    return model.eval().requires_grad_(False).to(device)


def load_weights(model: nn.Module, weights: dict[str, Tensor], where: str) -> None:
    """Fill a module, all names and shapes matching. Raises VidcmError listing what does not fit."""
    own = model.state_dict()
    problems = [f"{k} is missing" for k in own if k not in weights]
    problems += [f"{k} is unknown" for k in weights if k not in own]
    problems += [
        f"{k} is {tuple(weights[k].shape)}, not {tuple(v.shape)}"
        for k, v in own.items()
        if k in weights and weights[k].shape != v.shape
    ]
    if problems:
        shown = "; ".join(problems[:5]) + (
            f"; and {len(problems) - 5} more" if len(problems) > 5 else ""
        )
        raise VidcmError(f"the weights of {where} do not fit the model: {shown}")
    model.load_state_dict({k: v.to(own[k].dtype) for k, v in weights.items()})
