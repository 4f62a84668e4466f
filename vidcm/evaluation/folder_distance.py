"""The Fréchet distance between the videos of two folders."""

from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from vidcm.data.media_root import LocalRoot
from vidcm.data.videos import list_media
from vidcm.errors import UsageError
from vidcm.media.read import probe, read_frames
from vidcm.metrics.features import FeatureExtractor
from vidcm.metrics.frechet import frechet_distance

FRAMES = 16  # of every video, evenly spaced from its first to its last


def folder_distance(
    folders: tuple[Path, Path], extractor: FeatureExtractor
) -> tuple[float, list[int]]:
    """Distance between features of the videos in two folders and below them.

    Compare only distances of equal counts: it is biased upwards, by less the more videos there are.

    Args:
        folders: of videos.
        extractor: of the features; it gets `FRAMES` frames of every video.

    Returns:
        The distance, and the number of videos in each folder.

    Raises:
        UsageError: a folder holds fewer than 2 videos.
        BadClip: a video cannot be read.
    """
    roots = [folder.resolve() for folder in folders]
    names = [list_media(LocalRoot(root, follow_symlinks=False)).videos for root in roots]
    for folder, found in zip(folders, names, strict=True):
        if len(found) < 2:
            raise UsageError(f"{folder} holds {len(found)} video; a distance needs 2 or more")
    features = [
        np.concatenate(
            [_video_features(root / name, extractor) for name in tqdm(found, leave=False)]
        )
        for root, found in zip(roots, names, strict=True)
    ]
    return frechet_distance(*features), [len(found) for found in names]


def _video_features(path: Path, extractor: FeatureExtractor) -> np.ndarray:
    """`(1, d)`."""
    info = probe(path)
    times = np.linspace(0, info.last_seconds - info.hold_seconds, FRAMES)
    return extractor(torch.from_numpy(read_frames(path, times).frames)[None])
