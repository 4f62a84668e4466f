"""Public networks with low-rank updates added to their weights."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from vidcm.diffusion.denoiser import Denoiser
from vidcm.errors import UsageError, VidcmError
from vidcm.families.denoiser import PublicDenoiser
from vidcm.families.lora import LoraFile, add_updates
from vidcm.schema import from_dict
from vidcm.settings import StudentSettings
from vidcm.store import load_model, read_card, weights_hash


@dataclass(frozen=True)
class Adapter:
    """A file of low-rank updates and the scale they are added with."""

    file: LoraFile
    scale: float = 1.0

    @property
    def student(self) -> StudentSettings | None:
        """How to sample, if the updates make a teacher a student.

        Raises:
            VidcmError: The file says it in other words than this version knows.
        """
        facts = self.file.facts.get("student")
        if facts is None:
            return None
        try:
            return from_dict(StudentSettings, facts, str(self.file.path))
        except UsageError as error:
            raise VidcmError(f"{error}; export it again") from None

    def check(self, base: str | None, where: Path) -> None:
        """Refuse a model of another base.

        Args:
            base: The folder `transformer` that the model is or came from.
            where: The model's folder, for messages.

        Raises:
            UsageError: It has none, or another one than the updates.
        """
        if base is None:
            raise UsageError(
                f"{self.file.path} is for public models, and {where} is vidcm's own; leave out the "
                "LoRA"
            )
        expected = self.file.facts.get("base_hash")
        if expected is not None and weights_hash(base) != expected:
            raise UsageError(
                f"{self.file.path} is an update of {self.file.facts.get('base')}, and {base} has "
                "other weights; use it with its own base"
            )

    def add_to(self, model: PublicDenoiser) -> None:
        """Add the updates to a model's weights. Raises UsageError for another network."""
        updates = self.file.updates(model.backbone.family, model.backbone.transformer)
        add_updates(model.backbone.transformer, updates, self.scale)


def load_adapted(
    folder: Path, adapters: Sequence[Adapter], role: str, device: torch.device, **options: Any
) -> Denoiser:
    """A denoiser with updates.

    Args:
        folder: Model folder of the role, or of the teacher if an adapter makes it the student.
        adapters: Those that make students are left out of teachers.
        role: "student" or "teacher".
        device: Of the weights.
        options: Options of the spec that the folder does not have.

    Raises:
        UsageError: An adapter does not fit.
    """
    taken = [a for a in adapters if role == "student" or a.student is None]
    for adapter in taken:
        adapter.check(read_card(folder)["spec"].get("base"), folder)
    model = load_model(folder, Denoiser, device, **options)
    for adapter in taken:
        adapter.add_to(model)
    return model
