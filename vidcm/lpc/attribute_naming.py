"""Training the feature network: name the attributes of a clip, and how it is played."""

import torch
import torch.nn.functional as F
from torch import Tensor

from vidcm.data.batch import Batch
from vidcm.errors import UsageError
from vidcm.lpc.attribute_net import PLAYBACK, AttributeNet
from vidcm.media.pixels import to_video
from vidcm.objectives.base import Loss, Objective
from vidcm.rng import SampleRng


class AttributeNaming(Objective):
    """Mean cross entropy over attributes and the playback.

    Args:
        altered: Share of clips whose frames are reversed, frozen or shuffled.
        shift: Largest move of the picture in pixels, each way.

    Raises:
        UsageError: An option is out of range.
    """

    trains = AttributeNet

    def __init__(self, altered: float = 0.3, shift: int = 2):
        if not 0 <= altered <= 1:
            raise UsageError(f"altered is {altered}; it must be in [0, 1]")
        if shift < 0:
            raise UsageError(f"shift is {shift}; it must be a number of pixels, 0 or above")
        self.altered, self.shift = altered, shift

    def __call__(self, model: AttributeNet, batch: Batch, progress: float, rng: SampleRng) -> Loss:
        if batch.frames is None or batch.labels is None:
            raise UsageError("attribute_naming needs frames with labels; use the data lpc")
        named = len(model.classes) - 1
        if batch.labels.shape[1] != named:
            raise UsageError(
                f"the data has {batch.labels.shape[1]} attributes and model.classes {named}; "
                "they must be the same, in the same order"
            )
        frames = batch.frames
        playback = self._draw_playback(rng)
        order = frame_order(playback, rng.uniform(frames.shape[1]))
        frames = frames[torch.arange(len(frames), device=frames.device)[:, None], order]
        if self.shift:
            across = (rng.uniform(2).cpu() * (2 * self.shift + 1)).long() - self.shift
            frames = torch.stack(
                [f.roll(tuple(d), (1, 2)) for f, d in zip(frames, across.tolist(), strict=True)]
            )
        targets = torch.cat([batch.labels, playback[:, None]], dim=1)
        losses, marks = [], []
        for logits, target in zip(model(to_video(frames)).values(), targets.unbind(1), strict=True):
            losses.append(F.cross_entropy(logits.float(), target))
            marks.append((logits.argmax(1) == target).float().mean())
        accuracy = torch.stack(marks)
        return Loss(
            torch.stack(losses).mean(), {"accuracy": accuracy[:-1].mean(), "playback": accuracy[-1]}
        )

    def _draw_playback(self, rng: SampleRng) -> Tensor:
        u = rng.uniform()
        others = len(PLAYBACK) - 1
        changed = 1 + (u / max(self.altered, 1e-9) * others).long().clamp(max=others - 1)
        return torch.where(u < self.altered, changed, 0)


def frame_order(playback: Tensor, u: Tensor) -> Tensor:
    """Order of the frames `(b, t)`, by place in PLAYBACK `(b,)` and uniform draws `(b, t)`."""
    b, t = u.shape
    forward = torch.arange(t, device=u.device).expand(b, t)
    frozen = (u[:, :1] * t).long().expand(b, t)
    orders = torch.stack([forward, forward.flip(1), frozen, u.argsort(1)])
    return orders[playback, torch.arange(b, device=u.device)]
