"""Clips and masks in the size of a model: scaled until they cover it, cropped at the centre."""

import numpy as np

from vidcm.media.transforms import resize_crop


def fit(frames: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Scale and crop a clip to a size.

    A reduction by a whole number gives every pixel the mean of its block, which undoes an
    enlargement by repeated pixels exactly; other reductions are antialiased beyond the block.

    Args:
        frames: uint8 `(t h w 3)`, scaled until they cover `size` and cropped at the centre.
        size: height and width in pixels.
    """
    part, n = _blocks(frames, size)
    if n > 1:
        return _block_means(part, n)
    return resize_crop(part, size)


def fit_mask(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Scale and crop a mask, bool `(t h w)`, as `fit`; partly masked pixels are masked."""
    part, n = _blocks(mask, size)
    if n > 1:
        return np.asarray(part.reshape(len(part), size[0], n, size[1], n).any((2, 4)))
    return (
        fit(np.where(mask, np.uint8(255), np.uint8(0))[..., None].repeat(3, -1), size)[..., 0] > 0
    )


def _blocks(frames: np.ndarray, size: tuple[int, int]) -> tuple[np.ndarray, int]:
    """What `fit` keeps of `(t h w ...)`, and the side of the blocks that become its pixels.

    All of it, and 1, where the reduction is not by a whole number.
    """
    (height, width), (h, w) = size, frames.shape[1:3]
    n = min(h // height, w // width) if min(size) > 0 else 0
    if n < 2 or (h != n * height and w != n * width):
        return frames, 1
    # The centre is counted in blocks, as `resize_crop` counts it in pixels.
    top, left = (h // n - height) // 2 * n, (w // n - width) // 2 * n
    return frames[:, top : top + n * height, left : left + n * width], n


def _block_means(frames: np.ndarray, n: int) -> np.ndarray:
    """The means of blocks of n x n pixels of uint8 `(t h w c)`, in whole grey levels."""
    _, h, w, c = frames.shape
    means = []
    for frame in frames:  # rows first, which is four times as fast
        rows = frame.reshape(h // n, n, w * c).sum(1, dtype=np.uint32)
        means.append(rows.reshape(h // n, w // n, n, c).sum(2) / n**2)
    return np.rint(means).astype(np.uint8)
