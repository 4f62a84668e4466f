"""Checks of clip sizes against the strides of codec and backbone; needs no torch."""

from vidcm.errors import UsageError


def check_frames(frames: int, stride: int = 4) -> int:
    """Check a number of frames against the temporal stride of a causal codec.

    Args:
        frames: must be `stride * k + 1`, since the first frame is encoded alone.
        stride: temporal stride.

    Returns:
        `frames`.

    Raises:
        UsageError: names the nearest valid numbers.
    """
    if frames < 1 or (frames - 1) % stride:
        below = (frames - 1) // stride * stride + 1
        near = f"{below} or {below + stride}" if below >= 1 else "1"
        raise UsageError(
            f"{frames} frames do not fit the codec's temporal stride {stride}; use {near}"
        )
    return frames


def check_size(height: int, width: int, multiple: int) -> tuple[int, int]:
    """Check a frame size against codec stride times patch size.

    Args:
        height: pixels.
        width: pixels.
        multiple: number that must divide both.

    Returns:
        `(height, width)`.

    Raises:
        UsageError: names the nearest valid sizes.
    """
    for name, value in (("height", height), ("width", width)):
        if value < 1 or value % multiple:
            below = max(value // multiple * multiple, multiple)
            raise UsageError(
                f"{name} {value} is not a multiple of {multiple}; use {below} or {below + multiple}"
            )
    return height, width
