"""Fréchet distance between generated and true clips, in the features of a small video network.

The distance of two Gaussians fitted to features (Dowson & Landau 1982; Heusel et al. 2017, arXiv
1706.08500). The features name the attributes of this very task and how a clip was played: a network
trained on photographs has little to say about pixel art.
"""

from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from torch import Tensor

from vidcm.errors import VidcmError
from vidcm.lpc.attribute_net import AttributeNet
from vidcm.media.pixels import to_video
from vidcm.store import load_model, read_card, read_weights, save_model

VERSION = 1
BUNDLED = Path(__file__).parents[1] / "pretrained" / "lpc-features"


def distance(mean_a: np.ndarray, cov_a: np.ndarray, mean_b: np.ndarray, cov_b: np.ndarray) -> float:
    """`|mean_a - mean_b|^2 + tr(cov_a + cov_b - 2 (cov_a cov_b)^(1/2))`, 0 or more."""
    values, vectors = np.linalg.eigh(cov_a)
    root = vectors * np.sqrt(values.clip(min=0)) @ vectors.T
    cross = np.linalg.eigvalsh(root @ cov_b @ root).clip(min=0)
    gap = np.square(mean_a - mean_b).sum()
    return float(max(gap + np.trace(cov_a) + np.trace(cov_b) - 2 * np.sqrt(cross).sum(), 0.0))


def frechet(a: np.ndarray, b: np.ndarray) -> float:
    """The distance between features `(n, d)` and `(m, d)`. It is biased upwards, by less the more
    clips there are, so compare only distances of equal counts. Raises VidcmError below 2 clips."""
    if len(a) < 2 or len(b) < 2:
        raise VidcmError(
            f"a Fréchet distance needs 2 clips or more a side; got {len(a)} and {len(b)}"
        )
    a, b = a.astype(np.float64), b.astype(np.float64)
    return distance(a.mean(0), _covariance(a), b.mean(0), _covariance(b))


def _covariance(x: np.ndarray) -> np.ndarray:
    return np.cov(x, rowvar=False).reshape(x.shape[1], x.shape[1])


def load_features(folder: str | Path = BUNDLED) -> AttributeNet:
    """The feature network of a model folder; errors as `store.load_model`."""
    return load_model(folder, AttributeNet)


@torch.no_grad()
def features(net: AttributeNet, frames: Tensor, batch: int = 32) -> np.ndarray:
    """Features `(b, d)` of clips uint8 `(b t h w c)`."""
    return torch.cat([net.features(to_video(part)) for part in frames.split(batch)]).numpy()


def release(
    run: str | Path, folder: str | Path, art: str | Path, count: int = 1024
) -> dict[str, float]:
    """Write what a run of `configs/lpc/features.yaml` made (its `final` folder) as the folder to
    bundle: fp16, with the accuracy on `count` held-out clips in its card. Returns the accuracy.
    Raises UsageError when the run is of another model."""
    from vidcm.lpc.dataset import LPC
    from vidcm.lpc.naming_task import accuracy

    load_features(run)  # of another kind, it is refused before anything is written
    card, weights = read_card(run), read_weights(run)
    classes = list(card["spec"]["classes"])
    with TemporaryDirectory() as draft:
        save_model(f"{draft}/net", card["spec"], weights, dtype=torch.float16)
        found = accuracy(load_features(f"{draft}/net"), LPC(art, attributes=classes), count)
    made = card["made"] | {"heldout_accuracy": found, "heldout_count": count}
    save_model(folder, card["spec"], weights, made=made, dtype=torch.float16)
    return found
