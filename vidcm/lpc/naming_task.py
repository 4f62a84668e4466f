"""Training networks that name attributes of clips (features) or of captions (text towers)."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.optim.swa_utils import update_bn

from vidcm.config import TrainConfig
from vidcm.errors import UsageError
from vidcm.lpc.attribute_naming import score_answers
from vidcm.lpc.attribute_net import AttributeNet
from vidcm.lpc.caption_reader import CaptionReader
from vidcm.lpc.dataset import LPC, LPCCaptions
from vidcm.media.pixels import to_video
from vidcm.registry import build
from vidcm.train.loop import Task, Weights

HELDOUT_SEED = 2**31 + 7


def naming_task(config: TrainConfig, model: AttributeNet, data: LPC, device: torch.device) -> Task:
    """Build the task of the feature network.

    Raises:
        UsageError: The data do not have the labels that the model names.
    """
    if not isinstance(data, LPC):
        raise UsageError(
            f"attribute_net needs labels; use the data lpc, not {config.data.get('name')!r}"
        )
    counts = {name: len(data.words[name]) for name in data.attributes}
    if {**counts, "playback": model.classes["playback"]} != model.classes:
        raise UsageError(f"model.classes does not fit the data; it must be {counts}")

    def copy_with(weights: Weights) -> AttributeNet:
        copy: AttributeNet = build("model", config.model)
        copy.load_state_dict(weights)
        return renew_statistics(copy, data)

    def preview(weights: Weights, path: Path) -> dict[str, float]:
        marks = accuracy(copy_with(weights), data, 128)
        return {"heldout/accuracy": float(np.mean(list(marks.values())))}

    @torch.no_grad()
    def finish(weights: Weights) -> Weights:
        """Store the features' mean and deviation, so that every feature has unit variance."""
        net = copy_with(weights)
        features = torch.cat([net.embed(video) for video in _videos(data, 1024)])
        return net.state_dict() | {"mean": features.mean(0), "std": features.std(0)}

    return Task(model, build("objective", config.objective), data, preview, finish)


def caption_task(
    config: TrainConfig, model: CaptionReader, data: LPCCaptions, device: torch.device
) -> Task:
    """Build the task of a caption reader; previews use full captions of held-out combinations."""

    @torch.no_grad()
    def preview(weights: Weights, path: Path) -> dict[str, float]:
        copy = build("model", config.model)
        copy.load_state_dict(weights)
        rngs = [np.random.default_rng([HELDOUT_SEED, p]) for p in range(256)]
        heldout = [data.sample(rng, "heldout") for rng in rngs]
        captions = [data.caption(c, rng, full=True) for c, rng in zip(heldout, rngs, strict=True)]
        _, marks = score_answers(copy(captions).values(), data.labels(heldout))
        return {"heldout/accuracy": float(marks.mean())}

    objective = build("objective", config.objective)
    return Task(model, objective, data, preview)


def renew_statistics(net: AttributeNet, data: LPC) -> AttributeNet:
    """Measure the batch statistics of averaged weights; the running ones are of those before."""
    net.eval()
    update_bn(_videos(data, 256), net)
    return net


def _videos(data: LPC, count: int) -> Iterator[Tensor]:
    """Training clips in batches of 32."""
    for start in range(0, count, 32):
        frames = data.batch(HELDOUT_SEED, range(start, start + 32)).frames
        assert frames is not None
        yield to_video(frames)


@torch.no_grad()
def accuracy(net: AttributeNet, data: LPC, count: int, batch: int = 32) -> dict[str, float]:
    """Return the share of `count` held-out clips whose attribute is named rightly, by attribute."""
    right: dict[str, int] = dict.fromkeys(data.attributes, 0)
    for start in range(0, count, batch):
        places = range(start, min(start + batch, count))
        combinations = [
            data.sample(np.random.default_rng([HELDOUT_SEED, p]), "heldout") for p in places
        ]
        logits = net(to_video(data.render(combinations)))
        for name, label in zip(data.attributes, data.labels(combinations).unbind(1), strict=True):
            right[name] += int((logits[name].argmax(1) == label).sum())
    return {name: n / count for name, n in right.items()}
