"""A public transformer as a denoiser: teacher, or student of the same architecture."""

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vidcm.diffusion.base import Cond
from vidcm.diffusion.denoiser import Denoiser
from vidcm.diffusion.paths import ProbPath
from vidcm.errors import UsageError
from vidcm.families.attention import guided, rebound, ulysses, with_attend
from vidcm.families.base import Family, find_family
from vidcm.families.component import empty_module, read_config
from vidcm.families.ltx import LTX
from vidcm.families.text import PipelineText
from vidcm.models.backbone import TransformerBackbone
from vidcm.models.nag import AttentionGuidance, view
from vidcm.models.sequence_parallel import SequenceGroup, check_heads, parallelize_blocks
from vidcm.registry import build
from vidcm.store import local_folder

TRANSFORMER, SCHEDULER = "transformer", "scheduler/scheduler_config.json"


class PublicBackbone(TransformerBackbone):
    """diffusers' transformer with the call of our backbones.

    Args:
        transformer: The module.
        family: Its family.
    """

    guidance = None  # public architectures take no guidance scale

    def __init__(self, transformer: Any, family: Family):
        super().__init__()
        self.transformer, self.family = transformer, family
        self.patch_size = family.patch_size(dict(transformer.config))
        config = transformer.config
        self.hidden_size = config.num_attention_heads * config.attention_head_dim
        with_attend(transformer)

    @property
    def blocks(self) -> nn.ModuleList:
        return getattr(self.transformer, self.family.blocks)

    @property
    def activation_checkpointing(self) -> bool:
        return self.transformer.gradient_checkpointing

    @activation_checkpointing.setter
    def activation_checkpointing(self, on: bool) -> None:
        network = self.transformer
        (network.enable_gradient_checkpointing if on else network.disable_gradient_checkpointing)()

    def forward(self, x: Tensor, time: Tensor, cond: Cond, time_to: Tensor | None = None) -> Tensor:
        layers = (m for m in self.transformer.modules() if isinstance(m, nn.Linear | nn.Conv3d))
        dtype = next(layers).weight.dtype  # bf16 under DeepSpeed, and of a frozen teacher
        cond = replace(cond, tokens=cond.tokens.to(dtype))
        return self.family.forward(self.transformer, x.to(dtype), time, cond, time_to)

    def parallelize(self, group: SequenceGroup) -> None:
        if not self.family.splits:
            raise UsageError(
                f"sequence_parallel cannot split the tokens of {self.family.name} models; use 1"
            )
        check_heads(self.transformer.config.num_attention_heads, group)
        for block in self.blocks:
            attention: Any = block.attn1
            attention.processor = rebound(attention.processor, ulysses(group))
        parallelize_blocks(self.blocks, group, self.family.own_inputs)

    def guided_by_attention(self, negative: Cond, guidance: AttentionGuidance) -> nn.Module:
        name = self.family.text_attention
        if name is None:
            return super().guided_by_attention(negative, guidance)
        attention, blocks = guided(guidance, negative.tokens.shape[1]), {}
        for place, block in self.blocks.named_children():
            to_text: Any = view(getattr(block, name))
            if getattr(to_text, "add_k_proj", None) is not None:
                raise UsageError(
                    "normalized attention guidance is not for networks that attend to a picture "
                    "beside the text"
                )
            to_text.processor = rebound(to_text.processor, attention)
            blocks[place] = view(block, **{name: to_text})
        transformer = view(self.transformer, **{self.family.blocks: view(self.blocks, **blocks)})
        return TwoTexts(view(self, transformer=transformer), negative)


class TwoTexts(nn.Module):
    """A backbone that reads a second text behind the first.

    Args:
        backbone: It tells them apart.
        second: The second text, one sample.
    """

    def __init__(self, backbone: PublicBackbone, second: Cond):
        super().__init__()
        self.backbone, self.second = backbone, second

    def forward(self, x: Tensor, time: Tensor, cond: Cond, time_to: Tensor | None = None) -> Tensor:
        rows = len(cond)
        pairs = ((cond.tokens, self.second.tokens), (cond.mask, self.second.mask))
        tokens, mask = (torch.cat([a, b.expand(rows, *b.shape[1:])], 1) for a, b in pairs)
        return self.backbone(x, time, Cond(tokens, mask, cond.guidance_scale), time_to)


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
    ):
        super().__init__(
            PublicBackbone(transformer, family),
            conditioner,
            int(transformer.config.in_channels),
            path,
            parameterization=family.parameterization(scheduler),
            two_times=family.two_times,
            given_frames=given_frames,
        )
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
        return cls(
            empty_module(config, class_name),
            family,
            text,
            scheduler or {},
            build("path", path) if path else None,
            guidance_scale,
            given_frames,
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
