"""Pre-training of a text tower: it classifies the attributes that a caption names.

In denoiser training a word changes few pixels, so that a tower learns slowly; this task teaches the
same words in minutes. Denoisers start from the tower (`init_text` in a training config).
"""

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from vidcm.registry import build


class CaptionReader(nn.Module):
    """A text tower with a linear classifier for each attribute.

    Args:
        conditioner: spec of the tower.
        classes: attribute -> number of its values.
    """

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
