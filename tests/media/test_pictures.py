"""Pictures and folders of frames as people have them: any kind, any name, in the right order."""

from pathlib import Path

import numpy as np
import pytest

from vidcm.errors import UsageError
from vidcm.media.load import load_clip
from vidcm.media.write import write_png


def grey(path: Path, level: int) -> Path:
    return write_png(np.full((4, 6, 3), level, np.uint8), path)


def levels(folder: Path, **options) -> list[int]:
    return load_clip(folder, 8, **options).frames[:, 0, 0, 0].tolist()


# ---- folders of frames --------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["{}.png", "frame{}.png", "f_{:03d}.png", "s2.take {}_x64.png"])
def test_frames_are_in_the_order_of_their_numbers(tmp_path, caplog, name):
    for k in range(12):
        grey(tmp_path / name.format(k), 20 + k)
    assert levels(tmp_path) == [*range(20, 32)]
    assert levels(tmp_path, start=0.25, max_frames=3) == [22, 23, 24]
    assert not caplog.records


def test_hidden_files_are_no_frames(tmp_path):
    for k in range(3):
        grey(tmp_path / f"{k}.png", k)
    (tmp_path / "._0.png").write_bytes(b"\0\5\x16\7\0\2\0\0Mac OS X        ")
    (tmp_path / ".DS_Store").write_bytes(b"\0\0\0\1Bud1")
    assert levels(tmp_path) == [0, 1, 2]


def test_missing_numbers_are_named(tmp_path, caplog):
    for k in (0, 5, 10, 20, 25, 35):
        grey(tmp_path / f"f{k}.png", k)
    assert levels(tmp_path, max_frames=3) == [0, 5, 10] and not caplog.records
    assert levels(tmp_path) == [0, 5, 10, 20, 25, 35]
    (record,) = caplog.records
    assert "missing in 2 places: f10.png to f20.png, f25.png to f35.png;" in record.getMessage()


def test_names_that_count_in_two_places_are_said(tmp_path, caplog):
    for k, name in enumerate(["a1_9", "a1_10", "a2_1", "a10_0"]):
        grey(tmp_path / f"{name}.png", k)
    assert levels(tmp_path) == [0, 1, 2, 3]
    (record,) = caplog.records
    assert "count in 2 places; taken from a1_9.png, a1_10.png to a10_0.png" in record.getMessage()


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["a.txt"], "holds no pictures"),
        (
            ["a1.png", "a2.png", "sheet.png"],
            "of 2 kinds .2 as a1.png, 1 as sheet.png., whose order",
        ),
        (["first.png", "last.png"], "of 2 kinds"),
        (["1.png", "01.png"], "same number; keep one"),
    ],
)
def test_folders_without_an_order_are_refused(tmp_path, names, message):
    for name in names:
        if name.endswith(".png"):
            grey(tmp_path / name, 1)
    with pytest.raises(UsageError, match=message):
        load_clip(tmp_path, 8)
