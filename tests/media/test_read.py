"""Reading videos: exact against frame oracles, by timestamp, and in one word for bad files."""

import gc
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

from vidcm.errors import UsageError
from vidcm.media import demux, read, timing
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
) -> Path:
    """A real file whose frame k is a grey of value 12 + 8k (mod 240), shown at ticks[k]."""
    with av.open(str(path), "w", options=options or {}) as out:
        stream = out.add_stream(codec, rate=25, options={"g": "5"})
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
def test_frames_equal_the_oracle_to_the_bit(shared_data, monkeypatch, seek_seconds):
    monkeypatch.setattr(read, "SEEK_SECONDS", seek_seconds)
    name = "nasa_13013.mp4.stream0"
    stamps = json.loads((shared_data / "expected" / f"{name}.all_frames_info.json").read_text())
    for index in (0, 1, 2, 9, 15, 20, 35):
        wanted = float(stamps[index]["pts_time"])
        found = read_frames(shared_data / "clips/torchcodec_nasa_13013.mp4", [wanted])
        oracle = torch.load(shared_data / "expected" / f"{name}.frame{index:06}.pt")
        assert found.seconds == pytest.approx([wanted])
        assert np.array_equal(found.frames[0], oracle.numpy())


def test_seeking_changes_nothing(shared_data, monkeypatch):
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
    tick = Fraction(1, 25)
    path = make(tmp_path / name, list(range(13)), codec=codec, pixels=pixels, size=size, tick=tick)
    found = read_frames(path, timing.frame_times(5, 12.5, start=0.04))
    assert found.frames.shape == (5, *size, 3) and found.frames.dtype == np.uint8
    assert found.seconds == pytest.approx([0.04, 0.12, 0.2, 0.28, 0.36])
    if pixels not in ("rgb8", "gray"):  # few colours; another range of values
        assert shown(found.frames) == [1, 3, 5, 7, 9]
    info = probe(path)
    assert info[:2] == size and info.last_seconds == pytest.approx(0.48)


def test_variable_rate_goes_by_timestamps(tmp_path):
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


def test_last_frame_reaches_half_an_interval(steady):
    assert shown(read_frames(steady, [1.139]).frames) == [28]
    assert reason(steady, [1.141]) == "too-short"
    assert reason(steady, timing.frame_times(33, 25)) == "too-short"


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


# ---- bad files ----------------------------------------------------------------------------------


def test_bad_files_have_a_reason(tmp_path, steady):
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
    canvas = b"GIF89a" + struct.pack("<HHBBB", 9001, 9001, 0, 0, 0)
    image = b"," + struct.pack("<HHHHB", 0, 0, 1, 1, 0) + b"\x02\x02\x4c\x01\x00;"
    (tmp_path / "bomb.gif").write_bytes(canvas + image)
    monkeypatch.setattr(demux.Source, "frames", lambda self: pytest.fail("it was decoded"))
    assert reason(tmp_path / "bomb.gif") == "too-large"
    assert reason(steady, timing.frame_times(5, 25), max_pixels=5 * H * W - 1) == "too-large"


def test_paths_that_are_no_files_do_not_block(tmp_path):
    os.mkfifo(tmp_path / "pipe.mp4")
    (tmp_path / "folder.mp4").mkdir()
    assert reason(tmp_path / "pipe.mp4") == "not-a-file"
    assert reason(tmp_path / "folder.mp4") == "not-a-file"
    assert reason(Path("/dev/zero")) == "not-a-file"
    assert reason(tmp_path / "gone.mp4") == "missing"
    assert reason(tmp_path / "pipe.mp4" / "x.mp4") == "missing"
    assert reason(tmp_path / ("x" * 300 + ".mp4")) == "unreadable"


def test_permission(steady, tmp_path):
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
    with pytest.raises(UsageError, match="'av' or 'decord'"):
        read_frames(steady, [0.0], backend="opencv")


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
    "oh264_SarVui.264": ((144, 176), "ok"),
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


# ---- decord -------------------------------------------------------------------------------------


def test_decord_gives_the_same_frames_and_leaves_the_rest(steady, tmp_path, caplog, monkeypatch):
    pytest.importorskip("decord", reason="the optional package decord is not installed")
    monkeypatch.setattr(read, "_seen_fallback", False)
    times = timing.frame_times(5, 12.5, start=0.03)
    one, other = (read_frames(steady, times, backend=backend) for backend in ("av", "decord"))
    assert (one.backend, other.backend) == ("av", "decord")
    assert shown(one.frames) == shown(other.frames)
    assert one.seconds == pytest.approx(other.seconds, abs=1e-6)
    gif = make(tmp_path / "a.gif", [10 * k for k in range(9)], codec="gif", pixels="rgb8")
    turn = turned(steady, tmp_path / "turned.mp4", (0, 1, -1, 0))
    for path in (gif, turn, gif):
        left = read_frames(path, [0.0], backend="decord")
        assert left.backend == "av" and np.array_equal(left.frames, read_frames(path, [0.0]).frames)
    assert len([r for r in caplog.records if "using PyAV" in r.message]) == 1
    assert reason(steady, [9.0], backend="decord") == "too-short"
    with ReaderProcess(backend="decord") as reader:
        assert [reader.read(p, [0.0]).backend for p in (steady, gif, turn)] == [
            "decord",
            "av",
            "av",
        ]
        assert reader.fallbacks == 2


def test_decord_not_installed(steady, monkeypatch):
    monkeypatch.setitem(sys.modules, "decord", None)
    with pytest.raises(UsageError, match="pip install"):
        read_frames(steady, [0.0], backend="decord")


# ---- the reader that can be killed --------------------------------------------------------------


def test_killable_reader_survives_hangs_and_crashes(steady, tmp_path):
    with ReaderProcess(deadline=1.0) as reader:
        expected = read_frames(steady, [0.0, 0.5])
        found = reader.read(steady, [0.0, 0.5])
        assert np.array_equal(found.frames, expected.frames) and found.backend == "av"
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
        threading.Timer(0.2, os.kill, (reader._worker.pid, signal.SIGKILL)).start()
        with pytest.raises(BadClip, match="decoder-crash"):
            reader.read(steady, [0.0])
        assert shown(reader.read(steady, [0.08]).frames) == [2]

        os.kill(reader._worker.pid, signal.SIGKILL)  # between two clips: no clip's fault
        reader._worker.wait()
        assert shown(reader.read(steady, [0.12]).frames) == [3] and reader.restarts == 3
        worker = reader._worker
    assert worker.poll() is not None


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
    code = "import sys, vidcm.media.worker; print('torch' in sys.modules, 'decord' in sys.modules)"
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
        timing.nearest(stamps, np.array([0.56]))
