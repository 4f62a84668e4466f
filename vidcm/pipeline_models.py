"""The models of a pipeline: where they are, their precision, adapters and offload."""

import os
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Self

import torch

from vidcm.arguments import SYNONYMS, checked_names, real_number
from vidcm.arguments import path as path_of
from vidcm.codecs.base import VideoCodec
from vidcm.codecs.offloaded import OffloadedCodec
from vidcm.diffusion import samplers
from vidcm.diffusion.denoiser import Denoiser
from vidcm.diffusion.experts import Experts
from vidcm.errors import UsageError, VidcmError
from vidcm.families.adapters import Adapter, load_adapted
from vidcm.families.lora import LoraFile
from vidcm.families.text import OffloadedText, PipelineText
from vidcm.models.offload import CPU, Offload
from vidcm.runtime import fast_cpu, pick_device, pick_dtype
from vidcm.settings import PipelineSettings, find_pipeline
from vidcm.store import load_model, read_card

MAX_LORA_SCALE = 100.0


class PipelineModels:
    """The codec, student and teacher of a pipeline folder, loaded as they are needed.

    Attributes:
        folder: Pipeline folder with the model folders `codec`, `student`, `teacher` and
            `pipeline.json`.
        settings: The content of `pipeline.json`.
        device: Where the models run.
        dtype: Precision of networks and codec; latents are float32 always.
        codec: Video codec.
    """

    def __init__(
        self,
        folder: Path,
        settings: PipelineSettings,
        device: torch.device,
        dtype: torch.dtype = torch.float32,
    ):
        self.folder, self.settings, self.device, self.dtype = folder, settings, device, dtype
        self.codec: VideoCodec = load_model(self.part("codec"), VideoCodec, device)
        self._models: dict[str, Denoiser] = {}
        self._adapters: list[Adapter] = []
        self._offload: Offload | None = None

    @classmethod
    @checked_names(SYNONYMS)
    def from_pretrained(
        cls,
        name: str | os.PathLike[str],
        *,
        torch_dtype: str | torch.dtype = "auto",
        device: str | torch.device = "auto",
    ) -> Self:
        """Load a pipeline.

        Args:
            name: A bundled model ("lpc-64") or a pipeline folder.
            torch_dtype: torch.float32 or torch.bfloat16; "auto" is bfloat16 on a GPU and float32 on
                a CPU. In bfloat16 the networks of public models are kept so, which halves their
                memory, but for the layers that diffusers keeps in float32.
            device: "auto" (a GPU if there is one), "cpu", "cuda" or "cuda:1".

        Raises:
            UsageError: There is no such pipeline, device or precision.
            VidcmError: It is damaged.
        """
        fast_cpu()
        folder, settings = find_pipeline(name)
        for kind, value, known in (
            ("sampler", settings.student.sampler, samplers.SAMPLERS),
            ("solver", settings.teacher.solver, samplers.SOLVERS),
        ):
            if value not in known:
                raise VidcmError(
                    f"{folder / 'pipeline.json'} asks for the {kind} {value!r}; this version knows "
                    f"{', '.join(known)}"
                )
        place = pick_device(device)
        return cls(folder, settings, place, pick_dtype(torch_dtype, place))

    def to(self, target: str | torch.device | torch.dtype) -> Self:
        """Move the models to a device, or change the precision; returns the pipeline.

        Raises:
            UsageError: There is no such device or precision.
        """
        if isinstance(target, torch.dtype):
            self.dtype = pick_dtype(target, self.device)
            self._models.clear()  # what was stored in half precision is loaded again
            return self
        if self._offload:
            raise UsageError(
                f"enable_model_cpu_offload moves the models to {self.device} as they work; load "
                "the pipeline anew for another device"
            )
        self.device = pick_device(target)
        for model in (self.codec, *self._models.values()):
            model.to(self.device)
        return self

    def enable_model_cpu_offload(self, device: str | torch.device = "auto") -> None:
        """Keep text tower, denoiser and codec on the CPU, each but for the time that it works.

        Memory of the device is then that of the largest of them and its work, for the time that it
        takes to move them. Clips are the same.

        Args:
            device: Where they work, as in `from_pretrained`.

        Raises:
            UsageError: There is no such device.
        """
        self.device = pick_device(device)
        self._offload = Offload(self.device)
        if isinstance(self.codec, OffloadedCodec):
            self.codec = self.codec.codec
        self.codec = OffloadedCodec(self.codec, self._offload)
        roles = list(self._models)
        self._models.clear()  # loaded again when they are used, without hooks of an earlier call
        for role in roles:
            self.model(role)

    def enable_vae_tiling(self) -> None:
        """Encode and decode in tiles of the picture: less memory, other numbers near their seams.

        Raises:
            UsageError: The codec knows no tiles.
        """
        self.codec.enable_tiling()

    def release_text_towers(self) -> None:
        """Free the text towers of public models, as after `encode_prompt` of all prompts.

        A prompt that comes as text loads its tower again.
        """
        for model in self._models.values():
            if isinstance(model.conditioner, PipelineText):
                model.conditioner.release()
            for tower in model.control.towers() if model.control else ():
                tower.release()

    def part(self, role: str) -> Path:
        """The folder of the codec, student or teacher."""
        folders = self.settings.folders
        if folders and role not in folders and not (self.folder / role).is_dir():
            raise UsageError(
                f"{self.folder} has no {role}, only {' and '.join(folders)}; "
                + ("use the teacher (--teacher)" if "teacher" in folders else "train one")
            )
        return self.folder / folders.get(role, role)

    def model(self, role: str) -> Denoiser:
        """The denoiser of a role, "student" or "teacher", loaded on first use."""
        if role not in ("student", "teacher"):
            raise UsageError(f"role is {role!r}; use student or teacher")
        if role not in self._models:
            model = self._load(role, role)
            if boundary := self.settings.boundary_ratio:
                model = Experts(model, self._load(role, f"{role}_2"), boundary)
            if (role == "student") != (model.guidance_scales is not None):
                raise UsageError(
                    f"{self.part(role)} is not a {role}: a student takes a guidance scale as an "
                    "input or has one built in, a teacher does not"
                )
            if self.dtype != torch.float32:
                model = model.store_in(self.dtype)
            if self._offload:
                _offload(model, self._offload)
            self._models[role] = model
        return self._models[role]

    def _load(self, role: str, part: str) -> Denoiser:
        made = any(adapter.student is not None for adapter in self._adapters)
        folder = self.part(part.replace("student", "teacher") if made else part)
        # a public transformer does not say what it was distilled at
        public = role == "student" and (made or "sha256" not in read_card(folder))
        options = {"guidance_scale": self.settings.student.guidance_scale} if public else {}
        place = CPU if self._offload else self.device
        return load_adapted(folder, self._adapters, role, place, **options)

    def load_lora_weights(self, path: str | os.PathLike[str], scale: float = 1.0) -> Self:
        """Add low-rank updates to the weights of public models; returns the pipeline.

        Updates that `vidcm export --to lora` made of a student make the teacher that student.
        Others are added to teacher and student.

        Args:
            path: A .safetensors file, with layers named as ComfyUI or diffusers do.
            scale: What the updates are multiplied with.

        Raises:
            UsageError: There is no such file, or (when the model is first used) it is for another
                network.
            VidcmError: It is damaged.
        """
        scale = real_number("scale", scale, -MAX_LORA_SCALE, MAX_LORA_SCALE)
        adapter = Adapter(LoraFile.read(path_of("path", path)), scale)
        if adapter.student is not None:
            self.settings = replace(self.settings, student=adapter.student)
        self._adapters.append(adapter)
        self._models.clear()
        return self

    def autocast(self) -> AbstractContextManager:
        """The context that networks and codec run in."""
        enabled = self.dtype != torch.float32
        return torch.autocast(self.device.type, dtype=self.dtype, enabled=enabled)


def _offload(model: Denoiser, offload: Offload) -> None:
    """Let text tower and network of a denoiser come and go."""
    offload.add(model.backbone, when_called=True)
    for tower in model.control.towers() if model.control else ():
        tower.offload = offload
    if isinstance(model.conditioner, PipelineText):
        model.conditioner = OffloadedText(model.conditioner, offload)
    else:
        offload.add(model.conditioner, when_called=True)
