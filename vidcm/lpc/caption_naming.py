"""Training a caption reader: cross entropy over attributes.

For an attribute that a caption leaves out, the best answer is the frequencies of its values.
"""

import torch
import torch.nn.functional as F

from vidcm.data.batch import Batch
from vidcm.errors import UsageError
from vidcm.lpc.caption_reader import CaptionReader
from vidcm.objectives.base import Loss, Objective
from vidcm.rng import SampleRng


class CaptionNaming(Objective):
    """Mean cross entropy over the attributes."""

    trains = CaptionReader

    def __call__(self, model: CaptionReader, batch: Batch, progress: float, rng: SampleRng) -> Loss:
        if batch.labels is None or batch.labels.shape[1] != len(model.classes):
            raise UsageError("caption_naming needs captions with labels; use the data lpc_captions")
        losses, marks = [], []
        answers = model(batch.captions).values()
        for logits, label in zip(answers, batch.labels.unbind(1), strict=True):
            losses.append(F.cross_entropy(logits.float(), label))
            marks.append((logits.argmax(1) == label).float().mean())
        return Loss(torch.stack(losses).mean(), {"accuracy": torch.stack(marks).mean()})
