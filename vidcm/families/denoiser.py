"""A public transformer as a denoiser: teacher, or student of the same architecture."""

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from vidcm.diffusion.base import Cond, Prediction
from vidcm.diffusion.denoiser import Denoiser
from vidcm.diffusion.given_frames import FirstFrames
from vidcm.diffusion.paths import ProbPath
from vidcm.errors import UsageError
from vidcm.families.backbone import PublicBackbone
from vidcm.families.base import Family, find_family
from vidcm.families.component import empty_module, read_config
from vidcm.families.control import ControlSource
from vidcm.families.ltx import LTX
from vidcm.families.text import PipelineText
from vidcm.registry import build
from vidcm.store import local_folder

TRANSFORMER, SCHEDULER = "transformer", "scheduler/scheduler_config.json"


class PublicDenoiser(Denoiser):
    """A transformer of a public family.

    Students have one guidance scale built in, since the architectures take none as an input.

    Args:
        transformer: diffusers' module.
        family: Its family.
        conditioner: Text tower: the pipeline's, which is frozen and no part of the weights, or one
            that is trained along.
        scheduler: The `scheduler_config.json` of the pipeline.
        path: Diffusion path; default rectified flow.
        guidance_scale: Of a student; None for a teacher.
        given_frames: Kinds of given frames the model was trained with.
        control: What makes what it is given beside text; None for text alone.
    """

    first_time = 1.0  # pure noise, which the pipelines of all families start from

    def __init__(
        self,
        transformer: Any,
        family: Family,
        conditioner: Any,
        scheduler: dict[str, Any],
        path: ProbPath | None = None,
        guidance_scale: float | None = None,
        given_frames: Sequence[str] = (),
        control: ControlSource | None = None,
    ):
        super().__init__(
            PublicBackbone(transformer, family),
            conditioner,
            family.latent_channels(dict(transformer.config)),
            path,
            parameterization=family.parameterization(scheduler),
            two_times=family.two_times,
            given_frames=given_frames,
        )
        self.control = control
        self.guidance_scale, self.shift = guidance_scale, family.shift(scheduler)
        self.text_length: int = getattr(conditioner, "max_words", family.text_length)

    @classmethod
    def from_spec(
        cls,
        base: str | None = None,
        config: dict | None = None,
        scheduler: dict | None = None,
        conditioner: dict | None = None,
        path: dict | None = None,
        guidance_scale: float | None = None,
        given_frames: Sequence[str] = (),
    ) -> Self:
        """Build the parts.

        Args:
            base: Folder `transformer` of a diffusers pipeline; config, scheduler and text tower are
                read there.
            config: `config.json` of the transformer, `_class_name` included; instead of the base's.
            scheduler: `scheduler_config.json`; instead of the base's.
            conditioner: Spec of a text tower to train along; instead of the base's.
            path: Spec of the diffusion path.
            guidance_scale: The scale a student is distilled at; None for a teacher.
            given_frames: Kinds of given frames the model was trained with.

        Raises:
            UsageError: A part is missing or unknown.
        """
        if base is None and (config is None or conditioner is None):
            raise UsageError(
                "a public denoiser needs base, the folder `transformer` of a diffusers pipeline, "
                "or both config and conditioner"
            )
        folder = None if base is None else local_folder(base)
        root = None if folder is None else folder.parent
        if config is None:
            assert folder is not None
            config = read_config(folder)
        class_name = str(config.get("_class_name"))
        family = find_family(class_name)
        if root is not None:
            family = _sized(family, root)
            if scheduler is None:
                scheduler = scheduler_config(root / TRANSFORMER)
        width = family.text_width(config)
        if conditioner is not None:
            text = build("conditioner", conditioner)
            if text.hidden_size != width:
                raise UsageError(
                    f"conditioner.hidden_size is {text.hidden_size}, and {class_name} reads tokens "
                    f"of width {width}; set it so"
                )
        else:
            assert root is not None
            text = _shared_text(root, type(family))
        network: Any = empty_module(config, class_name)
        return cls(
            network,
            family,
            text,
            scheduler or {},
            build("path", path) if path else None,
            guidance_scale,
            given_frames,
            family.control(dict(network.config), root),
        )

    @property
    def guidance_scales(self) -> tuple[float, float] | None:
        return None if self.guidance_scale is None else (self.guidance_scale, self.guidance_scale)

    @staticmethod
    def spec_is_student(spec: dict) -> bool:
        return spec.get("guidance_scale") is not None

    @staticmethod
    def spec_has_two_times(spec: dict) -> bool:
        config = spec.get("config") or read_config(local_folder(spec["base"]))
        return find_family(str(config.get("_class_name"))).two_times

    @staticmethod
    def student_spec(spec: dict) -> dict:
        return {**spec, "guidance_scale": 1.0}

    def store_in(self, dtype: torch.dtype) -> Self:
        """Keep a frozen network in half precision, but for what diffusers keeps in fp32.

        It then runs under autocast.
        """
        kept = tuple(self.backbone.transformer._keep_in_fp32_modules or ())
        for name, parameter in self.backbone.transformer.named_parameters():
            if not any(part in name.split(".") for part in kept):
                parameter.data = parameter.data.to(dtype)
        return self

    def predict(self, x_t: Tensor, t: Tensor, cond: Cond, s: Tensor | None = None) -> Prediction:
        """As in the base class. Frames that the control gives are predicted as they are.

        Raises:
            UsageError: The network is given more than text, and there is nothing.
        """
        if cond.control is None and self.control is not None and self.control.required:
            raise UsageError(
                f"this {self.backbone.family.name} network needs {self.control.reads} beside the "
                "prompt, and got none"
            )
        if cond.control is None or cond.control.given is None:
            return super().predict(x_t, t, cond, s)
        first = FirstFrames(cond.control.given, x_t.shape[2])
        target = None if s is None else first.times(s)
        found = super().predict(first(x_t), first.times(t), cond, target)
        return first.prediction(found, x_t, t, self.path)

    def encode(self, prompts: Sequence[str], guidance_scale: Tensor | None = None) -> Cond:
        if isinstance(self.conditioner, PipelineText):
            tokens, mask = self.conditioner(prompts, next(self.parameters()).device)
        else:
            tokens, mask = self.conditioner(prompts)
        if not self.backbone.family.text_mask:
            # The network attends to padding, so it must not depend on the rest of the batch.
            tokens = tokens * mask.unsqueeze(-1)
            missing = self.text_length - tokens.shape[1]
            tokens, mask = F.pad(tokens, (0, 0, 0, missing)), F.pad(mask, (0, missing))
        return Cond(tokens, mask, guidance_scale)


def scheduler_config(base: str | Path) -> dict[str, Any]:
    """The `scheduler_config.json` of the pipeline that a folder `transformer` is part of, or {}."""
    path = Path(base).parent / SCHEDULER
    return read_config(path.parent, path.name) if path.is_file() else {}


@cache
def _shared_text(root: Path, family: type[Family]) -> PipelineText:
    """One text tower for the teacher and the student of a folder."""
    return PipelineText(root, family())


def _sized(family: Family, root: Path) -> Family:
    """The family with what its calls need to know of the codec."""
    if isinstance(family, LTX) and (root / "vae").is_dir():
        config = read_config(root / "vae")
        with torch.device("meta"):
            codec: Any = empty_module(config, family.codec)
        return LTX((codec.temporal_compression_ratio, codec.spatial_compression_ratio))
    return family
