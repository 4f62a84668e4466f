"""Reading videos: exact against frame oracles, by timestamp, and in one word for bad files."""

import gc
import io
import json
import os
import pickle
import random
import signal
import struct
import subprocess
import sys
import threading
import time
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image

from vidcm.errors import UsageError
from vidcm.media import demux, read, timing
from vidcm.media.load import load_clip
from vidcm.media.masks import load_mask
from vidcm.media.read import BadClip, probe, read_frames
from vidcm.media.sizes import check_frames
from vidcm.media.worker import ReaderProcess

H, W = 46, 62  # twice a prime each, for 4:2:0


def make(
    path: Path,
    ticks: list[int],
    *,
    codec: str = "libx264",
    pixels: str = "yuv420p",
    size: tuple[int, int] = (H, W),
    tick: Fraction = Fraction(1, 1000),
    options: dict[str, str] | None = None,
    rate: int = 25,
) -> Path:
    """A real file whose frame k is a grey of value 12 + 8k (mod 240), shown at ticks[k]."""
    with av.open(str(path), "w", options=options or {}) as out:
        stream = out.add_stream(codec, rate=rate, options={"g": "5"})
        stream.height, stream.width = size
        stream.pix_fmt, stream.bit_rate = pixels, 4_000_000
        stream.codec_context.time_base = stream.time_base = tick
        for k, when in enumerate(ticks):
            image = np.full((*size, 3), grey(k), np.uint8)
            frame = av.VideoFrame.from_ndarray(image, format="rgb24").reformat(format=pixels)
            frame.pts, frame.time_base = when, tick
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    return path


def grey(k: int) -> int:
    return (12 + 8 * k) % 240


def shown(frames: np.ndarray) -> list[int]:
    """Which frame of `make` each is; fails unless it is one of the first 30, all over."""
    levels = frames.reshape(len(frames), -1).astype(float)
    assert levels.std(axis=1).max() < 3
    index = (levels.mean(axis=1) - 12) / 8
    assert abs(index - index.round()).max() < 0.4
    return index.round().astype(int).tolist()


def reason(path: Path, times: list[float] | np.ndarray = (0.0,), **options) -> str:
    with pytest.raises(BadClip) as caught:
        read_frames(path, times, **options)
    assert "\n" not in str(caught.value).replace(str(path), "")
    return caught.value.reason


@pytest.fixture(scope="module")
def steady(tmp_path_factory) -> Path:
    """29 frames, 40 ms apart, index in front (a stream can be cut anywhere)."""
    path = tmp_path_factory.mktemp("v") / "steady.mp4"
    return make(path, [40 * k for k in range(29)], options={"movflags": "faststart"})


# ---- exact pixels and times -------------------------------------------------------------------


@pytest.mark.parametrize("seek_seconds", [0.0, 2.0], ids=["seek", "decode"])
def test_frames_equal_the_oracle_to_the_bit(tmp_path, shared_data, monkeypatch, seek_seconds):
    monkeypatch.setattr(read, "SEEK_SECONDS", seek_seconds)
    name, alone = "nasa_13013.mp4.stream0", tmp_path / "stream0.mp4"
    with (
        av.open(shared_data / "clips/torchcodec_nasa_13013.mp4") as film,
        av.open(alone, "w") as out,
    ):
        stream = out.add_stream_from_template(film.streams.video[0])
        for packet in film.demux(video=0):
            if packet.size:
                packet.stream = stream
                out.mux(packet)
    stamps = json.loads((shared_data / "expected" / f"{name}.all_frames_info.json").read_text())
    for index in (0, 1, 2, 9, 15, 20, 35):
        wanted = float(stamps[index]["pts_time"])
        found = read_frames(alone, [wanted])
        oracle = torch.load(shared_data / "expected" / f"{name}.frame{index:06}.pt")
        assert found.seconds == pytest.approx([wanted])
        assert np.array_equal(found.frames[0], oracle.numpy())


def test_of_several_video_streams_players_choose(shared_data):
    """Both are flagged as default; FFmpeg and torchcodec take the one of the higher bit rate."""
    assert probe(shared_data / "clips/torchcodec_nasa_13013.mp4")[:2] == (270, 480)


def test_seeking_changes_nothing(shared_data, monkeypatch):
    """Cases: V13."""
    for name in ("intel_bottle-detection.mp4", "mdn_flower.webm", "androidx_ts__bbb_2500ms.ts"):
        path = shared_data / "clips" / name
        times = timing.frame_times(5, 13, start=2.05 if name.endswith("ts") else 3.01)
        sought = read_frames(path, times)
        with monkeypatch.context() as patch:
            patch.setattr(read, "SEEK_SECONDS", 1e9)
            decoded = read_frames(path, times)
        assert np.array_equal(sought.frames, decoded.frames)
        assert np.array_equal(sought.seconds, decoded.seconds)


@pytest.mark.parametrize(
    ("name", "codec", "pixels", "size"),
    [
        ("a.mp4", "libx264", "yuv420p", (H, W)),
        ("a.webm", "libvpx-vp9", "yuv420p", (37, 53)),
        ("a.mkv", "ffv1", "yuv420p", (37, 53)),
        ("a.gif", "gif", "rgb8", (37, 53)),
        ("a.avi", "mpeg4", "yuv420p", (H, W)),
        ("a.ts", "mpeg2video", "yuv420p", (H, W)),
        ("b.mp4", "libx264", "yuv444p", (37, 53)),
        ("c.mp4", "libx264", "gray", (37, 53)),
        ("d.mkv", "libx265", "yuv420p10le", (74, 106)),
        ("a.mov", "png", "rgba", (37, 53)),
    ],
)
def test_codecs_sizes_and_pixel_formats(tmp_path, name, codec, pixels, size):
    """Cases: V16, V17, V19."""
    tick = Fraction(1, 25)
    path = make(tmp_path / name, list(range(13)), codec=codec, pixels=pixels, size=size, tick=tick)
    found = read_frames(path, timing.frame_times(5, 12.5, start=0.04))
    assert found.frames.shape == (5, *size, 3) and found.frames.dtype == np.uint8
    assert found.seconds == pytest.approx([0.04, 0.12, 0.2, 0.28, 0.36])
    if pixels not in ("rgb8", "gray"):  # few colours; another range of values
        assert shown(found.frames) == [1, 3, 5, 7, 9]
    info = probe(path)
    assert info[:2] == size and info.last_seconds == pytest.approx(0.52, abs=1e-3)
    assert info.hold_seconds == pytest.approx(0.04, abs=1e-3)
    assert read_frames(path, [info.last_seconds]).seconds == pytest.approx([0.48])


def test_variable_rate_goes_by_timestamps(tmp_path):
    """Cases: V14."""
    draw = random.Random(3)
    ticks = np.cumsum([0] + [draw.choice([7, 20, 33, 150, 400]) for _ in range(27)]).tolist()
    path = make(tmp_path / "vfr.mkv", ticks)
    stamps = np.array(ticks) / 1000
    times = np.sort([draw.uniform(0, stamps[-1]) for _ in range(41)])
    found = read_frames(path, times)
    brute = [int(abs(stamps - t).argmin()) for t in times]
    assert shown(found.frames) == brute
    assert found.seconds == pytest.approx(stamps[brute])
    gaps = np.diff(stamps)[np.searchsorted(stamps, times, side="right").clip(1, 27) - 1]
    assert (abs(found.seconds - times) <= gaps / 2 + 1e-9).all()


def test_second_zero_is_the_first_frame(tmp_path):
    path = make(tmp_path / "late.mkv", [5000 + 40 * k for k in range(9)])
    found = read_frames(path, [0.0, 0.1, 0.12])
    assert shown(found.frames) == [0, 2, 3]  # 0.1 lies midway: the earlier one
    assert found.seconds == pytest.approx([0.0, 0.08, 0.12])
    assert reason(path, [0.4]) == "too-short"  # not truncated: its header counts from 0


def test_an_intact_video_is_not_truncated_where_its_sound_is_longer(shared_data):
    path = shared_data / "clips" / "androidx_mkv__bbb_960x540_60fps_vp8.webm"
    assert reason(path, [1.2]) == "too-short"


def test_the_last_frame_is_shown_for_its_duration(steady):
    assert shown(read_frames(steady, [1.159, 1.16]).frames) == [28, 28]
    assert reason(steady, [1.163]) == "too-short"
    assert reason(steady, timing.frame_times(33, 25)) == "too-short"


@pytest.mark.parametrize("rate", [24, 25, 30])
@pytest.mark.parametrize(
    ("name", "codec"),
    [("a.mp4", "libx264"), ("a.mkv", "libx264"), ("a.webm", "libvpx-vp9"), ("a.avi", "mpeg4"),
     ("a.ts", "mpeg2video"), ("a.flv", "libx264")],
)  # fmt: skip
def test_a_video_of_one_second_lasts_one_second(tmp_path, name, codec, rate):
    tick = Fraction(1, rate)
    path = make(tmp_path / name, list(range(rate)), codec=codec, tick=tick, rate=rate)
    assert probe(path).last_seconds == pytest.approx(1, abs=1.5e-3)
    nine = read_frames(path, timing.frame_times(9, 8))
    assert nine.frames[-1].mean() == pytest.approx(grey(rate - 1), abs=3)
    assert reason(path, timing.frame_times(13, 12, start=0.004)) == "too-short"


def test_a_pause_at_the_end_of_a_gif_is_part_of_it(tmp_path):
    pictures = [Image.fromarray(np.full((H, W, 3), v, np.uint8)) for v in (10, 60, 110, 160, 210)]
    times = [100, 500, 100, 100, 700]
    pictures[0].save(
        tmp_path / "a.gif", save_all=True, append_images=pictures[1:], duration=times, loop=0
    )
    info = probe(tmp_path / "a.gif")
    assert info.last_seconds == pytest.approx(1.5) and info.hold_seconds == pytest.approx(0.7)
    clip = load_clip(tmp_path / "a.gif", 8)
    assert clip.total == len(clip.frames) == 12
    assert clip.frames[-5:].mean(axis=(1, 2, 3)) == pytest.approx([210] * 5)
    assert len(load_clip(tmp_path / "a.gif", 8, start=1.25).frames) == 2
    with pytest.raises(UsageError, match="ends at 1.50 s"):
        load_clip(tmp_path / "a.gif", 8, start=1.5)


@pytest.mark.parametrize("suffix", [".mkv", ".webm", ".mp4", ".flv"])
def test_only_a_file_without_its_end_is_truncated(tmp_path, suffix):
    path, codec = tmp_path / f"long{suffix}", "libopus" if suffix == ".webm" else "aac"
    with av.open(str(path), "w") as out:
        video = out.add_stream("libvpx-vp9" if suffix == ".webm" else "libx264", rate=25)
        video.height, video.width, video.pix_fmt = H, W, "yuv420p"
        sound = out.add_stream(codec, rate=48000, layout="mono")
        for k in range(100):
            if k < 25:
                image = np.full((H, W, 3), grey(k), np.uint8)
                out.mux(video.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
            samples = np.zeros((1, 960), np.float32)
            frame = av.AudioFrame.from_ndarray(samples, "fltp", "mono")
            frame.sample_rate, frame.pts = 48000, 960 * k
            out.mux(sound.encode(frame))
        out.mux(video.encode(None))
        out.mux(sound.encode(None))
    assert len(read_frames(path, timing.frame_times(9, 8)).frames) == 9
    assert reason(path, [1.2]) == "too-short"
    if suffix in (".mkv", ".webm"):
        cut = tmp_path / f"cut{suffix}"
        cut.write_bytes(path.read_bytes()[: path.stat().st_size * 9 // 10])
        assert reason(cut, [3.0]) == "truncated"


def disc(size: tuple[int, int], aspect: Fraction) -> np.ndarray:
    """A bright disc on grey, as it is stored in pixels of an aspect."""
    y, x = np.mgrid[: size[0], : size[1]]
    across, down = (1, aspect) if aspect > 1 else (1 / aspect, 1)
    radius = min(size) / 4
    inside = ((x - size[1] / 2) / across) ** 2 + ((y - size[0] / 2) / down) ** 2 < (
        radius / max(across, down)
    ) ** 2
    return np.where(inside[..., None], np.uint8(220), np.uint8(40)).repeat(3, -1)


@pytest.mark.parametrize(
    ("aspect", "turn", "expected"),
    [("2", "none", (64, 128)), ("1/2", "none", (128, 64)), ("64/45", "none", (64, 91)),
     ("2", "clockwise", (128, 64)), ("640/639", "none", (64, 64))],
)  # fmt: skip
def test_pixels_that_are_not_square_are_scaled(tmp_path, aspect, turn, expected):
    wide = Fraction(aspect)
    with av.open(str(tmp_path / "a.mp4"), "w") as out:
        stream = out.add_stream("libx264", rate=25, options={"qp": "1"})
        stream.height, stream.width, stream.pix_fmt = 64, 64, "yuv420p"
        stream.codec_context.sample_aspect_ratio = wide
        image = disc((64, 64), wide)
        for _ in range(9):
            out.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        out.mux(stream.encode(None))
    path = turned(tmp_path / "a.mp4", tmp_path / "b.mp4", TURNS[turn][0])
    for found in (read_frames(path, [0.0]).frames[0], load_clip(path, 8).frames[0]):
        assert found.shape[:2] == probe(path)[:2] == expected
        bright = found[..., 0] > 130
        assert bright.any(0).sum() == pytest.approx(bright.any(1).sum(), abs=2)
    mask = load_mask(str(path), load_clip(path, 8), 8)
    assert mask.shape[1:] == expected
    if expected != (64, 64):
        assert reason(path, [0.0], max_pixels=64 * 64) == "too-large"


def test_real_anamorphic_footage(shared_data):
    clips = shared_data / "clips"
    path = clips / "androidx_mp4__bbb_800x640_768kbps_30fps_vp9.mp4"
    assert probe(path)[:2] == (640, 1138)
    assert read_frames(path, [0.0]).frames.shape == (1, 640, 1138, 3)


TURNS = {  # a b c d of the display matrix, and what it does to an image
    "none": ((1, 0, 0, 1), lambda x: x),
    "clockwise": ((0, 1, -1, 0), lambda x: np.rot90(x, -1)),
    "half": ((-1, 0, 0, -1), lambda x: np.rot90(x, 2)),
    "counter": ((0, -1, 1, 0), lambda x: np.rot90(x, 1)),
    "left-right": ((-1, 0, 0, 1), lambda x: x[:, ::-1]),
    "up-down": ((1, 0, 0, -1), lambda x: x[::-1]),
    "diagonal": ((0, 1, 1, 0), lambda x: x.swapaxes(0, 1)),
    "other diagonal": ((0, -1, -1, 0), lambda x: np.rot90(x.swapaxes(0, 1), 2)),
    "empty": ((0, 0, 0, 0), lambda x: x),
}


def turned(source: Path, path: Path, matrix: tuple[float, ...]) -> Path:
    """A copy of an mp4 with another matrix in its track header (version 0)."""
    data = bytearray(source.read_bytes())
    at = data.index(b"tkhd") + 44
    a, b, c, d = (round(value * 65536) for value in matrix)
    data[at : at + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("turn", TURNS)
def test_display_matrix_is_applied(tmp_path, turn):
    """Cases: V15."""
    image = np.zeros((H, W, 3), np.uint8)
    image[: H // 2, : W // 2] = 90
    image[: H // 2, W // 2 :] = 200  # no two corners alike
    image[H // 2 :, : W // 2] = 150
    with av.open(str(tmp_path / "plain.mp4"), "w") as out:
        stream = out.add_stream("libx264", rate=25, options={"qp": "1"})
        stream.height, stream.width, stream.pix_fmt = H, W, "yuv420p"
        out.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        out.mux(stream.encode(None))
    matrix, apply = TURNS[turn]
    path = turned(tmp_path / "plain.mp4", tmp_path / "turned.mp4", matrix)
    found = read_frames(path, [0.0]).frames[0]
    expected = apply(image)
    assert found.shape == expected.shape == (*probe(path)[:2], 3)
    assert abs(found.astype(int) - expected).mean() < 4


def test_tilted_display_matrix_is_refused(steady, tmp_path):
    path = turned(steady, tmp_path / "tilted.mp4", (0.7, 0.7, -0.7, 0.7))
    assert reason(path) == "unreadable"


def test_side_data_of_an_unknown_kind_does_not_end_a_clip(tmp_path):
    """Of pictures with EXIF data, PyAV lists no side data at all."""
    data, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = 6  # orientation: turn clockwise
    image = np.zeros((H, W, 3), np.uint8)
    image[: H // 2, : W // 2] = 200
    Image.fromarray(image).save(data, "jpeg", exif=exif, quality=95)
    with av.open(str(tmp_path / "a.mkv"), "w") as out:
        stream = out.add_stream("mjpeg", rate=25)
        stream.height, stream.width, stream.pix_fmt = H, W, "yuvj420p"
        for k in range(3):
            packet = av.Packet(data.getvalue())
            packet.pts = packet.dts = 40 * k
            packet.stream, packet.time_base, packet.is_keyframe = stream, Fraction(1, 1000), True
            out.mux(packet)
    with av.open(str(tmp_path / "a.mkv")) as file, pytest.raises(ValueError, match="valid Type"):
        _ = next(file.decode(video=0)).side_data
    found = read_frames(tmp_path / "a.mkv", [0.0, 0.04]).frames
    assert found.shape[1:3] == probe(tmp_path / "a.mkv")[:2] == (W, H)
    assert abs(found[0].astype(int) - np.rot90(image, -1)).mean() < 4


# ---- bad files ----------------------------------------------------------------------------------


def test_bad_files_have_a_reason(tmp_path, steady):
    """Cases: V01, V02, V03."""
    whole = steady.read_bytes()
    bad = {
        "empty": b"",
        "not-video": b"<html><body>404</body></html>" * 99,
        "unreadable": whole[whole.index(b"mdat") - 4 :],  # the index is missing
    }
    for expected, data in bad.items():
        path = tmp_path / f"{expected}.mp4"
        path.write_bytes(data)
        assert reason(path) == expected
        with pytest.raises(BadClip, match=expected):
            probe(path)
    noise = bytearray(whole)
    start = whole.index(b"mdat") + 4
    noise[start:] = random.Random(5).randbytes(len(whole) - start)
    (tmp_path / "noise.mp4").write_bytes(noise)
    assert reason(tmp_path / "noise.mp4") == "decode-error"
    (tmp_path / "random.mp4").write_bytes(random.Random(7).randbytes(4099))
    assert reason(tmp_path / "random.mp4") == "not-video"


def test_sound_only(tmp_path):
    """Cases: V07."""
    with av.open(str(tmp_path / "sound.mp4"), "w") as out:
        stream = out.add_stream("aac", rate=48000)
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        sound.sample_rate = 48000
        out.mux(stream.encode(sound))
        out.mux(stream.encode(None))
    assert reason(tmp_path / "sound.mp4") == "no-video-stream"


def test_one_frame_is_a_clip_of_one(tmp_path):
    path = make(tmp_path / "one.mp4", [0])
    assert shown(read_frames(path, [0.0]).frames) == [0]
    assert reason(path, timing.frame_times(5, 8)) == "too-short"


def test_truncation_leaves_the_prefix_usable(tmp_path, steady):
    """Cases: V04."""
    whole = steady.read_bytes()
    start = whole.index(b"mdat") + 4
    usable = []
    for part in (0.6, 0.75, 0.9):
        path = tmp_path / f"{part}.mp4"
        path.write_bytes(whole[: start + int(part * (len(whole) - start))])
        assert reason(path, [1.12]) == "truncated"
        last = probe(path).last_seconds
        assert shown(read_frames(path, [0.0, last]).frames) == [0, round(last * 25)]
        usable.append(last)
    assert 0 < usable[0] < usable[1] < usable[2] < 1.12


def test_flipped_bits_never_escape(tmp_path, steady):
    """Cases: V05, V06."""
    whole, draw, damaged = steady.read_bytes(), random.Random(11), 0
    path = tmp_path / "flipped.mp4"
    for _ in range(60):
        data = bytearray(whole)
        for _ in range(draw.choice([1, 13, 101])):
            data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
        path.write_bytes(data)
        try:
            found = read_frames(path, timing.frame_times(13, 25), deadline=5.0, max_pixels=2**24)
            assert found.frames.shape[0] == 13
            probe(path, deadline=5.0)
        except BadClip:
            damaged += 1
    assert damaged > 20


def test_size_is_checked_before_decoding(tmp_path, steady, monkeypatch):
    """Cases: V12."""
    canvas = b"GIF89a" + struct.pack("<HHBBB", 9001, 9001, 0, 0, 0)
    image = b"," + struct.pack("<HHHHB", 0, 0, 1, 1, 0) + b"\x02\x02\x4c\x01\x00;"
    (tmp_path / "bomb.gif").write_bytes(canvas + image)
    monkeypatch.setattr(demux.Source, "frames", lambda self: pytest.fail("it was decoded"))
    assert reason(tmp_path / "bomb.gif") == "too-large"
    assert reason(steady, timing.frame_times(5, 25), max_pixels=5 * H * W - 1) == "too-large"


def test_paths_that_are_no_files_do_not_block(tmp_path):
    """Cases: V22."""
    os.mkfifo(tmp_path / "pipe.mp4")
    (tmp_path / "folder.mp4").mkdir()
    assert reason(tmp_path / "pipe.mp4") == "not-a-file"
    assert reason(tmp_path / "folder.mp4") == "not-a-file"
    assert reason(Path("/dev/zero")) == "not-a-file"
    assert reason(tmp_path / "gone.mp4") == "missing"
    assert reason(tmp_path / "pipe.mp4" / "x.mp4") == "missing"
    assert reason(tmp_path / ("x" * 300 + ".mp4")) == "unreadable"


def test_permission(steady, tmp_path):
    """Cases: V23."""
    path = tmp_path / "locked.mp4"
    path.write_bytes(steady.read_bytes())
    path.chmod(0)
    root = os.geteuid() == 0
    try:
        if root:
            os.seteuid(65534)
        assert reason(path) == "permission"
    finally:
        if root:
            os.seteuid(0)


def test_odd_names(steady, tmp_path, monkeypatch):
    """Cases: V21."""
    monkeypatch.chdir(tmp_path)
    names = ["-i.mp4", "a\nb.mp4", ";rm -rf x.mp4", "日本 é.mp4", "concat:a|b.mp4", "%03d.mp4"]
    for name in [*names, os.fsdecode(b"\xff\xfe.mp4"), "http:x.mp4", "no_extension"]:
        Path(name).write_bytes(steady.read_bytes())
        assert shown(read_frames(name, [0.0]).frames) == [0]


@pytest.mark.parametrize(
    "script", ["ffconcat version 1.0\nfile '{}'\n", "#EXTM3U\n#EXTINF:1,\n{}\n"]
)
def test_scripts_that_name_other_files_are_no_videos(steady, tmp_path, script):
    path = tmp_path / "script.mp4"
    path.write_text(script.format(steady))
    assert reason(path) == "not-video"


def test_wrong_arguments(steady):
    for times in ([], [-0.1], [0.2, 0.1], [float("nan")], [[0.0]]):
        with pytest.raises(UsageError, match="times are"):
            read_frames(steady, times)


def test_deadline_between_packets(steady):
    assert reason(steady, deadline=0.0) == "timeout"


def test_bad_clip_travels_between_processes():
    bad = pickle.loads(pickle.dumps(BadClip("x.mp4", "empty", "0 bytes")))
    assert (bad.path, bad.reason, str(bad)) == ("x.mp4", "empty", "x.mp4: empty: 0 bytes")


# Name -> (height, width) of a readable first frame, or the reason; and of five at 8 a second.
EDGE = {
    "ax_mkv__full_blocks.mkv": ("no-video-stream", "no-video-stream"),
    "ax_mkv__subsample_encrypted_altref.webm": ("decode-error", "decode-error"),
    "ax_mp4__hdr10-av1.mp4": ((1280, 720), "ok"),
    "ax_mp4__sample_rotate_and_reflect.mp4": ((1080, 720), "ok"),
    "ax_mp4__sample_vvc.mp4": ((180, 320), "ok"),
    "ax_mp4__sample_with_fake_auxiliary_tracks.mp4": ((12, 10), "too-short"),
    "ax_mp4__long_1080p_lowbitrate.mp4": ((1080, 1920), "ok"),
    "ax_mp4__sample_fragmented.mp4": ((720, 1080), "ok"),
    "ax_mp4__iibbibb_editlist_videoonly.mp4": ((576, 704), "ok"),
    "ax_avi__sample-with-large-length.avi": ((144, 256), "ok"),
    "ax_flv__sample-with-key-frame-index.flv": ((180, 320), "ok"),
    "ax_ts__sample_with_sdt.ts": ("unreadable", "unreadable"),
    "ax_ts__sample_h264.ts": ((480, 854), "ok"),
    "ax_vp9__bear-vp9-odd-dimensions.webm": ((121, 161), "ok"),
    "ax_vp9__invalid-bitstream.webm": ("decode-error", "decode-error"),
    "decord_video_90.mov": ((568, 320), "too-short"),
    "mp4parse_mp4parse__tests__amr_nb_1f.3gp": ("no-video-stream", "no-video-stream"),
    "mp4parse_mp4parse__tests__bipbop_cbcs_video_init.mp4": ("too-short", "too-short"),
    "mp4parse_mp4parse__tests__tiny_av1.mp4": ((64, 64), "too-short"),
    "mp4parse_mp4parse_capi__tests__chunk_out_of_range.mp4": ("unreadable", "unreadable"),
    "mp4parse_mp4parse_capi__tests__video_colr_nclx_hdr10.mp4": ((2, 2), "too-short"),
    "oh264_CiscoVT2people_320x192_12fps.yuv": ("not-video", "not-video"),
    "oh264_Error_I_P.264": ("decode-error", "decode-error"),
    "oh264_SarVui.264": ((144, 427), "ok"),
    "tc_discard_first_keyframe.mp4": ((64, 64), "ok"),
    "tc_nasa_13013_rotated.mp4": ((480, 270), "ok"),
    "tc_testsrc2_444_12bit_hevc.mp4": ((241, 321), "ok"),
    "tc_transparent.gif": ((48, 64), "too-short"),
}


def test_odd_and_broken_media(shared_data):
    def outcome(path: Path, count: int) -> object:
        try:
            frames = read_frames(path, timing.frame_times(count, 8)).frames
        except BadClip as bad:
            return bad.reason
        return "ok" if count > 1 else frames.shape[1:3]

    found = {n: tuple(outcome(shared_data / "media_edge" / n, k) for k in (1, 5)) for n in EDGE}
    assert found == EDGE


def test_damage_after_the_window_does_not_matter(shared_data):
    path = shared_data / "media_edge" / "decord_corrupted.mp4"
    assert len(read_frames(path, timing.frame_times(5, 8)).frames) == 5
    assert reason(path, timing.frame_times(5, 8, start=4.0)) == "decode-error"


# ---- the reader that can be killed --------------------------------------------------------------


def test_killable_reader_survives_hangs_and_crashes(steady, tmp_path):
    """Cases: V10, V11."""
    with ReaderProcess(deadline=1.0) as reader:
        expected = read_frames(steady, [0.0, 0.5])
        found = reader.read(steady, [0.0, 0.5])
        assert np.array_equal(found.frames, expected.frames)
        assert np.array_equal(found.seconds, expected.seconds)
        assert reader.probe(steady) == probe(steady)

        (tmp_path / "text.mp4").write_text("no video")
        with pytest.raises(BadClip, match="not-video"):  # the worker lives on
            reader.read(tmp_path / "text.mp4", [0.0])
        with pytest.raises(UsageError, match="times are"):
            reader.read(steady, [])
        assert reader.restarts == 0

        os.kill(reader._worker.pid, signal.SIGSTOP)  # hangs as hard as a decoder can
        began = time.monotonic()
        with pytest.raises(BadClip, match="timeout"):
            reader.read(steady, [0.0])
        assert time.monotonic() - began < 10 and reader.restarts == 1
        assert shown(reader.read(steady, [0.04]).frames) == [1]

        os.kill(reader._worker.pid, signal.SIGSTOP)
        pid = reader._worker.pid
        for late, number in ((0.2, signal.SIGSEGV), (0.25, signal.SIGCONT)):
            threading.Timer(late, os.kill, (pid, number)).start()
        with pytest.raises(BadClip, match="decoder-crash"):
            reader.read(steady, [0.0])
        assert shown(reader.read(steady, [0.08]).frames) == [2]

        os.kill(reader._worker.pid, signal.SIGKILL)  # between two clips: no clip's fault
        reader._worker.wait()
        assert shown(reader.read(steady, [0.12]).frames) == [3] and reader.restarts == 3
        worker = reader._worker
    assert worker.poll() is not None


def test_r03_a_worker_killed_from_outside_costs_no_clip(steady):
    with ReaderProcess() as reader:
        reader.probe(steady)
        worker = reader._worker
        worker.terminate()  # as DeepSpeed's launcher does, to every process below it
        assert shown(reader.read(steady, [0.12]).frames) == [3] and reader.restarts == 0
        killer = threading.Timer(0.3, lambda: os.kill(worker.pid, signal.SIGKILL))
        os.kill(worker.pid, signal.SIGSTOP)
        killer.start()
        assert shown(reader.read(steady, [0.08]).frames) == [2] and reader.restarts == 1


def test_a_reader_in_a_reference_cycle_is_collected_without_complaint(steady, monkeypatch):
    complaints = []
    monkeypatch.setattr(sys, "unraisablehook", complaints.append)
    first = ReaderProcess()
    first.probe(steady)
    worker, late = first._worker, ReaderProcess()
    late.__dict__.update(first.__dict__, cycle=late)  # after its link, as finalizers go by age
    first._worker = first._link = None
    del first, late
    gc.collect()
    assert not complaints and worker.poll() is not None


def test_the_worker_starts_without_torch():
    code = "import sys, vidcm.media.worker; print('torch' in sys.modules, 'scenedetect' in sys.modules)"
    env = {**os.environ, "PYTHONPATH": str(Path(read.__file__).parents[2])}
    command = [sys.executable, "-c", code]
    assert subprocess.check_output(command, env=env, text=True).split() == ["False", "False"]


def test_killable_reader_in_loader_workers_and_scripts(steady, tmp_path):
    script = tmp_path / "script.py"  # no main guard, forked and spawned data workers
    script.write_text(
        "import sys, torch\n"
        "from vidcm.media.worker import ReaderProcess\n"
        "class Clips(torch.utils.data.Dataset):\n"
        "    reader = ReaderProcess()\n"
        "    def __len__(self): return 4\n"
        "    def __getitem__(self, i):\n"
        f"        return self.reader.read({str(steady)!r}, [0.04 * i]).frames[0, 0, 0, 0]\n"
        "data = Clips()\n"
        "first = data[0]\n"  # starts a worker that the forked loaders must leave alone
        "loaded = torch.utils.data.DataLoader(data, num_workers=2, batch_size=2)\n"
        "print([int(x) for batch in loaded for x in batch], int(data[0]) == int(first))\n"
    )
    env = {**os.environ, "PYTHONPATH": str(Path(read.__file__).parents[2])}
    done = subprocess.run(
        [sys.executable, script], env=env, capture_output=True, text=True, timeout=120
    )
    expected = [int(read_frames(steady, [0.04 * i]).frames[0, 0, 0, 0]) for i in range(4)]
    assert done.stdout.strip() == f"{expected} True", done.stderr


# ---- which frames make a clip -------------------------------------------------------------------


def test_num_frames_is_4k_plus_1():
    """Cases: V18, A04."""
    assert [n for n in range(-5, 20) if _valid(n)] == [1, 5, 9, 13, 17]
    for number, near in ((80, "use 77 or 81"), (4, "use 1 or 5"), (0, "use 1"), (-7, "use 1")):
        with pytest.raises(UsageError, match=f"{near}$"):
            check_frames(number)
    for fps in (0, -1, float("nan"), float("inf")):
        with pytest.raises(UsageError, match="fps is"):
            timing.frame_times(5, fps)


def _valid(number: int) -> bool:
    try:
        return check_frames(number) == number
    except UsageError:
        return False


def test_random_starts_fit_and_repeat():
    rngs = [torch.Generator().manual_seed(5) for _ in range(2)]
    draws = [[timing.random_start(7.0, 17, 8, rng) for _ in range(99)] for rng in rngs]
    assert draws[0] == draws[1] and min(draws[0]) < 0.2 and 4.8 < max(draws[0]) <= 5.0
    assert timing.random_start(1.0, 17, 8, rngs[0]) == 0.0


def test_nearest():
    stamps = np.array([0.0, 0.1, 0.4, 0.5])
    assert timing.nearest(stamps, np.array([0.0, 0.05, 0.06, 0.26, 0.55])).tolist() == [
        0,
        0,
        1,
        2,
        3,
    ]
    with pytest.raises(ValueError, match="last frame is at 0.500"):
        timing.nearest(stamps, np.array([0.61]))
    assert timing.nearest(stamps, np.array([1.2]), 0.7).tolist() == [3]
