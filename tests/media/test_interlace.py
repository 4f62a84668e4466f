"""Interlaced video is read progressive, at the same times."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from vidcm.media import read
from vidcm.media.interlace import progressive
from vidcm.media.media_file import BadClip
from vidcm.media.read import read_frames
from vidcm.media.timed import TimedFrame


def write(path: Path, frames: list[av.VideoFrame], options: dict[str, str]) -> Path:
    with av.open(str(path), "w") as out:
        stream = out.add_stream("libx264", rate=25, options=options)
        stream.height, stream.width, stream.pix_fmt = 64, 128, "yuv420p"
        for k, frame in enumerate(frames):
            frame.pts, frame.time_base = k, Fraction(1, 25)
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    return path


def moment(field: float) -> np.ndarray:
    """A bar and a resting pattern at a time in fields of 1/50 s."""
    y, x = np.mgrid[:64, :128]
    bar = (x >= 8 + 3 * field) & (x < 40 + 3 * field) & (y < 32)
    rest = (y >= 40) & ((x // 8 + y // 4) % 2 == 0)
    return np.where((bar | rest)[..., None], np.uint8(210), np.uint8(40)).repeat(3, -1)


def fields(count: int, interlaced: bool = True) -> list[av.VideoFrame]:
    frames = []
    for k in range(count):
        image = moment(2 * k)
        if interlaced:
            image[1::2] = moment(2 * k + 1)[1::2]
        frames.append(av.VideoFrame.from_ndarray(image, format="rgb24").reformat(format="yuv420p"))
    return frames


def combing(image: np.ndarray) -> float:
    """How much rows differ from the mean of their neighbours, in the moving part."""
    rows = image[1:31].astype(float)
    return float(abs(2 * rows[1:-1] - rows[:-2] - rows[2:]).mean())


FIELDS = {"qp": "1", "bf": "2", "g": "6", "x264-params": "interlaced=1:tff=1"}


@pytest.mark.parametrize("count", [1, 2, 20])
def test_interlaced_frames_become_progressive_at_the_same_times(tmp_path, count):
    path = write(tmp_path / "a.mp4", fields(count), FIELDS)
    with av.open(str(path)) as file:
        decoded = [f.to_ndarray(format="rgb24") for f in file.decode(video=0)]
    found = read_frames(path, np.arange(count) / 25)
    assert found.seconds == pytest.approx(np.arange(count) / 25)
    assert combing(decoded[0]) > 5
    assert max(combing(image) for image in found.frames) < 2
    for k, image in enumerate(found.frames[1:], 1):  # the first has no frame before it
        assert combing(image) < 0.1
        assert abs(image.astype(int) - moment(2 * k)).mean() < 6
        assert abs(image[44:].astype(int) - decoded[k][44:]).max() == 0  # what rests stays sharp


def test_seeking_in_interlaced_video_changes_nothing(tmp_path, monkeypatch):
    path = write(tmp_path / "a.mp4", fields(20), FIELDS)
    times = 0.6 + np.arange(5) / 25
    decoded = read_frames(path, times)
    monkeypatch.setattr(read, "SEEK_SECONDS", 0.0)
    sought = read_frames(path, times)
    assert np.array_equal(sought.seconds, decoded.seconds)
    assert abs(sought.frames.astype(int) - decoded.frames).mean() < 0.5


def test_a_frame_size_that_changes_is_a_bad_clip(tmp_path):
    with av.open(str(write(tmp_path / "a.mp4", fields(2), FIELDS))) as file:
        large = next(file.decode(video=0))
    small = large.reformat(width=64)
    timed = [TimedFrame(0.0, large, 0.04), TimedFrame(0.04, small, 0.04)]
    with pytest.raises(BadClip, match="frame size changes"):
        list(progressive("a.mp4", iter(timed)))


def test_progressive_frames_are_left_alone(tmp_path):
    path = write(tmp_path / "a.mp4", fields(9, interlaced=False), {"qp": "1"})
    with av.open(str(path)) as file:
        decoded = [f.to_ndarray(format="rgb24") for f in file.decode(video=0)]
    assert np.array_equal(read_frames(path, np.arange(9) / 25).frames, np.stack(decoded))
