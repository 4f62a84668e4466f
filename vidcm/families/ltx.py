"""LTX-Video (arXiv 2501.00103): rectified flow on packed tokens of a codec of stride 8 x 32 x 32.

Positions are in seconds and pixels, so the network is told the frame rate; like the pipeline's
default, it is 25.
"""

from typing import Any

from einops import rearrange
from torch import Tensor

from vidcm.diffusion.base import Cond
from vidcm.families.base import Family

FPS = 25


class LTX(Family):
    """`LTXVideoTransformer3DModel`.

    Args:
        strides: Frames and pixels of a latent, by which positions are scaled.
    """

    name = "ltx"
    pipeline = "LTXPipeline"
    text_length = 128
    text_mask = True
    codec = "AutoencoderKLLTXVideo"
    blocks = "transformer_blocks"
    text_blocks = ("transformer_blocks",)
    times_per_frame = True
    defaults = (161, 512, 704, 25.0)
    guidance_scale = 3.0

    def __init__(self, strides: tuple[int, int] = (8, 32)):
        self.strides = strides

    def patch_size(self, config: dict[str, Any]) -> tuple[int, int, int]:
        return config["patch_size_t"], config["patch_size"], config["patch_size"]

    def forward(
        self, network: Any, x: Tensor, time: Tensor, cond: Cond, time_to: Tensor | None
    ) -> Tensor:
        pt, ph, pw = self.patch_size(network.config)
        frames, height, width = x.shape[2] // pt, x.shape[3] // ph, x.shape[4] // pw
        sizes = {"t": frames, "h": height, "w": width, "i": pt, "j": ph, "k": pw}
        packed = rearrange(x, "b c (t i) (h j) (w k) -> b (t h w) (c i j k)", **sizes)
        if time.ndim == 2:  # a time for each token, frame by frame
            time = time[:, ::pt].repeat_interleave(height * width, dim=1)
        in_time, in_space = self.strides
        out = network(
            packed,
            cond.tokens,
            time,
            cond.mask,
            num_frames=frames,
            height=height,
            width=width,
            rope_interpolation_scale=(in_time / FPS, in_space, in_space),
            return_dict=False,
        )[0]
        return rearrange(out, "b (t h w) (c i j k) -> b c (t i) (h j) (w k)", **sizes)

    def latent_statistics(self, codec: Any) -> tuple[Tensor, Tensor]:
        return codec.latents_mean, codec.latents_std / codec.config.scaling_factor

    def codec_sizes(self, codec: Any) -> tuple[int, int, int]:
        channels = codec.config.latent_channels
        return channels, codec.temporal_compression_ratio, codec.spatial_compression_ratio

    def text_width(self, config: dict[str, Any]) -> int:
        return config["caption_channels"]

    def decode(self, codec: Any, raw: Tensor) -> Tensor:
        time = raw.new_zeros(len(raw)) if codec.config.timestep_conditioning else None
        return codec.decode(raw, time, return_dict=False)[0]
