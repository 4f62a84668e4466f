"""Frames are read as players show them: colours, dynamic range, transparency."""

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from av.video.reformatter import ColorPrimaries, Colorspace, ColorTrc

from vidcm.media import hdr, read
from vidcm.media.colour import to_rgb
from vidcm.media.load import describe_fit, load_clip
from vidcm.media.masks import load_mask
from vidcm.media.read import probe, read_frames
from vidcm.media.transforms import resize_crop

COLOURS = np.array([(200, 60, 30), (40, 180, 90), (30, 70, 210), (128, 128, 128), (240, 220, 40)])
KR_KB = {"601": (0.299, 0.114), "709": (0.2126, 0.0722)}


def write(
    path: Path,
    frames: Sequence[av.VideoFrame],
    codec: str = "ffv1",
    options: dict[str, str] | None = None,
    tags: tuple[int, int, int] | None = None,
) -> Path:
    """A file of these frames at 25 a second; tags are matrix, primaries and transfer."""
    with av.open(str(path), "w") as out:
        stream = out.add_stream(codec, rate=25, options=options or {})
        stream.height, stream.width = frames[0].height, frames[0].width
        stream.pix_fmt = frames[0].format.name
        if tags:
            context = stream.codec_context
            context.colorspace, context.color_primaries, context.color_trc = tags
        for k, frame in enumerate(frames):
            frame.pts, frame.time_base = k, Fraction(1, 25)
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    return path


def yuv(colour: np.ndarray, size: tuple[int, int], matrix: str) -> av.VideoFrame:
    """A plane of one colour in 4:2:0 of limited range, by the formula of the matrix."""
    (kr, kb), (r, g, b) = KR_KB[matrix], colour / 255
    y = kr * r + (1 - kr - kb) * g + kb * b
    cb, cr = (b - y) / (2 - 2 * kb), (r - y) / (2 - 2 * kr)
    h, w = size
    planes = np.empty((h * 3 // 2, w), np.uint8)
    planes[:h] = round(16 + 219 * y)
    planes[h : h * 5 // 4], planes[h * 5 // 4 :] = round(128 + 224 * cb), round(128 + 224 * cr)
    return av.VideoFrame.from_ndarray(planes, format="yuv420p")


# ---- the matrix of untagged video ---------------------------------------------------------------


@pytest.mark.parametrize(("height", "matrix"), [(576, "601"), (720, "709"), (1080, "709")])
def test_hd_without_a_colour_matrix_is_bt709(tmp_path, height, matrix):
    frames = [yuv(colour, (height, 64), matrix) for colour in COLOURS]
    path = write(tmp_path / "a.mkv", frames)
    found = read_frames(path, np.arange(len(COLOURS)) / 25).frames
    assert abs(found.astype(int) - COLOURS[:, None, None]).max() <= 3


@pytest.mark.parametrize(("matrix", "tag"), [("601", 6), ("709", 1)])
@pytest.mark.parametrize("height", [64, 720])
def test_a_stated_colour_matrix_is_taken(tmp_path, height, matrix, tag):
    frames = [yuv(colour, (height, 64), matrix) for colour in COLOURS]
    path = write(tmp_path / "a.mkv", frames, tags=(tag, 2, 2))
    found = read_frames(path, np.arange(len(COLOURS)) / 25).frames
    assert abs(found.astype(int) - COLOURS[:, None, None]).max() <= 3


# ---- transparency -------------------------------------------------------------------------------


def cutout(hidden: tuple[int, int, int], format: str = "rgba") -> av.VideoFrame:
    """An opaque square and a half transparent one on transparent pixels of a hidden colour."""
    pixels = np.zeros((64, 64, 4), np.uint8)
    pixels[..., :3] = hidden
    pixels[8:24, 8:56] = (200, 60, 30, 255)
    pixels[40:56, 8:56] = (200, 60, 30, 128)
    return av.VideoFrame.from_ndarray(pixels, format="rgba").reformat(format=format)


@pytest.mark.parametrize(
    ("name", "codec", "format"),
    [("a.mov", "png", "rgba"), ("a.mov", "qtrle", "argb"), ("a.mkv", "ffv1", "yuva444p")],
)
def test_transparent_parts_are_black_whatever_they_hide(tmp_path, name, codec, format):
    found = []
    for k, hidden in enumerate([(0, 0, 0), (255, 0, 255), (255, 255, 255)]):
        path = write(tmp_path / f"{k}{name}", [cutout(hidden, format)] * 2, codec)
        found.append(read_frames(path, [0.0]).frames[0].astype(int))
    expected = np.zeros((64, 64, 3), int)
    expected[8:24, 8:56] = (200, 60, 30)
    expected[40:56, 8:56] = np.array((200, 60, 30)) * 128 / 255
    for pixels in found:
        assert abs(pixels - expected).max() <= 3


def test_webm_with_alpha(tmp_path, monkeypatch):
    """Its alpha is a stream of its own, which the usual decoders of VP9 leave out."""
    path = tmp_path / "a.webm"
    with av.open(str(path), "w") as out:
        stream = out.add_stream("libvpx-vp9", rate=25, options={"crf": "4", "g": "5"})
        stream.height, stream.width, stream.pix_fmt = 64, 64, "yuva420p"
        stream.metadata["alpha_mode"] = "1"
        for k in range(15):
            pixels = np.full((64, 64, 4), 60 + 10 * k, np.uint8)
            pixels[:, :32, 3], pixels[:, 32:, 3] = 255, 0
            frame = av.VideoFrame.from_ndarray(pixels, format="rgba")
            out.mux(stream.encode(frame.reformat(format="yuva420p")))
        out.mux(stream.encode(None))
    times = [0.28, 0.36, 0.6]
    for seek_seconds in (2.0, 0.0):
        monkeypatch.setattr(read, "SEEK_SECONDS", seek_seconds)
        found = read_frames(path, times).frames
        assert found[:, :, 40:].max() <= 2
        assert found[:, :, :24].mean(axis=(1, 2, 3)) == pytest.approx([130, 150, 200], abs=3)


def test_transparent_parts_of_a_mask_are_not_filled(tmp_path):
    pixels = np.full((16, 16, 4), 255, np.uint8)
    pixels[:, 8:, 3] = 0  # white, and transparent
    frame = av.VideoFrame.from_ndarray(pixels, format="rgba")
    path = write(tmp_path / "mask.mov", [frame] * 3, "png")
    mask = load_mask(str(path), load_clip(path, 25), 25)
    assert mask[:, :, :8].all() and not mask[:, :, 8:].any()


# ---- dynamic range ------------------------------------------------------------------------------


def picture() -> np.ndarray:
    """SDR: gradients of many colours, from black to white."""
    y, x = np.mgrid[:64, :96]
    hue = 2 * np.pi * x[..., None] / 96 + np.array([0, 2, 4]) * np.pi / 3
    return np.rint(255 * (0.5 + 0.5 * np.cos(hue)) * y[..., None] / 63).astype(np.uint8)


def as_hdr(image: np.ndarray, transfer: int) -> np.ndarray:
    """The same light in code values of BT.2020, 16 bits, with white at 203 cd/m2."""
    to_2020 = np.linalg.inv(hdr._to_bt709(hdr.BT2020).astype(float))
    light = np.maximum((image / 255) ** 2.4 @ to_2020.T, 0)
    if transfer == hdr.PQ:
        codes = hdr.light_to_pq(203 * light)
    elif transfer == hdr.HLG:  # inverse OOTF for a display of 1000 cd/m2, then the OETF
        light = 0.203 * light
        luminance = light @ [0.2627, 0.6780, 0.0593]
        scene = light * np.maximum(luminance, 1e-9)[..., None] ** (1 / 1.2 - 1)
        a = 0.17883277
        b, c = 1 - 4 * a, 0.5 - a * np.log(4 * a)
        upper = a * np.log(np.maximum(12 * scene - b, 1e-9)) + c
        codes = np.where(scene <= 1 / 12, np.sqrt(3 * scene), upper)
    else:
        codes = light ** (1 / 2.4)
    return np.rint(65535 * codes).astype(np.uint16)


def saturation(image: np.ndarray) -> float:
    return float(np.ptp(image.astype(int), axis=-1).mean())


@pytest.mark.parametrize(
    ("transfer", "most"), [(hdr.PQ, 4.0), (hdr.HLG, 4.0), (ColorTrc.BT2020_10, 1.5)]
)
def test_hdr_is_read_as_the_sdr_that_it_was_made_from(tmp_path, transfer, most):
    image = picture()
    frame = av.VideoFrame.from_ndarray(as_hdr(image, transfer), format="rgb48le")
    frame = frame.reformat(format="yuv444p10le", dst_colorspace=Colorspace.BT2020)
    tags = (9, ColorPrimaries.BT2020, transfer)
    path = write(tmp_path / "a.mkv", [frame] * 2, tags=tags)
    found = read_frames(path, [0.0]).frames[0]
    tone_mapped = transfer in (hdr.PQ, hdr.HLG)
    source = load_clip(path, 25.0)
    assert probe(path).hdr == source.hdr == tone_mapped
    note = describe_fit(source, source.frames, source.rate or 0)
    assert ("HDR tone-mapped to SDR" in (note or "")) == tone_mapped
    with av.open(str(path)) as file:
        coded = next(file.decode(video=0)).to_ndarray(format="rgb24")
    away, before = (abs(x.astype(int) - image).mean() for x in (found, coded))
    assert away < most < before
    assert saturation(found) == pytest.approx(saturation(image), rel=0.05)
    assert saturation(coded) < 0.93 * saturation(image)
    below_knee = abs(found.astype(int) - image)[image.max(-1) < 170]
    assert np.percentile(below_knee, 98) <= 9 and np.median(below_knee) == 0  # 10 bits of codes


def test_the_tone_curve_rises_from_black_to_white_and_leaves_the_dark_alone():
    codes = np.linspace(0, 1, 1001)
    light, mapped = hdr.pq_to_light(codes), hdr.pq_to_light(hdr.tone_curve(codes))
    assert mapped[0] == 0 and mapped[-1] == pytest.approx(203)
    assert (np.diff(mapped) >= -1e-9).all()
    assert mapped[light < 90] == pytest.approx(light[light < 90], rel=2e-4)
    assert hdr.pq_to_light(np.array([0.508078421])) == pytest.approx(100, rel=1e-4)  # BT.2408
    assert hdr.hlg_to_scene(np.array([0.5, 1.0])) == pytest.approx([1 / 12, 1], abs=1e-6)


def test_primaries_are_those_of_bt2087():
    expected = [[1.6605, -0.5876, -0.0728], [-0.1246, 1.1329, -0.0083], [-0.0182, -0.1006, 1.1187]]
    assert hdr._to_bt709(hdr.BT2020) == pytest.approx(np.array(expected), abs=1e-4)
    assert hdr._to_bt709(hdr.BT709) == pytest.approx(np.eye(3), abs=1e-6)


def test_a_large_hdr_frame_is_reduced_before_its_conversion(tmp_path):
    image = np.kron(picture(), np.ones((8, 8, 1), np.uint8))
    frame = av.VideoFrame.from_ndarray(as_hdr(image, hdr.PQ), format="rgb48le")
    frame = frame.reformat(format="yuv420p10le", dst_colorspace=Colorspace.BT2020)
    path = write(tmp_path / "a.mkv", [frame] * 2, tags=(9, 9, 16))
    small = read_frames(path, [0.0], size=(32, 48)).frames
    whole = resize_crop(read_frames(path, [0.0]).frames, (32, 48))
    assert small.shape == whole.shape and abs(small.astype(int) - whole).mean() < 1.5
    with av.open(str(path)) as file:
        assert to_rgb(next(file.decode(video=0)), 48).shape == (102, 153, 3)


def test_real_hdr_is_brighter_than_its_code_values(shared_data):
    path = shared_data / "media_edge" / "ax_mp4__hdr10-av1.mp4"
    with av.open(str(path)) as file:
        coded = next(file.decode(video=0)).to_ndarray(format="rgb24")
    found = read_frames(path, [0.0]).frames[0]
    assert found.mean() > coded.mean() + 20
