"""The bundled feature network of the Fréchet distance on the LPC task.

It names the attributes of that task and how a clip was played (forward, backward, frozen or
shuffled): networks trained on photographs have little to say about pixel art.
"""

from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from torch import Tensor

from vidcm.lpc.attribute_net import AttributeNet
from vidcm.lpc.dataset import CELL, LPC
from vidcm.lpc.naming_task import accuracy
from vidcm.media.pixels import to_video
from vidcm.media.transforms import resize_crop
from vidcm.metrics.features import FeatureExtractor
from vidcm.store import load_model, read_card, read_weights, save_model

BUNDLED = Path(__file__).parents[1] / "pretrained" / "lpc-features"


class LpcFeatures(FeatureExtractor):
    """Features of an `AttributeNet`, `(b, 64)` for the bundled one.

    Clips of another size than the task's 64x64 are scaled to cover it and cut at the centre.

    Args:
        folder: of the network (default: the bundled one). Errors as `store.load_model`.
    """

    def __init__(self, folder: str | Path = BUNDLED):
        self.folder = Path(folder)
        self.net: AttributeNet = load_model(self.folder, AttributeNet)

    @torch.no_grad()
    def __call__(self, frames: Tensor, batch_size: int = 32) -> np.ndarray:
        """Clips uint8 `(b t h w 3)`, t of 2 or more -> features `(b, d)`."""
        if frames.shape[2:4] != (CELL, CELL):
            small = [resize_crop(clip, (CELL, CELL)) for clip in frames.numpy()]
            frames = torch.from_numpy(np.stack(small))
        parts = [self.net.features(to_video(part)) for part in frames.split(batch_size)]
        return torch.cat(parts).numpy()


def release_features(
    run: str | Path, folder: str | Path, art: str | Path, count: int = 1024
) -> dict[str, float]:
    """Write the folder to bundle: weights in fp16, and the accuracy on held-out clips in its card.

    Args:
        run: the `final` folder of a run of `configs/lpc/features.yaml`.
        folder: to write.
        art: the LPC layers.
        count: number of held-out clips.

    Returns:
        The accuracy by attribute.

    Raises:
        UsageError: the run is of another model.
    """
    load_model(run, AttributeNet)  # another kind is refused before anything is written
    card, weights = read_card(run), read_weights(run)
    classes = list(card["spec"]["classes"])
    with TemporaryDirectory() as draft:
        save_model(f"{draft}/net", card["spec"], weights, dtype=torch.float16)
        net = load_model(f"{draft}/net", AttributeNet)
        found = accuracy(net, LPC(art, attributes=classes), count)
    made = card["metadata"] | {"heldout_accuracy": found, "heldout_count": count}
    save_model(folder, card["spec"], weights, metadata=made, dtype=torch.float16)
    return found
