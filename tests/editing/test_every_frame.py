"""`vidcm edit interpolate_frames` of real files: every given frame stays, at the file's own rate."""

from pathlib import Path

import av
import numpy as np
import pytest
import tiny
from editing.test_command import frames, main

from vidcm.errors import UsageError
from vidcm.media.fit import fit
from vidcm.media.load import load_every_frame
from vidcm.media.write import write_clip

H, W = 16, 24


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    """A model of 8 frames a second, and clips whose frames all differ."""
    folder = tmp_path_factory.mktemp("every")
    tiny.pipeline(folder)
    clip = np.zeros((9, 32, 48, 3), np.uint8)
    for k in range(9):
        clip[k, :, : 4 + 5 * k] = 220
    for fps in (2, 8, 25):
        write_clip(clip, folder / f"at{fps}.mp4", fps=fps)
    write_clip(clip, folder / "slow.gif", fps=4)
    return folder


def rate_of(path: Path) -> float:
    with av.open(str(path)) as source:
        return float(source.streams.video[0].average_rate or 0)


def command(world: Path, name: str, output: object, *words: object) -> list[object]:
    model = ["--checkpoint", world / "pipeline", "--scale", 1]
    return ["interpolate_frames", "--input", world / name, "--output", output, *model, *words]


@pytest.mark.parametrize(
    ("name", "fps", "factor"),
    [("at8.mp4", 8, 2), ("at2.mp4", 2, 2), ("at25.mp4", 25, 3), ("slow.gif", 4, 2)],
)
def test_all_given_frames_stay(world, tmp_path, capsys, name, fps, factor):
    code, _, error = main(capsys, *command(world, name, f"{tmp_path}/out/", "--factor", factor))
    assert code == 0, error
    given, made = load_every_frame(world / name, 4), frames(tmp_path / "out")
    assert given.rate == pytest.approx(fps) and len(given.frames) == given.total == 9
    assert len(np.unique(given.frames, axis=0)) == 9  # each of them, once
    np.testing.assert_array_equal(made[::factor], fit(given.frames, (H, W)))
    assert len(made) == 8 * factor + 1 and "cut to" not in error
    said = (
        f"the result has {fps * factor} frames a second, {factor} times the input's; the model was"
    )
    assert (said in error) == (fps * factor != 8)
    code, _, error = main(capsys, *command(world, name, tmp_path / "out.mp4", "--factor", factor))
    assert code == 0 and rate_of(tmp_path / "out.mp4") == pytest.approx(fps * factor), error


def test_frames_from_a_second_on(world):
    whole, late = (load_every_frame(world / "at8.mp4", 4, start=start) for start in (0, 0.5))
    np.testing.assert_array_equal(late.frames, whole.frames[4:])
    few = load_every_frame(world / "at8.mp4", 4, 3, 0.25)
    np.testing.assert_array_equal(few.frames, whole.frames[2:5])
    assert (late.total, few.total) == (5, 7)


def test_a_rate_that_cannot_be_written_is_refused_before_the_work(world, tmp_path, capsys):
    code, out, error = main(capsys, *command(world, "at25.mp4", tmp_path / "x.gif", "--factor", 3))
    assert code == 2 and "fps is 75" in error and "in .gif files" in error and not out
    assert not list(tmp_path.iterdir())


def test_frames_of_an_uneven_rate_are_refused(tmp_path):
    with av.open(str(tmp_path / "uneven.mkv"), "w") as out:
        stream = out.add_stream("libx264", rate=25)
        stream.height, stream.width, stream.pix_fmt = 32, 48, "yuv420p"
        for k, tick in enumerate([0, 1, 2, 5, 6, 7]):
            frame = av.VideoFrame.from_ndarray(np.full((32, 48, 3), 30 * k, np.uint8))
            frame.pts = tick
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    with pytest.raises(UsageError, match="are 0.04 to 0.12 s apart, and here they must be evenly"):
        load_every_frame(tmp_path / "uneven.mkv", 4)
    assert len(load_every_frame(tmp_path / "uneven.mkv", 4, 3).frames) == 3
