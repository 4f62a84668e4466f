"""A text tower with heads that name a caption's attributes: a first lesson before it sees a clip.

A denoiser teaches its tower slowly, since a word moves few pixels; naming attributes teaches the
same words in minutes. Only the tower is kept (`text` in a training config).
"""

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from vidcm.registry import build


class CaptionReader(nn.Module):
    """conditioner: spec of the tower. classes: attribute -> number of its values."""

    def __init__(self, conditioner: dict, classes: Mapping[str, int]):
        super().__init__()
        self.classes = dict(classes)
        self.conditioner = build("conditioner", conditioner)
        width = self.conditioner.hidden_size
        self.norm = nn.RMSNorm(width, eps=1e-6)
        self.heads = nn.Linear(width, sum(self.classes.values()))

    def forward(self, captions: Sequence[str]) -> dict[str, Tensor]:
        """Logits `(b, values)` by attribute, from the mean over words, as a denoiser pools them."""
        tokens, mask = self.conditioner(captions)
        weights = mask.unsqueeze(-1).to(tokens.dtype)
        pooled = (self.norm(tokens) * weights).sum(1) / weights.sum(1)
        parts = self.heads(pooled).split(list(self.classes.values()), dim=1)
        return dict(zip(self.classes, parts, strict=True))
