"""Wan 2.1 and 2.2 (arXiv 2503.20314), and flow maps of the same layout (AnyFlow).

Rectified flow, one time per sample or, in Wan 2.2's 5B model, per token. Prompts are padded with
zeros to 512 tokens, which cross attention sees.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vidcm.diffusion.base import Cond
from vidcm.diffusion.control import Control
from vidcm.errors import UsageError
from vidcm.families.base import Family
from vidcm.families.control import ControlSource
from vidcm.families.vace_control import VaceControl
from vidcm.families.wan_control import control_of
from vidcm.models.sequence_parallel import SequenceGroup


class Wan(Family):
    """`WanTransformer3DModel`."""

    name = "wan"
    pipeline = "WanPipeline"
    text_length = 512
    codec = "AutoencoderKLWan"
    times_per_frame = True
    defaults = (81, 480, 832, 16.0)
    guidance_scale = 5.0
    splits = True

    def forward(
        self, network: Any, x: Tensor, time: Tensor, cond: Cond, time_to: Tensor | None
    ) -> Tensor:
        if time.ndim == 2:  # a time for each token, frame by frame
            step, height, width = self.patch_size(network.config)
            area = (x.shape[3] // height) * (x.shape[4] // width)
            time = time[:, ::step].repeat_interleave(area, dim=1)
        control, picture = cond.control or Control(), None
        if control.channels is not None:
            x = torch.cat([x, control.channels.to(x)], 1)
        if control.tokens is not None:
            picture = control.tokens.to(cond.tokens)
        return network(x, time, cond.tokens, picture, return_dict=False)[0]

    def control(self, config: dict[str, Any], root: Path | None) -> ControlSource | None:
        return control_of(config, root)

    def own_inputs(self, group: SequenceGroup, inputs: tuple) -> tuple:
        text, modulation, rotary = inputs
        if modulation.ndim == 4:  # of each token
            modulation = group.part(modulation, 1)
        return text, modulation, tuple(group.part(x, 1) for x in rotary)

    def latent_statistics(self, codec: Any) -> tuple[Tensor, Tensor]:
        config = codec.config
        return torch.tensor(config.latents_mean), torch.tensor(config.latents_std)

    def codec_sizes(self, codec: Any) -> tuple[int, int, int]:
        config = codec.config
        return config.z_dim, config.scale_factor_temporal, config.scale_factor_spatial

    def text_width(self, config: dict[str, Any]) -> int:
        return config["text_dim"]


class WanVACE(Wan):
    """`WanVACETransformer3DModel` (arXiv 2503.07598): a branch reads a control clip."""

    name = "wan_vace"
    pipeline = "WanVACEPipeline"
    text_blocks = ("blocks", "vace_blocks")
    times_per_frame = False
    splits = False

    def forward(
        self, network: Any, x: Tensor, time: Tensor, cond: Cond, time_to: Tensor | None
    ) -> Tensor:
        control = cond.control
        if time.ndim == 2:
            raise UsageError("Wan VACE takes one time for all frames; leave out given_frames")
        assert control is not None and control.channels is not None
        scales = None if control.scales is None else control.scales[0].to(x)  # as for all clips
        return network(
            x,
            time,
            cond.tokens,
            control_hidden_states=control.channels.to(x),
            control_hidden_states_scale=scales,
            return_dict=False,
        )[0]

    def control(self, config: dict[str, Any], root: Path | None) -> ControlSource | None:
        return VaceControl(len(config["vace_layers"]))


class AnyFlow(Wan):
    """`AnyFlowTransformer3DModel`: Wan with a second time, the target of a jump.

    It predicts the mean velocity between the two.
    """

    name = "anyflow"
    pipeline = "AnyFlowPipeline"
    two_times = True
    splits = False

    def control(self, config: dict[str, Any], root: Path | None) -> ControlSource | None:
        return None

    def forward(
        self, network: Any, x: Tensor, time: Tensor, cond: Cond, time_to: Tensor | None
    ) -> Tensor:
        frames = x.shape[2]
        time, time_to = (
            t if t.ndim == 2 else t.unsqueeze(1).expand(-1, frames)
            for t in (time, time if time_to is None else time_to)
        )
        out = network(x.movedim(1, 2), time, time_to, cond.tokens, return_dict=False)[0]
        return out.movedim(1, 2)
