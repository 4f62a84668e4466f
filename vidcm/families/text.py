"""Prompts as a family's own pipeline encodes them."""

import hashlib
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vidcm.errors import UsageError
from vidcm.families.base import Family, find_family, library_class
from vidcm.families.component import ComponentFolder, component, read_config
from vidcm.files import file_hash
from vidcm.models.offload import Offload
from vidcm.store import local_folder


class PipelineText:
    """The frozen text tower of a diffusers folder; it is no part of a model's weights.

    It is loaded at the first prompt. Cleaning, length, padding and masks are the pipeline's.

    Args:
        root: The pipeline's folder, with `text_encoder` and `tokenizer`.
        family: Its family.
    """

    def __init__(self, root: Path, family: Family):
        self.root, self.family = root, family
        self._pipeline: Any = None

    @property
    def hidden_size(self) -> int:
        """Width of the tokens."""
        config = read_config(self.root / "text_encoder")
        return int(config.get("d_model") or config["hidden_size"])

    def dropped(self, prompt: str) -> list[str]:
        """The words of a prompt that lie beyond the text length, by the tokenizer's count."""
        tokenizer = self._load("cpu").tokenizer
        found = tokenizer(prompt, return_offsets_mapping=True, add_special_tokens=False)
        last = self.family.text_length - 1  # the end token takes one
        return prompt[found["offset_mapping"][last][0] :].split() if len(found[0]) > last else []

    def fingerprint(self) -> str:
        """sha256 of what the tokens depend on: weights, tokenizer, and the pipeline's cleaning.

        Pipelines clean prompts with ftfy, so that its version counts.

        Raises:
            UsageError: diffusers or ftfy are not installed, a part of the tower is missing, or its
                weights are pickled.
            VidcmError: Weights are missing.
        """
        library_class(self.family.pipeline)
        found = hashlib.sha256(f"{self.family.pipeline} ftfy {version('ftfy')} ".encode())
        found.update(ComponentFolder(self.root / "text_encoder").hash().encode())
        files = (p for p in (self.root / "tokenizer").rglob("*") if p.is_file())
        for path in sorted(files):
            found.update(f"{path.name} {file_hash(path)}".encode())
        return found.hexdigest()

    def dtype(self, device: torch.device | str) -> torch.dtype:
        """Of its weights, to which its tokens are rounded; loads it."""
        return self._load(device).text_encoder.dtype

    def release(self) -> None:
        """Free the tower; the next prompt loads it again."""
        self._pipeline = None

    def to(self, device: torch.device | str) -> None:
        """Move the tower if it is loaded."""
        if self._pipeline is not None:
            self._pipeline.text_encoder.to(device)

    def without_data(self) -> Any:
        """The tower on the meta device, from its config alone."""
        folder = self.root / "text_encoder"
        config = library_class("AutoConfig", "transformers").from_pretrained(
            folder, local_files_only=True
        )
        with torch.device("meta"):
            tower = library_class(self._class_name(), "transformers")(config)
        dtype = str(read_config(folder).get("dtype", "float32"))
        return tower.eval().requires_grad_(False).to(getattr(torch, dtype))

    @torch.no_grad()
    def __call__(
        self, prompts: Sequence[str], device: torch.device | str = "cpu"
    ) -> tuple[Tensor, Tensor]:
        """Tokens `(b, n, d)`, float32, and their mask `(b, n)`.

        Args:
            prompts: One per sample.
            device: Where the tower runs.
        """
        found = self._load(device).encode_prompt(
            list(prompts),
            do_classifier_free_guidance=False,
            max_sequence_length=self.family.text_length,
            device=torch.device(device),
        )
        tokens = found[0].float()
        if self.family.text_mask:
            return tokens, found[1].bool()
        return tokens, torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device)

    def _load(self, device: torch.device | str) -> Any:
        if self._pipeline is None:
            name = self._class_name()
            encoder = component(self.root / "text_encoder", name, "transformers")
            tokenizer = library_class("AutoTokenizer", "transformers").from_pretrained(
                self.root / "tokenizer", local_files_only=True
            )
            pipeline = library_class(self.family.pipeline)
            parts = dict.fromkeys(("vae", "transformer", "scheduler"))
            self._pipeline = pipeline(tokenizer=tokenizer, text_encoder=encoder, **parts)
        self._pipeline.text_encoder.to(device)
        return self._pipeline

    def _class_name(self) -> str:
        names = read_config(self.root / "text_encoder").get("architectures") or []
        if len(names) != 1:
            raise UsageError(f"{self.root / 'text_encoder'}/config.json names no architecture")
        return names[0]


def text_tower(name: str) -> PipelineText:
    """The text tower of a pipeline.

    Args:
        name: The pipeline's folder, or its `text_encoder`; on the hub too.

    Raises:
        UsageError: There is none, or vidcm knows no family of its network.
    """
    folder = local_folder(name)
    if (folder / "model.json").is_file():
        raise UsageError(
            f"{name} is a model of vidcm, whose text tower is trained with its denoiser, so its "
            "tokens cannot be kept; give the folder of a public pipeline"
        )
    root = folder.parent if folder.name == "text_encoder" else folder
    parts = ("text_encoder", "tokenizer", "transformer")
    if missing := [part for part in parts if not (root / part).is_dir()]:
        raise UsageError(
            f"{root} is no pipeline of diffusers with a text tower: it has no folder "
            f"{', '.join(missing)}; give the whole pipeline's folder"
        )
    class_name = str(read_config(root / "transformer").get("_class_name"))
    return PipelineText(root, find_family(class_name))


class OffloadedText(PipelineText):
    """A text tower that is on its device only while it works; loaded anew.

    Args:
        tower: The tower.
        offload: Moves it.
    """

    def __init__(self, tower: PipelineText, offload: Offload):
        super().__init__(tower.root, tower.family)
        self.offload = offload

    def __call__(
        self, prompts: Sequence[str], device: torch.device | str = "cpu"
    ) -> tuple[Tensor, Tensor]:
        self.offload.use(self)
        return super().__call__(prompts, self.offload.device)
