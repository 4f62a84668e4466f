"""A small video network that classifies the attributes of LPC clips; its features compare clips.

Convolutions over space alternate with convolutions along time ((2+1)-D, Tran et al. 2018, arXiv
1711.11248). Most attributes can be seen in a single frame; a second task, classifying the playback
(forward, backward, frozen, shuffled), makes the features sensitive to motion.
"""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

PLAYBACK = ("forward", "backward", "frozen", "shuffled")


class Block(nn.Module):
    """3x3 over space with stride 2, then a residual layer over three frames."""

    def __init__(self, width: int, out: int):
        super().__init__()
        self.space = nn.Conv2d(width, out, 3, stride=2, padding=1, bias=False)
        self.space_norm = nn.BatchNorm2d(out)
        self.time = nn.Linear(3 * out, out, bias=False)
        self.time_norm = nn.BatchNorm2d(out)

    def forward(self, x: Tensor, frames: int) -> Tensor:
        """Map `(b*t, c, h, w)` to `(b*t, out, h/2, w/2)`."""
        x = F.relu(self.space_norm(self.space(x)))
        near = rearrange(x, "(b t) c h w -> b t h w c", t=frames)
        near = F.pad(near, (0, 0, 0, 0, 0, 0, 1, 1))
        near = torch.cat([near[:, :-2], near[:, 1:-1], near[:, 2:]], dim=-1)
        mixed = rearrange(self.time(near), "b t h w c -> (b t) c h w")
        return x + F.relu(self.time_norm(mixed))


class AttributeNet(nn.Module):
    """Features and attribute logits of video `(b 3 t h w)` in [-1, 1], t of 2 or more.

    `mean` and `std` are those of the features over training clips, stored when a run ends, so that
    `features` has unit variance there.

    Args:
        classes: Number of values of each attribute.
        widths: Channels at strides 4, 8 and 16.
        width: Number of features.
    """

    def __init__(
        self,
        classes: Mapping[str, int],
        widths: tuple[int, int, int] = (48, 96, 160),
        width: int = 64,
    ):
        super().__init__()
        self.classes = {**classes, "playback": len(PLAYBACK)}
        a, b, c = widths
        self.stem = nn.Conv2d(3, a, 8, stride=4, padding=2)
        self.blocks = nn.ModuleList([Block(a, b), Block(b, c)])
        # Pooled over mostly empty pictures, features of different clips differ little.
        self.pool_norm = nn.BatchNorm1d(2 * c)
        self.project = nn.Linear(2 * c, width)
        self.heads = nn.Linear(width, sum(self.classes.values()))
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("std", torch.ones(width))
        self.mean: Tensor
        self.std: Tensor

    def embed(self, video: Tensor) -> Tensor:
        """Raw features `(b, width)` from the means of activations and of their changes in time."""
        frames = video.shape[2]
        x = rearrange(video, "b c t h w -> (b t) c h w")
        x = F.relu(self.stem(x.contiguous(memory_format=torch.channels_last)))
        for block in self.blocks:
            x = block(x, frames)
        x = rearrange(x, "(b t) c h w -> b t c h w", t=frames)
        content, change = x.mean((1, 3, 4)), x.diff(dim=1).abs().mean((1, 3, 4))
        return self.project(self.pool_norm(torch.cat([content, change], dim=1)))

    def forward(self, video: Tensor) -> dict[str, Tensor]:
        """Logits `(b, values)` by attribute, last of the playback."""
        logits = self.heads(F.relu(self.embed(video)))
        parts = logits.split(list(self.classes.values()), dim=1)
        return dict(zip(self.classes, parts, strict=True))

    def features(self, video: Tensor) -> Tensor:
        """Features `(b, width)`, of unit variance over training clips."""
        return (self.embed(video) - self.mean) / self.std
