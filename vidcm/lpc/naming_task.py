"""Runs that name attributes, of clips (the feature network) and of captions (a text tower)."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from vidcm.config import TrainConfig
from vidcm.errors import UsageError
from vidcm.lpc.attribute_net import AttributeNet
from vidcm.lpc.caption_reader import CaptionReader
from vidcm.lpc.dataset import LPC, LPCCaptions
from vidcm.media.pixels import to_video
from vidcm.registry import build
from vidcm.train.loop import Task

HELD_SEED = 2**31 + 7


def naming_task(config: TrainConfig, model: AttributeNet, data: LPC) -> Task:
    """Raises UsageError when the data cannot give the labels that the model names."""
    if not isinstance(data, LPC):
        raise UsageError(
            f"attribute_net needs labels; use the data lpc, not {config.data.get('name')!r}"
        )
    counts = {name: len(data.words[name]) for name in data.attributes}
    if {**counts, "playback": model.classes["playback"]} != model.classes:
        raise UsageError(f"model.classes does not fit the data; it must be {counts}")

    def train_frames(start: int) -> Tensor:
        frames = data.batch(HELD_SEED, range(start, start + 32)).frames
        assert frames is not None
        return frames

    def filled(weights: dict[str, Tensor]) -> AttributeNet:
        copy = build("model", config.model)
        copy.load_state_dict(weights)
        renew(copy, [train_frames(start) for start in range(0, 256, 32)])
        return copy

    def preview(weights: dict[str, Tensor], path: Path) -> dict[str, float]:
        marks = accuracy(filled(weights), data, 128)
        return {"heldout/accuracy": float(np.mean(list(marks.values())))}

    @torch.no_grad()
    def finish(weights: dict[str, Tensor]) -> dict[str, Tensor]:
        """Store the features' mean and deviation, so that every feature has unit variance."""
        net, raw = filled(weights), []
        for start in range(0, 1024, 32):
            raw.append(net.embed(to_video(train_frames(start))))
        features = torch.cat(raw)
        return net.state_dict() | {"mean": features.mean(0), "std": features.std(0)}

    return Task(model, build("objective", config.objective), data, preview, finish)


def caption_task(config: TrainConfig, model: CaptionReader, data: LPCCaptions) -> Task:
    """A caption reader's run: accuracy on full captions of held-out combinations."""

    @torch.no_grad()
    def preview(weights: dict[str, Tensor], path: Path) -> dict[str, float]:
        copy = build("model", config.model)
        copy.load_state_dict(weights)
        rngs = [np.random.default_rng([HELD_SEED, p]) for p in range(256)]
        held = [data.sample(rng, "heldout") for rng in rngs]
        captions = [data.caption(c, rng, full=True) for c, rng in zip(held, rngs, strict=True)]
        answers, labels = copy(captions).values(), data.labels(held).unbind(1)
        marks = [(a.argmax(1) == y).float().mean() for a, y in zip(answers, labels, strict=True)]
        return {"heldout/accuracy": float(torch.stack(marks).mean())}

    objective = build("objective", config.objective)
    return Task(model, objective, data, preview, finish=lambda weights: weights)


@torch.no_grad()
def renew(net: AttributeNet, clips: Sequence[Tensor]) -> None:
    """Batch statistics of the network's own, from training clips uint8 `(b t h w c)`: averaged
    weights have none, for the running ones are of the weights before averaging (Izmailov et al.
    2018, arXiv 1803.05407, 3.2). Leaves the network in evaluation mode."""
    norms = [m for m in net.modules() if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a plain mean over the batches
    net.train()
    for frames in clips:
        net(to_video(frames))
    net.eval()


@torch.no_grad()
def accuracy(net: AttributeNet, data: LPC, count: int, batch: int = 32) -> dict[str, float]:
    """Share of `count` held-out clips whose attribute is named rightly, by attribute."""
    right: dict[str, int] = dict.fromkeys(data.attributes, 0)
    for start in range(0, count, batch):
        places = range(start, min(start + batch, count))
        combinations = [
            data.sample(np.random.default_rng([HELD_SEED, p]), "heldout") for p in places
        ]
        logits = net(to_video(data.render(combinations)))
        for name, label in zip(data.attributes, data.labels(combinations).unbind(1), strict=True):
            right[name] += int((logits[name].argmax(1) == label).sum())
    return {name: n / count for name, n in right.items()}
