"""Pictures and folders of frames as people have them: any kind, any name, in the right order."""

import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vidcm.errors import UsageError
from vidcm.media.load import SourceClip, check_source, load_clip
from vidcm.media.masks import load_mask
from vidcm.media.media_file import BadClip
from vidcm.media.pictures import decode_picture, read_picture
from vidcm.media.transforms import BACKGROUND
from vidcm.media.worker import ReaderProcess
from vidcm.media.write import write_png

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)
CORNERS = np.array([[RED, GREEN], [BLUE, WHITE]], np.uint8)


def corners(path: Path, *, mode: str = "RGB", **options) -> Path:
    """A picture whose quarters are red and green above blue and white."""
    image = Image.fromarray(CORNERS.repeat(16, 0).repeat(24, 1))
    (image.quantize(4) if mode == "P" else image.convert(mode)).save(path, **options)
    return path


def corners_of(frame: np.ndarray) -> np.ndarray:
    """The four corners, to whole steps of 255: jpeg changes colours a little."""
    h, w = frame.shape[:2]
    return (frame[[4, h - 5]][:, [4, w - 5]] > 127) * np.uint8(255)


def grey(path: Path, level: int) -> Path:
    return write_png(np.full((4, 6, 3), level, np.uint8), path)


def levels(folder: Path, **options) -> list[int]:
    return load_clip(folder, 8, **options).frames[:, 0, 0, 0].tolist()


# ---- kinds of pictures --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "mode", "options"),
    [
        ("a.jpg", "RGB", {}),
        ("a.JPEG", "CMYK", {"quality": 95}),
        ("a.webp", "RGB", {"lossless": True}),
        ("a.bmp", "RGB", {}),
        ("a.tif", "RGB", {"compression": "tiff_lzw"}),
        ("a.tiff", "CMYK", {}),
        ("a.PNG", "RGB", {}),
        ("a.png", "P", {}),
        ("a.tga", "RGB", {}),
        ("a.ppm", "RGB", {}),
    ],
)
def test_pictures_of_any_kind_are_clips_of_one_frame(tmp_path, name, mode, options):
    path = corners(tmp_path / name, mode=mode, **options)
    check_source(path, 8)
    clip = load_clip(path, 8)
    assert clip.frames.shape == (1, 32, 48, 3) and clip.rate is None
    np.testing.assert_array_equal(corners_of(clip.frames[0]), CORNERS)
    folder = tmp_path / "frames"
    folder.mkdir()
    for k in range(3):
        corners(folder / f"{k}{path.suffix}", mode=mode, **options)
    assert load_clip(folder, 8).frames.shape == (3, 32, 48, 3)


@pytest.mark.parametrize(
    ("orientation", "expected"),
    [
        (3, [[WHITE, BLUE], [GREEN, RED]]),
        (5, [[RED, BLUE], [GREEN, WHITE]]),
        (6, [[BLUE, RED], [WHITE, GREEN]]),
    ],
)
def test_photographs_are_turned_upright(tmp_path, orientation, expected):
    exif = Image.Exif()
    exif[274] = orientation
    frame = read_picture(corners(tmp_path / "a.jpg", exif=exif))
    assert frame.shape[:2] == ((32, 48) if orientation == 3 else (48, 32))
    np.testing.assert_array_equal(corners_of(frame), np.array(expected))


@pytest.mark.parametrize("suffix", [".png", ".tif", ".pgm"])
def test_16_bit_samples_keep_their_upper_bits(tmp_path, suffix):
    samples = np.array([[0, 255, 256, 0x7FFF, 0x8000, 0xFFFF]], np.uint16)
    Image.fromarray(samples).save(tmp_path / f"a{suffix}")
    assert read_picture(tmp_path / f"a{suffix}")[0, :, 0].tolist() == [0, 0, 1, 127, 128, 255]


@pytest.mark.parametrize("suffix", [".png", ".webp", ".tif"])
def test_hidden_colours_stay_hidden(tmp_path, suffix):
    """What is transparent has the colour of the backdrop, whatever its own; half is half of both."""
    pixels = np.array([[(255, 0, 255, 0), (0, 200, 90, 0), (200, 100, 40, 255)]], np.uint8)
    path = tmp_path / f"a{suffix}"
    options: dict[str, Any] = {"lossless": True, "exact": True} if suffix == ".webp" else {}
    Image.fromarray(pixels).save(path, **options)
    assert decode_picture(path.read_bytes()).tolist() == pixels.tolist()
    assert read_picture(path).tolist() == [[[*BACKGROUND], [*BACKGROUND], [200, 100, 40]]]
    half = np.full((1, 1, 4), (200, 100, 40, 51), np.uint8)
    Image.fromarray(half).save(tmp_path / "half.png")
    assert read_picture(tmp_path / "half.png").tolist() == [[[40, 20, 8]]]


def test_transparent_is_not_white_in_a_mask(tmp_path):
    clip = SourceClip(tmp_path, np.zeros((2, 1, 3, 3), np.uint8), 2, None)
    mask = np.array([[(255, 255, 255, 0), (255, 255, 255, 255), (0, 0, 0, 255)]], np.uint8)
    Image.fromarray(mask).save(tmp_path / "mask.WEBP", lossless=True, exact=True)
    found = load_mask(str(tmp_path / "mask.WEBP"), clip, 8, start=1.0)
    assert found.tolist() == [[[False, True, False]]]


def test_pictures_that_are_none_say_why(tmp_path):
    image = Image.fromarray(CORNERS)
    other = Image.fromarray(255 - CORNERS)
    for suffix in (".webp", ".png", ".tif"):
        path = tmp_path / f"two{suffix}"
        image.save(path, save_all=True, append_images=[other])
        with pytest.raises(BadClip, match="holds 2 pictures; save them as a video, or each alone"):
            check_source(path, 8)
    Image.fromarray(np.ones((2, 2), np.float32)).save(tmp_path / "deep.tif")
    with pytest.raises(BadClip, match="samples have 32 bits; save it with 8 or 16"):
        read_picture(tmp_path / "deep.tif")
    (tmp_path / "text.jpg").write_text("<html>")
    with pytest.raises(BadClip, match="text.jpg: unreadable: not read as a picture"):
        load_clip(tmp_path / "text.jpg", 8)
    image.save(tmp_path / "two.mpo", save_all=True, append_images=[other])
    whole = decode_picture((tmp_path / "two.mpo").read_bytes())  # as phones write photographs
    assert whole.shape == (2, 2, 3)


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


def test_the_reader_process_loads_what_this_process_would(tmp_path: Path) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (24, 40, 3), np.uint8)
    Image.fromarray(picture).save(tmp_path / "a.png")
    with ReaderProcess() as reader:
        found = reader.load_clip(tmp_path / "a.png", 8.0)
        assert np.array_equal(found.frames, load_clip(tmp_path / "a.png", 8.0).frames)
        assert reader.frames_in_memory(tmp_path / "a.png") == float("inf")


def test_a_picture_beyond_the_limit_is_refused_before_it_is_decoded(tmp_path: Path) -> None:
    def chunk(name: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        )

    size = struct.pack(">IIBBBBB", 12000, 12000, 8, 2, 0, 0, 0)
    parts = chunk(b"IHDR", size), chunk(b"IDAT", zlib.compress(b"")), chunk(b"IEND", b"")
    (tmp_path / "bomb.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))
    with (
        ReaderProcess(max_pixels=2**20) as reader,
        pytest.raises(BadClip, match=r"1 picture\(s\) of 12000x12000, at most 1048576 pixels"),
    ):
        reader.load_clip(tmp_path / "bomb.png", 8.0)
