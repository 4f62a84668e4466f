"""Clips survive their files: every format is decoded again, every refusal leaves the disk alone."""

import os
import signal
import struct
import subprocess
import sys
import time
import zlib
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from vidcm.errors import UsageError, VidcmError
from vidcm.media import contact_sheet as contact
from vidcm.media import encoders, write
from vidcm.media.clips import Clips
from vidcm.media.media_file import BadClip
from vidcm.media.pictures import decode_picture, read_picture
from vidcm.media.pixels import to_frames, to_video
from vidcm.media.write import check_form, check_output, write_clip

T, H, W = 11, 37, 53
ROOT = Path(__file__).parents[2]


def noise(t: int = T, h: int = H, w: int = W, c: int = 3) -> np.ndarray:
    return np.random.default_rng(t).integers(0, 256, (t, h, w, c), dtype=np.uint8)


def smooth(t: int = T, h: int = H, w: int = W) -> np.ndarray:
    f, y, x = np.mgrid[:t, :h, :w]
    waves = [np.sin(x / 17 + f / 3), np.cos(y / 13 + f / 5), np.sin((x + y) / 23 - f / 7)]
    return (127.5 + 120 * np.stack(waves, -1)).round().astype(np.uint8)


def decode(path: Path) -> tuple[np.ndarray, list[float], Fraction]:
    """Frames (t h w 3), their times in seconds, the rate the container states."""
    with av.open(str(path)) as source:
        stream = source.streams.video[0]
        rate = stream.average_rate
        assert rate is not None
        decoded = list(source.decode(stream))
    times = [frame.time for frame in decoded]
    assert None not in times
    return np.stack([frame.to_ndarray(format="rgb24") for frame in decoded]), times, rate


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    return 10 * np.log10(255**2 / np.mean((a.astype(float) - b.astype(float)) ** 2))


def unpack_png(path: Path) -> np.ndarray:
    """A png reader by the standard alone (8 bit RGB or RGBA), independent of ffmpeg."""
    data = path.read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    at, chunks = 8, {}
    while at < len(data):
        size, kind = int.from_bytes(data[at : at + 4]), data[at + 4 : at + 8]
        body, crc = data[at + 8 : at + 8 + size], data[at + 8 + size : at + 12 + size]
        assert zlib.crc32(kind + body) == int.from_bytes(crc)
        chunks[kind] = chunks.get(kind, b"") + body
        at += 12 + size
    w, h, depth, colour = struct.unpack(">IIBB", chunks[b"IHDR"][:10])
    assert depth == 8
    c = {2: 3, 6: 4}[colour]
    rows = np.frombuffer(zlib.decompress(chunks[b"IDAT"]), np.uint8).reshape(h, 1 + w * c)
    image = np.zeros((h + 1, (w + 1) * c), int)  # one row above and one pixel left, both zero
    for y, (kind, *row) in enumerate(rows.tolist(), 1):
        for x, value in enumerate(row, c):
            left, up, corner = image[y, x - c], image[y - 1, x], image[y - 1, x - c]
            nearest = min((left, up, corner), key=lambda n, p=left + up - corner: abs(p - n))
            guess = [0, left, up, (left + up) // 2, nearest][kind]
            image[y, x] = (value + guess) % 256
    return image[1:, c:].reshape(h, w, c).astype(np.uint8)


def gif_blocks(path: Path) -> tuple[list[int], int | None]:
    """Delays in 1/100 s and the loop count (0 = for ever), read from the bytes of a gif."""
    data = path.read_bytes()
    at, delays, loops = 13 + 3 * 2 ** ((data[10] & 7) + 1) * (data[10] >> 7), [], None

    def skip(at: int) -> int:
        while data[at]:
            at += 1 + data[at]
        return at + 1

    while data[at] != 0x3B:
        if data[at] == 0x21:
            if data[at + 1] == 0xF9:
                delays.append(struct.unpack("<H", data[at + 4 : at + 6])[0])
            elif data[at + 3 : at + 14] == b"NETSCAPE2.0":
                loops = struct.unpack("<H", data[at + 16 : at + 18])[0]
            at = skip(at + 2)
        else:
            packed = data[at + 9]
            at = skip(at + 10 + 3 * 2 ** ((packed & 7) + 1) * (packed >> 7) + 1)
    return delays, loops


# -- tensors --------------------------------------------------------------------------------------


def test_every_byte_survives_the_trip_to_floats() -> None:
    frames = torch.arange(256, dtype=torch.uint8).reshape(1, 2, 4, 32, 1)
    video = to_video(frames)
    assert (video.min(), video.max()) == (-1, 1) and video.dtype == torch.float32
    assert torch.equal(to_frames(video), frames)


def test_axes_go_where_the_layout_says() -> None:
    frames = torch.randint(0, 256, (2, 5, 7, 11, 3), dtype=torch.uint8)
    video = to_video(frames)
    assert video.shape == (2, 3, 5, 7, 11) and video.is_contiguous()
    assert video[1, 2, 4, 6, 10] == frames[1, 4, 6, 10, 2] / 127.5 - 1
    assert torch.equal(to_frames(video), frames)


def test_to_frames_clamps_and_rounds_half_to_even() -> None:
    levels = torch.tensor([-9.0, 0.5 / 127.5 - 1, 0.0, 9.0], dtype=torch.float64)
    assert to_frames(levels.reshape(1, 1, 1, 1, 4)).flatten().tolist() == [0, 0, 128, 255]


def test_to_frames_refuses_what_is_not_a_number() -> None:
    video = torch.zeros(1, 3, 2, 5, 7)
    video[0, 0, 0, 0, :2] = torch.tensor([float("nan"), float("inf")])
    with pytest.raises(VidcmError, match="2 of 210 video values are not finite"):
        to_frames(video)


def test_wrong_tensors_are_named() -> None:
    with pytest.raises(ValueError, match=r"torch.float32 \(2, 3\), expected uint8"):
        to_video(torch.zeros(2, 3))
    with pytest.raises(ValueError, match="torch.uint8"):
        to_frames(torch.zeros(1, 3, 2, 5, 7, dtype=torch.uint8))


# -- lossy formats --------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".mp4", ".webm"])
@pytest.mark.parametrize("fps", [8.0, 23.976, 12.5])
def test_movies_keep_count_rate_and_look(tmp_path: Path, suffix: str, fps: float) -> None:
    clip = smooth()
    path = write_clip(clip, tmp_path / f"new/folder/clip{suffix.upper()}", fps=fps)
    back, times, rate = decode(path)
    assert back.shape == (T, H + 1, W + 1, 3)
    assert rate == Fraction(str(fps))
    np.testing.assert_allclose(times, np.arange(T) / fps, atol=1.1e-3)
    assert psnr(back[:, :H, :W], clip) > 35
    assert np.abs(back[:, H].astype(int) - back[:, H - 1]).mean() < 4  # the edge, repeated
    assert sorted(os.listdir(path.parent)) == [path.name]


@pytest.mark.parametrize("suffix", [".mp4", ".webm"])
def test_movies_state_the_colours_they_hold(tmp_path: Path, suffix: str) -> None:
    colours = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255], [200, 30, 90]], np.uint8)
    clip = np.ones((4, 16, 16, 1), np.uint8) * colours[:, None, None]
    path = write_clip(clip, tmp_path / f"flat{suffix}")
    with av.open(str(path)) as source:
        decoded = list(source.decode(video=0))
    for frame, rgb in zip(decoded, colours, strict=True):
        assert (frame.colorspace, frame.color_range, frame.color_primaries) == (1, 1, 1)
        luma = frame.to_ndarray()[:16].mean()
        assert abs(luma - (16 + 219 / 255 * rgb @ [0.2126, 0.7152, 0.0722])) < 2  # BT.709
        assert np.abs(frame.to_ndarray(format="rgb24").astype(int) - rgb).max() < 9


def test_mp4_starts_with_its_index_and_is_plain_420(tmp_path: Path) -> None:
    path = write_clip(smooth(), tmp_path / "clip.mp4")
    data = path.read_bytes()
    assert 0 < data.index(b"moov") < data.index(b"mdat")
    with av.open(str(path)) as source:
        context = source.streams.video[0].codec_context
        assert (context.name, context.pix_fmt) == ("h264", "yuv420p")


@pytest.mark.parametrize("suffix", [".mp4", ".webm", ".gif"])
def test_a_single_tiny_frame_is_a_clip_with_a_duration(tmp_path: Path, suffix: str) -> None:
    path = write_clip(smooth(1, 1, 1), tmp_path / f"dot{suffix}")
    assert len(decode(path)[0]) == 1
    with av.open(str(path)) as source:
        assert source.duration == pytest.approx(av.time_base / 8, rel=0.05)


def test_scaled_pixel_art_keeps_its_colours_in_420(tmp_path: Path) -> None:
    art = noise(3, 13, 17) // 64 * 64
    back, _, _ = decode(write_clip(art, tmp_path / "art.mp4", scale=8))
    centres = back[:, 4::8, 4::8][:, :13, :17]
    assert np.abs(centres.astype(int) - art).mean() < 4


# -- gif ------------------------------------------------------------------------------------------


def test_gif_of_few_colours_is_exact_and_loops(tmp_path: Path) -> None:
    few = np.random.default_rng(0).integers(0, 256, (256, 3), dtype=np.uint8)
    art = few[np.random.default_rng(1).integers(0, 256, (T, H, W))]
    art[-3:] = art[-1]  # a pose that is held must not be dropped
    path = write_clip(art, tmp_path / "art.gif", fps=8, scale=3)
    back, _, _ = decode(path)
    assert np.array_equal(back, art.repeat(3, 1).repeat(3, 2))
    delays, loops = gif_blocks(path)
    assert loops == 0 and len(delays) == T
    np.testing.assert_allclose(np.cumsum(delays), 12.5 * np.arange(1, T + 1), atol=1)


def test_gif_of_many_colours_is_dithered_well(tmp_path: Path) -> None:
    _, y, x = np.mgrid[:7, :64, :68]
    clip = np.stack([x * 255 // 68, y * 255 // 64, 90 + 0 * x], -1).astype(np.uint8)
    path = write_clip(clip, tmp_path / "clip.gif", fps=50)
    back, _, _ = decode(path)
    assert back.shape == clip.shape and psnr(back, clip) > 30

    def seen_from_afar(frames: np.ndarray) -> np.ndarray:
        return frames.reshape(7, 16, 4, 17, 4, 3).mean((2, 4))

    assert psnr(seen_from_afar(back), seen_from_afar(clip)) > 35
    assert gif_blocks(path) == ([2] * 7, 0)


# -- png ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [3, 4])
def test_frames_folder_is_exact(tmp_path: Path, channels: int) -> None:
    clip = noise(c=channels)
    folder = write_clip(clip, f"{tmp_path}/walk.v1/", scale=2)
    names = [f"frame_{index:04d}.png" for index in range(T)]
    assert folder == tmp_path / "walk.v1" and sorted(os.listdir(folder)) == names
    for name, frame in zip(names, clip, strict=True):
        found = decode_picture((folder / name).read_bytes())
        assert np.array_equal(found, frame.repeat(2, 0).repeat(2, 1))
    assert np.array_equal(unpack_png(folder / names[5])[::2, ::2], clip[5])


def test_sheet_reads_like_a_page(tmp_path: Path) -> None:
    clip = noise(7)
    row = read_picture(write_clip(clip, tmp_path / "row.png"))
    assert np.array_equal(row, np.concatenate(list(clip), 1))
    page = read_picture(write_clip(clip, tmp_path / "page.png", columns=3, scale=2))[::2, ::2]
    assert page.shape == (3 * H, 3 * W, 3)
    assert np.array_equal(page[H : 2 * H, 2 * W :], clip[5])
    assert np.array_equal(page[2 * H :, :W], clip[6]) and not page[2 * H :, W:].any()


@pytest.mark.parametrize(
    ("colour", "extra", "row", "expected"),
    [
        (0, {}, bytes([0, 3, 128, 255]), [[0] * 3, [3] * 3, [128] * 3, [255] * 3]),
        (3, {b"PLTE": bytes([9, 8, 7, 1, 2, 3])}, b"\0\1\1\0", [[9, 8, 7, 255], [1, 2, 3, 255]]),
        (6, {}, bytes(range(16)), [[0, 1, 2, 3], [4, 5, 6, 7]]),
        (2, {b"tRNS": bytes([0, 3, 0, 4, 0, 5])}, bytes(range(12)), [[0, 1, 2, 255], [3, 4, 5, 0]]),
        (0, {"depth": 16}, bytes([0, 9, 3, 9, 128, 9, 255, 9]), [[0] * 3, [3] * 3, [128] * 3]),
    ],
    ids=["grey", "palette", "alpha", "colour key", "grey 16"],
)
def test_decode_picture_takes_what_others_wrote(
    tmp_path: Path, colour: int, extra: dict, row: bytes, expected: list
) -> None:
    depth = extra.pop("depth", 8)
    chunks = {b"IHDR": struct.pack(">IIBBBBB", 4, 1, depth, colour, 0, 0, 0), **extra}
    chunks |= {b"IDAT": zlib.compress(b"\0" + row), b"IEND": b""}
    path = tmp_path / "a%03d:b.png"
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + b"".join(
            struct.pack(">I", len(v)) + k + v + struct.pack(">I", zlib.crc32(k + v))
            for k, v in chunks.items()
        )
    )
    assert decode_picture(path.read_bytes())[0, : len(expected)].tolist() == expected


def test_read_picture_says_what_it_cannot_read(tmp_path: Path) -> None:
    with pytest.raises(BadClip, match="missing"):
        read_picture(tmp_path / "none.png")
    whole = write_clip(noise(1), tmp_path / "whole.png").read_bytes()
    for content in (b"<html>", b"\x89PNG\r\n\x1a\n\0\0", whole[:999], whole[:99]):
        (tmp_path / "bad.png").write_bytes(content)
        with pytest.raises(BadClip, match="bad.png: unreadable: not read as a picture: "):
            read_picture(tmp_path / "bad.png")


def test_contact_sheet_shows_every_frame_and_label(tmp_path: Path) -> None:
    a, b, c = noise(3, 13, 17), noise(2, 11, 5), noise(5, 7, 19)
    plain = read_picture(
        contact.contact_sheet([[a, b], [c]], None, tmp_path / "plain.png", scale=1)
    )
    gap, grey = contact.GUTTER, contact.BACKGROUND
    assert plain.shape == (13 + gap + 7, 5 * 19, 3)
    assert np.array_equal(plain[:13, 34:51], a[2])
    assert np.array_equal(plain[:11, 51 + gap : 56 + gap], b[0])
    assert np.array_equal(plain[13 + gap :], np.concatenate(list(c), 1))
    assert (plain[:, 51 : 51 + gap][:13] == grey).all()
    named = read_picture(
        contact.contact_sheet([[a, b], [c]], ["walks left", ""], tmp_path / "named.png")
    )
    top = len(named) - 2 * len(plain)
    assert top % 2 == 0 and 16 <= top <= 40 and named.shape[1] == 2 * 95
    assert np.array_equal(named[top::2, ::2], plain)
    assert named[:top].max() > 200 and (named[:top, 2 * 60 :] == grey).all()
    long = read_picture(contact.contact_sheet([[c]], ["word " * 9], tmp_path / "long.png", scale=1))
    assert long.shape == (3 * top // 2 + 7, 95, 3)


def test_contact_sheet_refuses_rows_that_do_not_match(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="1 labels"):
        contact.contact_sheet([[noise()], [noise()]], ["one"], tmp_path / "s.png")
    with pytest.raises(ValueError, match=r"rows of \[0\] clips"):
        contact.contact_sheet([[]], None, tmp_path / "s.png")
    with pytest.raises(UsageError, match="ends in .png"):
        contact.contact_sheet([[noise()]], None, tmp_path / "s.mp4")
    assert not os.listdir(tmp_path)


# -- refusals -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a.avi", "a.xyz", "a.mp4.gz", "run.v2", "a.jpeg"])
def test_unknown_extensions_list_the_known(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match=r"\.mp4, \.webm, \.gif, \.png, or a trailing /"):
        write_clip(noise(), tmp_path / name)
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize(
    "path", ["", ".", "..", "/", "./", "a/..", ".mp4", "x/.PNG", "~", "a\0.png"]
)
def test_names_that_name_nothing_are_refused(path: str) -> None:
    with pytest.raises(UsageError, match="expected the name of a file or folder"):
        check_output(path, overwrite=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fps": 0}, "fps is 0; use 0.01 to 50 in .gif"),
        ({"fps": 51}, "fps is 51"),
        ({"fps": float("nan")}, "fps is nan"),
        ({"fps": -8.0}, "fps is -8"),
        ({"fps": "8"}, "fps is '8'; expected a number"),
        ({"scale": 0}, "scale is 0; use 1 to"),
        ({"scale": 1.5}, "scale is 1.5; expected a whole number"),
        ({"scale": True}, "scale is True"),
        ({"scale": 999}, "at most 16384 pixels a side in .gif"),
        ({"columns": 2}, "only a .png sheet has columns"),
    ],
)
def test_options_out_of_range_are_refused(tmp_path: Path, options: dict, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        write_clip(noise(), tmp_path / "a.gif", **options)
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize(
    "clip",
    [noise()[0], noise().astype(np.float32), noise()[:0], noise(c=1), noise(c=4)],
    ids=["image", "float", "empty", "grey", "alpha"],
)
def test_arrays_that_are_no_clips_are_refused(tmp_path: Path, clip: np.ndarray) -> None:
    with pytest.raises(ValueError, match="expected"):
        write_clip(clip, tmp_path / "a.mp4")
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize("name", ["a.mp4", "a.webm", "a.gif", "a.png", "folder/"])
def test_output_that_exists_is_kept_unless_told(tmp_path: Path, name: str) -> None:
    path = f"{tmp_path}/{name}"
    write_clip(smooth(5), path)
    before = {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}
    for attempt in (lambda: write_clip(noise(3), path), lambda: check_output(path)):
        with pytest.raises(UsageError, match="exists; give another name, or overwrite"):
            attempt()
    assert {file: file.read_bytes() for file in before} == before
    check_output(path, overwrite=True)
    write_clip(noise(3), path, overwrite=True)
    after = {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}
    assert after != before and len(after) == (3 if name == "folder/" else 1)


def test_overwrite_never_takes_what_is_not_a_clip(tmp_path: Path) -> None:
    work = tmp_path / "work"
    work.mkdir()
    (work / "frame_0000.png").touch()
    (work / "thesis.tex").write_text("years")
    with pytest.raises(UsageError, match=r"holds other files \(thesis.tex\)"):
        write_clip(noise(), work, overwrite=True)
    (tmp_path / "dir.mp4").mkdir()
    (tmp_path / "file").touch()
    os.mkfifo(tmp_path / "pipe.mp4")
    for name in ("dir.mp4", "file", "file/", "pipe.mp4"):
        with pytest.raises(UsageError, match="give another name"):
            write_clip(noise(), f"{tmp_path}/{name}", overwrite=True)
    with pytest.raises(UsageError, match="file is not a folder"):
        check_output(tmp_path / "file/below/a.mp4")
    assert (work / "thesis.tex").read_text() == "years" and len(os.listdir(tmp_path)) == 4


def test_an_empty_folder_and_a_link_are_written_through(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert len(os.listdir(write_clip(noise(), tmp_path / "empty"))) == T
    (tmp_path / "link.png").symlink_to(tmp_path / "elsewhere/real.png")
    assert write_clip(noise(), tmp_path / "link.png") == tmp_path / "elsewhere/real.png"
    assert (tmp_path / "link.png").is_symlink()


def test_names_that_mean_something_to_ffmpeg_are_plain(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("pipe:1.mp4", "-i.gif", "a%04d.png", "http:/b c.webm", "雪'\";\n.mp4"):
        assert write_clip(smooth(2), name) == tmp_path / name


def test_a_long_name_fails_before_the_work(tmp_path: Path) -> None:
    with pytest.raises(VidcmError, match="File name too long"):
        check_output(tmp_path / f"{'a' * 300}.mp4")


def test_a_folder_without_permission_is_an_error_in_one_line(tmp_path: Path) -> None:
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o555)
    if os.geteuid() == 0:  # permission bits do not stop root; the process table does
        locked = Path("/proc")
        if not locked.is_dir():
            pytest.skip("no folder that refuses root")
    with pytest.raises(VidcmError, match=f"cannot write into {locked}") as caught:
        check_output(locked / "new/a.mp4")
    assert caught.type is VidcmError and "\n" not in str(caught.value)


def test_a_missing_encoder_is_told_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    absent = encoders.ENCODINGS[".mp4"]._replace(encoder="libnone")
    monkeypatch.setitem(encoders.ENCODINGS, ".mp4", absent)
    with pytest.raises(VidcmError, match="cannot write .mp4 .no encoder libnone.: install av"):
        check_output(tmp_path / "a.mp4")


# -- the same frames give the same bytes ----------------------------------------------------------

NAMES = ["a.mp4", "a.webm", "a.gif", "a.png", "folder/"]

WRITES = f"""
import hashlib, sys
import numpy as np
from vidcm.media.write import write_clip
for name in {NAMES}:
    for height, width in ((64, 64), (37, 53)):
        y, x, c, t = np.ogrid[:height, :width, :3, :5]
        clip = ((x * (c + 2) + y * 3 + t * 11) % 256).astype(np.uint8).transpose(3, 0, 1, 2)
        for scale in (1, 4):
            for i in range(6):
                path = write_clip(clip, sys.argv[1] + name, scale=scale, overwrite=True)
                files = sorted(path.iterdir()) if path.is_dir() else [path]
                blob = b"".join(file.read_bytes() for file in files)
                print(name, height, scale, hashlib.sha256(blob).hexdigest())
"""


def test_the_same_frames_give_the_same_bytes_in_every_process(tmp_path: Path) -> None:
    """Twelve writes each, in two processes whose fresh memory holds other bytes."""
    lines = []
    for fill in ("85", "170"):
        done = subprocess.run(
            [sys.executable, "-c", WRITES, f"{tmp_path}/"],
            cwd=ROOT,
            env=os.environ | {"MALLOC_PERTURB_": fill},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        lines += done.stdout.splitlines()
    assert len(lines) == 12 * 20 and len(set(lines)) == 20


def test_x264_uses_what_gives_the_same_bytes_on_any_processor(tmp_path: Path) -> None:
    """Its settings are in the file; the macroblock tree reads past its rows with AVX-512."""
    settings = write_clip(smooth(2, 256), tmp_path / "a.mp4").read_bytes()
    assert b" mbtree=0" in settings and b" threads=4 " in settings


# -- failures half way ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(28, "No space left on device")])
def test_a_failure_half_way_leaves_nothing_or_the_old(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, error: BaseException
) -> None:
    old = write_clip(smooth(5), f"{tmp_path}/{name}")
    before = {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}
    calls = 0

    def enlarge(image: np.ndarray, scale: int) -> np.ndarray:
        nonlocal calls
        calls += 1
        if calls > (0 if name == "a.png" else 3):
            raise error
        return image

    for module in (encoders, write):
        monkeypatch.setattr(module, "enlarge", enlarge)
    expected = VidcmError if isinstance(error, OSError) else KeyboardInterrupt
    for path in (f"{tmp_path}/{name}", f"{tmp_path}/new/deep/{name}"):
        with pytest.raises(expected, match="No space left" if expected is VidcmError else None):
            calls = 0
            write_clip(noise(), path, overwrite=True)
    left = {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}
    assert left == before and os.listdir(tmp_path) == [old.name]


def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path: Path) -> None:
    script = f"""
import resource, numpy as np
from vidcm.errors import VidcmError
from vidcm.media.write import write_clip
clip = np.random.default_rng(0).integers(0, 256, (7, 64, 64, 3), dtype=np.uint8)
resource.setrlimit(resource.RLIMIT_FSIZE, (4000, 4000))
for name in {NAMES}:
    try:
        write_clip(clip, "{tmp_path}/new/" + name)
    except VidcmError as error:
        print(error)
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    lines = done.stdout.splitlines()
    assert done.returncode == 0, done.stderr
    assert len(lines) == len(NAMES)
    for line, name in zip(lines, NAMES, strict=True):
        assert line == f"cannot write {tmp_path}/new/{name.rstrip('/')}: File too large"
    assert not os.listdir(tmp_path)


def test_ctrl_c_leaves_nothing(tmp_path: Path) -> None:
    script = f"""
import numpy as np
from vidcm.media.write import write_clip
clip = np.random.default_rng(0).integers(0, 256, (400, 128, 128, 3), dtype=np.uint8)
write_clip(clip, "{tmp_path}/new/a.webm")
"""
    process = subprocess.Popen([sys.executable, "-c", script], cwd=ROOT, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob("new/.vidcm-*/*")) and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode != 0 and b"KeyboardInterrupt" in errors
    assert not os.listdir(tmp_path)


def test_a_form_is_refused_without_a_clip(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="fps is 60; use 0.01 to 50 in .gif"):
        check_form("a.gif", (9, 64, 64), 60)
    with pytest.raises(UsageError, match="512x512 frames and scale 64"):
        check_form("a.mp4", (9, 512, 512), 8, 64)
    assert check_form("a.gif", (9, 64, 64), 8, np.int64(4)) == 4
    monkeypatch.setattr("vidcm.media.write.memory", lambda: 2**30)
    assert check_form("a/", (999, 64, 64), 8, 64) == 64  # one picture after the other
    with pytest.raises(UsageError, match="memory and this machine has 1: lower the scale"):
        check_form("a.png", (999, 64, 64), 8, 64)


def test_a_rate_of_0_is_not_the_pipeline_s(tmp_path: Path) -> None:
    clips = Clips(noise()[None], ["x"], [0], 8.0, 1)
    with pytest.raises(UsageError, match="fps is 0"):
        clips.save(tmp_path / "a.mp4", fps=0)
