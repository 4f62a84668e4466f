"""Fréchet distance between Gaussians fitted to features of generated and of true clips.

Dowson & Landau 1982; Heusel et al. 2017, arXiv 1706.08500. `features.FeatureExtractor` makes the
features.
"""

import numpy as np

from vidcm.errors import VidcmError

VERSION = 1


def gaussian_distance(
    mean_a: np.ndarray, cov_a: np.ndarray, mean_b: np.ndarray, cov_b: np.ndarray
) -> float:
    """`|mean_a - mean_b|^2 + tr(cov_a + cov_b - 2 (cov_a cov_b)^(1/2))`, 0 or more."""
    values, vectors = np.linalg.eigh(cov_a)
    root = vectors * np.sqrt(values.clip(min=0)) @ vectors.T
    cross = np.linalg.eigvalsh(root @ cov_b @ root).clip(min=0)
    gap = np.square(mean_a - mean_b).sum()
    return float(max(gap + np.trace(cov_a) + np.trace(cov_b) - 2 * np.sqrt(cross).sum(), 0.0))


def frechet_distance(a: np.ndarray, b: np.ndarray) -> float:
    """Distance between features `(n, d)` and `(m, d)`.

    It is biased upwards, by less the more clips there are: compare only distances of equal counts.

    Raises:
        VidcmError: fewer than 2 clips on a side.
    """
    if len(a) < 2 or len(b) < 2:
        raise VidcmError(
            f"a Fréchet distance needs 2 clips or more a side; got {len(a)} and {len(b)}"
        )
    a, b = a.astype(np.float64), b.astype(np.float64)
    return gaussian_distance(a.mean(0), _covariance(a), b.mean(0), _covariance(b))


def _covariance(x: np.ndarray) -> np.ndarray:
    return np.cov(x, rowvar=False).reshape(x.shape[1], x.shape[1])
