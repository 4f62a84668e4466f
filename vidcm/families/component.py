"""Component folders of diffusers: `config.json` beside safetensors, as `transformer` or `vae`.

diffusers loads a folder that lacks a tensor without a word; here everything must fit.
"""

import hashlib
import json
from importlib import import_module
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from vidcm.errors import UsageError, VidcmError
from vidcm.families.base import find_family, library_class
from vidcm.families.control import ControlSource
from vidcm.files import file_hash
from vidcm.store import local_folder

CONFIG = "config.json"


def read_config(folder: Path, name: str = CONFIG) -> dict[str, Any]:
    """The `config.json` of a component folder, or another such file.

    Raises:
        UsageError: There is none.
        VidcmError: It is damaged.
    """
    path = folder / name
    try:
        config = json.loads(path.read_text("utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise UsageError(
            f"{folder} is no component folder of diffusers (no {name}); give the folder "
            "`transformer` or `vae` of a pipeline"
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise VidcmError(f"cannot read {path}: {error}") from None
    if not isinstance(config, dict):
        raise VidcmError(f"{path} is damaged: expected an object")
    return config


class ComponentFolder:
    """A component folder in the place of a model folder (`vidcm.store`).

    Args:
        folder: With `config.json` and weights.
    """

    def __init__(self, folder: Path):
        self.folder = folder

    def card(self) -> dict[str, Any]:
        """A model card. Raises UsageError for a class of no family that vidcm knows."""
        class_name = str(read_config(self.folder).get("_class_name"))
        codec = find_family(class_name).codec == class_name
        name = "public_codec" if codec else "public_denoiser"
        return {"spec": {"name": name, "base": str(self.folder)}, "metadata": {}}

    def hash(self) -> str:
        """sha256 of config and weights together."""
        found = hashlib.sha256(json.dumps(read_config(self.folder), sort_keys=True).encode())
        for path in _files(self.folder):
            found.update(file_hash(path).encode())
        return found.hexdigest()

    def weights(self) -> dict[str, Tensor]:
        """The tensors, shards joined, by their names in vidcm's module.

        Raises:
            UsageError: The weights are pickled.
            VidcmError: A file is missing or damaged.
        """
        codec = self.card()["spec"]["name"] == "public_codec"
        prefix = "autoencoder." if codec else "backbone.transformer."
        weights: dict[str, Tensor] = {}
        for path in _files(self.folder):
            try:
                weights |= {prefix + k: v for k, v in load_file(path).items()}
            except (SafetensorError, OSError) as error:
                raise VidcmError(f"cannot read {path}: {error}") from None
        return weights


def control_source(folder: str | Path) -> ControlSource | None:
    """What the network of a folder `transformer` is given beside text; None for text alone.

    Raises:
        UsageError: It is no such folder, or the network reads something that vidcm cannot make.
    """
    folder = local_folder(folder)
    config = read_config(folder)
    return find_family(str(config.get("_class_name"))).control(config, folder.parent)


def _files(folder: Path) -> list[Path]:
    """The weight files of a component folder. Raises as `ComponentFolder.weights` does."""
    indices = sorted(folder.glob("*.safetensors.index.json"))
    if indices:
        try:
            names = set(json.loads(indices[0].read_text("utf-8"))["weight_map"].values())
        except (OSError, ValueError, KeyError, AttributeError) as error:
            raise VidcmError(f"cannot read {indices[0]}: {error}") from None
        paths = [folder / Path(str(name)).name for name in sorted(names)]
    else:
        paths = sorted(folder.glob("*.safetensors"))
        if len(paths) > 1:
            raise VidcmError(
                f"{folder} has {len(paths)} safetensors files and no index; keep one variant"
            )
    for path in paths:
        if not path.is_file():
            raise VidcmError(f"{folder} lacks {path.name}, which its index names; copy it again")
    if not paths:
        pickled = [p.name for suffix in ("*.bin", "*.pt", "*.pth") for p in folder.glob(suffix)]
        if pickled:
            raise UsageError(
                f"{folder} has pickled weights ({pickled[0]}), which can execute code; vidcm reads "
                "safetensors only: save it anew with save_pretrained(safe_serialization=True)"
            )
        raise VidcmError(f"{folder} has no weights (*.safetensors); copy the whole folder")
    return paths


def component(folder: Path, class_name: str, library: str = "diffusers") -> Any:
    """A frozen module of a component folder, in evaluation mode.

    Args:
        folder: With `config.json` and weights.
        class_name: Of the module.
        library: "diffusers" or "transformers".

    Raises:
        UsageError: The class is not there, or the weights are pickled.
        VidcmError: Tensors are missing, unknown or of other shapes.
    """
    read_config(folder)
    _files(folder)
    cls = library_class(class_name, library)
    options = {
        "output_loading_info": True,
        "use_safetensors": True,
        "local_files_only": True,
        "torch_dtype": "auto",  # as stored
    }
    bars = import_module(f"{library}.utils.logging")
    bars.disable_progress_bar()
    try:
        module, info = cls.from_pretrained(folder, **options)
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        line = " ".join(str(error).split())
        raise VidcmError(f"cannot load {folder} as {class_name}: {line[:300]}") from None
    finally:
        bars.enable_progress_bar()
    check_complete(module, info, folder)
    return module.eval().requires_grad_(False)


def check_complete(module: nn.Module, info: dict[str, Any], folder: Path) -> None:
    """Refuse a module that was loaded in part. Raises VidcmError."""
    meta = [name for name, p in module.named_parameters() if p.is_meta]
    for what, names in (
        ("lacks", {*info.get("missing_keys", ()), *meta}),
        ("has unknown tensors", info.get("unexpected_keys", ())),
        ("has tensors of other shapes", info.get("mismatched_keys", ())),
    ):
        if names:
            first = sorted(map(str, names))[:3]
            raise VidcmError(
                f"{folder} {what}: {', '.join(first)}"
                f"{f' and {len(names) - 3} more' if len(names) > 3 else ''}; copy it again"
            )


def empty_module(config: dict[str, Any], class_name: str) -> nn.Module:
    """A module of diffusers from its config alone, with fresh weights.

    Raises:
        UsageError: The class is not there, or the config does not fit it.
    """
    cls = library_class(class_name)
    try:
        return cls.from_config({k: v for k, v in config.items() if not k.startswith("_")})
    except (TypeError, ValueError, AssertionError) as error:
        raise UsageError(f"{class_name} cannot be built of its config: {error}") from None
