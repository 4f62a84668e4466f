"""CogVideoX (arXiv 2408.06072): v-prediction on the levels of a discrete diffusion process.

Its process is another clock of the common path: index 0 to 999 into noise levels that the
pipeline's scheduler configuration gives.
"""

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from vidcm.diffusion.base import Cond
from vidcm.diffusion.parameterization import DiscreteClock, Parameterization, VPrediction
from vidcm.errors import UsageError
from vidcm.families.base import Family, library_class


class CogVideoX(Family):
    """`CogVideoXTransformer3DModel`."""

    name = "cogvideox"
    pipeline = "CogVideoXPipeline"
    text_length = 226
    codec = "AutoencoderKLCogVideoX"
    latent_step = 2  # its codec works on pairs of latent frames, and returns more for others
    blocks = "transformer_blocks"
    defaults = (49, 480, 720, 8.0)
    guidance_scale = 6.0
    text_attention = None

    def parameterization(self, scheduler: dict[str, Any]) -> Parameterization:
        if scheduler.get("prediction_type") != "v_prediction":
            raise UsageError(
                f"the scheduler predicts {scheduler.get('prediction_type')!r}; CogVideoX models "
                "that vidcm reads have scheduler/scheduler_config.json with v_prediction"
            )
        levels = library_class("CogVideoXDDIMScheduler").from_config(scheduler).alphas_cumprod
        return VPrediction(DiscreteClock(torch.as_tensor(levels)))

    def patch_size(self, config: dict[str, Any]) -> tuple[int, int, int]:
        return config.get("patch_size_t") or 1, config["patch_size"], config["patch_size"]

    def forward(
        self, network: Any, x: Tensor, time: Tensor, cond: Cond, time_to: Tensor | None
    ) -> Tensor:
        if time.ndim == 2:
            raise UsageError("CogVideoX takes one time for all frames; leave out given_frames")
        positions = self._positions(network, x) if self._rotary(network) else None
        out = network(
            x.movedim(1, 2), cond.tokens, time, image_rotary_emb=positions, return_dict=False
        )[0]
        return out.movedim(1, 2)

    def _rotary(self, network: Any) -> bool:
        return bool(network.config.use_rotary_positional_embeddings)

    def _positions(self, network: Any, x: Tensor) -> Any:
        """Rotary embeddings as the family's pipeline prepares them."""
        prepare = library_class(self.pipeline)._prepare_rotary_positional_embeddings
        frames, height, width = x.shape[2:]
        sizes = SimpleNamespace(transformer=network, vae_scale_factor_spatial=1)  # in latents
        return prepare(sizes, height, width, frames, x.device)

    def latent_statistics(self, codec: Any) -> tuple[Tensor, Tensor]:
        return torch.zeros(1), torch.full((1,), 1 / codec.config.scaling_factor)

    def codec_sizes(self, codec: Any) -> tuple[int, int, int]:
        config = codec.config
        stride = 2 ** (len(config.block_out_channels) - 1)
        return config.latent_channels, int(config.temporal_compression_ratio), stride

    def text_width(self, config: dict[str, Any]) -> int:
        return config["text_embed_dim"]
