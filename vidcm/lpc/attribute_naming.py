"""Training networks to name attributes: of clips, and how they are played, and of captions."""

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor

from vidcm.data.batch import Batch
from vidcm.errors import UsageError
from vidcm.lpc.attribute_net import PLAYBACK, AttributeNet
from vidcm.lpc.caption_reader import CaptionReader
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
        losses, marks = score_answers(model(to_video(frames)).values(), targets)
        return Loss(losses.mean(), {"accuracy": marks[:-1].mean(), "playback": marks[-1]})

    def _draw_playback(self, rng: SampleRng) -> Tensor:
        u = rng.uniform()
        others = len(PLAYBACK) - 1
        changed = 1 + (u / max(self.altered, 1e-9) * others).long().clamp(max=others - 1)
        return torch.where(u < self.altered, changed, 0)


class CaptionNaming(Objective):
    """Mean cross entropy over the attributes of a caption.

    For an attribute that a caption leaves out, the best answer is the frequencies of its values.
    """

    trains = CaptionReader

    def __call__(self, model: CaptionReader, batch: Batch, progress: float, rng: SampleRng) -> Loss:
        if batch.labels is None or batch.labels.shape[1] != len(model.classes):
            raise UsageError("caption_naming needs captions with labels; use the data lpc_captions")
        losses, marks = score_answers(model(batch.captions).values(), batch.labels)
        return Loss(losses.mean(), {"accuracy": marks.mean()})


def score_answers(answers: Iterable[Tensor], labels: Tensor) -> tuple[Tensor, Tensor]:
    """Cross entropy and accuracy of each attribute, `(n,)`.

    Args:
        answers: logits `(b, values)` by attribute.
        labels: int64 `(b, n)`.
    """
    pairs = list(zip(answers, labels.unbind(1), strict=True))
    losses = [F.cross_entropy(logits.float(), label) for logits, label in pairs]
    marks = [(logits.argmax(1) == label).float().mean() for logits, label in pairs]
    return torch.stack(losses), torch.stack(marks)


def frame_order(playback: Tensor, u: Tensor) -> Tensor:
    """Order of the frames `(b, t)`, by place in PLAYBACK `(b,)` and uniform draws `(b, t)`."""
    b, t = u.shape
    forward = torch.arange(t, device=u.device).expand(b, t)
    frozen = (u[:, :1] * t).long().expand(b, t)
    orders = torch.stack([forward, forward.flip(1), frozen, u.argsort(1)])
    return orders[playback, torch.arange(b, device=u.device)]
