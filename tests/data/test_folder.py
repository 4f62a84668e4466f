"""A user's folder: captions that match or are refused, bad clips that do not stop a run."""

import json
import os
import pickle
import sys
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from vidcm.data.folder import VideoFolder
from vidcm.data.folder_source import FolderSource
from vidcm.data.loader import batches
from vidcm.errors import UsageError, VidcmError
from vidcm.media.read import BadClip, VideoInfo, read_frames
from vidcm.media.timing import frame_times
from vidcm.media.transforms import resize_crop
from vidcm.media.worker import ReaderProcess

SHAPE = {"num_frames": 5, "size": (23, 29), "fps": 25.0}


def write_video(path: Path, count: int = 19, size: tuple[int, int] = (46, 62)) -> Path:
    """A clip whose frames get brighter, 25 a second, with a bright left half."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as out:
        stream = out.add_stream("libx264", rate=25)
        stream.height, stream.width = size
        stream.pix_fmt, stream.bit_rate = "yuv420p", 2_000_000
        for k in range(count):
            image = np.full((*size, 3), 20 + 6 * k, np.uint8)
            image[:, : size[1] // 2] += 100
            out.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        out.mux(stream.encode(None))
    return path


@pytest.fixture(scope="module")
def video(tmp_path_factory) -> bytes:
    return write_video(tmp_path_factory.mktemp("v") / "a.mp4").read_bytes()


def fill(root: Path, video: bytes, names: list[str], *, captions: bool = True) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(video)
        if captions:
            (root / name).with_suffix(".txt").write_text(f"caption of {name}")
    return root


def refused(root: Path, **options) -> str:
    with pytest.raises(UsageError) as caught:
        VideoFolder(root, **(SHAPE | options))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def captions_of(data: VideoFolder) -> dict[str, str]:
    return {name: " / ".join(data.captions(i)) for i, name in enumerate(data.names)}


# ---- captions -----------------------------------------------------------------------------------


def test_sidecars(tmp_path, video):
    fill(tmp_path, video, ["b.mp4", "deep/er/a.MOV", ".hidden/c.mp4"])
    (tmp_path / "b.txt").write_bytes(b"\xef\xbb\xbf a woman walks \xc3\xa9\r\n")
    (tmp_path / "README.txt").write_text("not a caption")
    data = VideoFolder(tmp_path, **SHAPE)
    assert captions_of(data) == {
        "b.mp4": "a woman walks é",
        "deep/er/a.MOV": "caption of deep/er/a.MOV",
    }
    assert len(data) == 2


@pytest.mark.parametrize(
    ("kind", "lines"),
    [
        (
            "jsonl",
            ['{"file_name": "a.mp4", "text": "one"}', '{"text": "two, é", "file_name": "d/b.mp4"}'],
        ),
        (
            "jsonl",
            [
                '\ufeff{"file_name": "a.mp4", "caption": " one "}\r\n\r',
                '{"file_name": "./d/b.mp4", "caption": "two, é"}\r\n',
            ],
        ),
        ("csv", ["file_name,text", "a.mp4,one", 'd/b.mp4,"two, é"\n']),
        ("csv", ["\ufeffcaption, file_name ,more\r", "one,a.mp4,x\r", '"two, é",d/b.mp4,\r\n\r\n']),
    ],
)
def test_metadata_files(tmp_path, video, kind, lines):
    """Cases: C05."""
    fill(tmp_path, video, ["a.mp4", "d/b.mp4"], captions=False)
    (tmp_path / f"metadata.{kind}").write_bytes("\n".join(lines).encode())
    assert captions_of(VideoFolder(tmp_path, **SHAPE)) == {"a.mp4": "one", "d/b.mp4": "two, é"}


GOOD = '{"file_name": "a.mp4", "text": "one"}\n'


@pytest.mark.parametrize(
    ("kind", "content", "message"),
    [
        ("jsonl", GOOD + "\n{oops}\n", "jsonl:3: not JSON: .* column 2"),
        ("jsonl", "[" * 99999, "jsonl:1: JSON nested too deeply"),
        ("jsonl", '["a.mp4", "one"]', "jsonl:1: a list, expected"),
        ("jsonl", '{"file": "a", "text": "x"}', "1: missing 'file_name', found 'file', 'text'"),
        ("jsonl", '{"file_name": "a", "prompt": "x"}', "missing 'text', found 'file_name', 'pro"),
        ("jsonl", '{"file_name": "a.mp4", "text": 7}', "1: text is int .7., expected text"),
        ("jsonl", '{"file_name": "a.mp4", "caption": null}', "1: caption is nothing"),
        ("jsonl", '{"file_name": "a.mp4", "text": ["x", 7]}', "1: text is list"),
        ("jsonl", '{"file_name": "a.mp4", "text": []}', "1: text is list ...., expected text, or"),
        ("jsonl", '{"file_name": "a", "text": null, "caption": null}', "1: text and caption are n"),
        ("jsonl", '{"file_name": 3, "text": "x"}', "1: file_name is int"),
        ("jsonl", '{"file_name": "../../etc/passwd", "text": "x"}', "1: .*leaves the folder"),
        ("jsonl", r'{"file_name": "..\\x.mp4", "text": "x"}', "1: .*leaves the folder"),
        ("jsonl", '{"file_name": "/etc/passwd", "text": "x"}', "1: .*leaves the folder"),
        ("jsonl", "", "metadata.jsonl holds no caption"),
        ("csv", "name,text\na.mp4,one\n", "csv:1: missing 'file_name', found 'name', 'text'"),
        ("csv", "file_name;text\na.mp4;one\n", "missing .* found 'file_name;text'"),
        ("csv", "file_name,text\na.mp4,one, two\n", "csv:2: 3 cells, expected 2"),
        ("csv", 'file_name,text\na.mp4,"one', "csv:2: not CSV"),
        ("csv", "file_name,text,text\na.mp4,one,two\n", "a column name is repeated"),
        ("csv", "file_name,text\n", "metadata.csv holds no caption"),
    ],
)
def test_wrong_metadata_is_refused_with_its_line(tmp_path, video, kind, content, message):
    """Cases: C08, C09, C10, C12."""
    fill(tmp_path, video, ["a.mp4"], captions=False)
    (tmp_path / f"metadata.{kind}").write_text(content)
    with pytest.raises(UsageError, match=message):
        VideoFolder(tmp_path, **SHAPE)


@pytest.mark.parametrize(
    ("kind", "lines"),
    [
        ("jsonl", ['{"file_name": "a.mp4", "text": ["one", "", "two", " three "]}']),
        ("jsonl", ['{"file_name": "a.mp4", "text": "one", "caption": ["two"], "caption_2": "three"}']),
        (
            "jsonl",
            ['{"file_name": "a.mp4", "text": ["one", "two"]}', '{"file_name": "./a.mp4", "caption": "three"}'],
        ),
        ("csv", ["file_name,caption_1,captions,text3", "a.mp4,one,two,three"]),
        ("csv", ["file_name,text,text_2", "a.mp4,one,two", "a.mp4,three,"]),
    ],
)  # fmt: skip
def test_several_captions(tmp_path, video, kind, lines):
    fill(tmp_path, video, ["a.mp4"], captions=False)
    (tmp_path / f"metadata.{kind}").write_text("\n".join(lines))
    data = VideoFolder(tmp_path, **SHAPE)
    assert data.captions(0) == ["one", "two", "three"]
    with data.reader:
        assert FolderSource(data).read(range(1)).captions == [["one", "two", "three"]]
        drawn = [data.batch(3, [p]).captions[0] for p in range(24)]
        assert set(drawn) == {"one", "two", "three"}
        assert drawn[7:9] == data.batch(3, [7, 8]).captions  # by seed and position alone
        assert drawn != [data.batch(4, [p]).captions[0] for p in range(24)]


COMPOSED, DECOMPOSED = "caf\u00e9", "cafe\u0301"


def test_names_in_metadata_are_compared_in_one_form(tmp_path, video):
    """As a Mac and Windows write them."""
    fill(tmp_path, video, [f"d/{DECOMPOSED}.mp4", "b.mp4"], captions=False)
    given = [f"d\\{COMPOSED}.mp4", ".\\b.mp4"]
    rows = [
        json.dumps({"file_name": name, "text": text})
        for name, text in zip(given, "xy", strict=True)
    ]
    (tmp_path / "metadata.jsonl").write_text("\n".join(rows))
    assert captions_of(VideoFolder(tmp_path, **SHAPE)) == {f"d/{DECOMPOSED}.mp4": "x", "b.mp4": "y"}
    fill(tmp_path, video, [f"d/{COMPOSED}.mp4"], captions=False)
    assert "which are spelled alike; rename one of them" in refused(tmp_path)


def test_names_of_texts_are_compared_in_one_form(tmp_path, video, caplog):
    names = [f"d/{DECOMPOSED}.mp4", "b.mp4", "x.y.mp4"]
    fill(tmp_path, video, names, captions=False)
    (tmp_path / f"d/{COMPOSED}.TXT").write_text("one")
    (tmp_path / "b.Txt").write_text("two\nlines\n")
    (tmp_path / "x.y.TXT").write_text("not this")
    (tmp_path / "x.y.txt").write_text("exact")
    data = VideoFolder(tmp_path, **SHAPE)
    assert captions_of(data) == dict(zip(names, ["one", "two\nlines", "exact"], strict=True))
    assert "1 .txt files have several lines, all of them one caption: 'b.Txt'" in caplog.text


def test_parquet(tmp_path, video):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    fill(tmp_path, video, ["a.mp4", "d/b.mp4"], captions=False)
    file = tmp_path / "metadata.parquet"
    columns = {"file_name": ["a.mp4", "d/b.mp4"], "text": ["one", "two, é"], "fps": [25, 25]}
    parquet.write_table(pyarrow.table(columns), file)
    assert captions_of(VideoFolder(tmp_path, **SHAPE)) == {"a.mp4": "one", "d/b.mp4": "two, é"}
    columns |= {"text": [["one", "two"], ["three"]], "caption": [None, "four"]}
    parquet.write_table(pyarrow.table(columns), file)
    found = captions_of(VideoFolder(tmp_path, **SHAPE))
    assert found == {"a.mp4": "one / two", "d/b.mp4": "three / four"}
    parquet.write_table(pyarrow.table(columns | {"file_name": ["a.mp4", None]}), file)
    assert "parquet:2: file_name is nothing" in refused(tmp_path)
    parquet.write_table(pyarrow.table({"name": ["a.mp4"], "text": ["x"]}), file)
    assert "parquet: missing 'file_name', found 'name', 'text'" in refused(tmp_path)
    file.write_bytes(file.read_bytes()[:-9])
    assert "metadata.parquet is not read as parquet after row 0" in refused(tmp_path)


def test_parquet_without_its_package(tmp_path, video, monkeypatch):
    fill(tmp_path, video, ["a.mp4"], captions=False)
    (tmp_path / "metadata.parquet").write_bytes(b"PAR1")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    message = (
        "metadata.parquet needs the package pyarrow, not installed; pip install -e '.[parquet]'"
    )
    assert message in refused(tmp_path)


def test_not_utf8_is_refused_with_its_byte(tmp_path, video):
    """Cases: C04."""
    fill(tmp_path, video, ["a.mp4"])
    (tmp_path / "a.txt").write_bytes(b"caf\xe9 x")
    assert "a.txt is not UTF-8 (invalid continuation byte at byte 3)" in refused(tmp_path)


def test_caption_files_must_match_the_videos(tmp_path, video):
    """Cases: C01."""
    names = [f"{k}.mp4" for k in range(8)]
    fill(tmp_path, video, names, captions=False)
    message = refused(tmp_path)
    assert "8 of 8 videos" in message and "'4.mp4', ... (3 more)" in message
    rows = [json.dumps({"file_name": name, "text": "x"}) for name in [*names, "8.mp4", "9.mp4"]]
    (tmp_path / "metadata.jsonl").write_text("\n".join(rows))
    assert "names 2 videos that are not in" in refused(tmp_path)
    (tmp_path / "metadata.jsonl").write_text("\n".join(rows[:5]))
    assert "3 of 8 videos" in refused(tmp_path) and "'5.mp4', '6.mp4', '7.mp4'" in refused(tmp_path)
    assert len(VideoFolder(tmp_path, **SHAPE, missing_captions="skip")) == 5
    data = VideoFolder(tmp_path, **SHAPE, missing_captions="empty")
    assert len(data) == 8 and data.captions(7) == [""] and data.captions(0) == ["x"]
    (tmp_path / "metadata.csv").write_text("file_name,text\n")
    assert "keep one of them" in refused(tmp_path)


def test_wrong_options_and_folders(tmp_path, video):
    assert "is not a folder" in refused(tmp_path / "gone")
    assert "holds no video" in refused(tmp_path)
    fill(tmp_path, video, ["a.mp4"])
    assert "use 5 or 9" in refused(tmp_path, num_frames=8)
    assert "size is (0, 29)" in refused(tmp_path, size=(0, 29))
    assert "fps is -1" in refused(tmp_path, fps=-1)
    assert "'error', 'empty' or 'skip'" in refused(tmp_path, missing_captions="none")
    assert "0 to 1" in refused(tmp_path, max_bad_fraction=2)
    assert "deadline is 0" in refused(tmp_path, deadline=0)


def test_links_that_leave_the_folder(tmp_path, video):
    """Cases: V20."""
    root, outside = tmp_path / "root", tmp_path / "outside"
    fill(root, video, ["a.mp4"])
    fill(outside, video, ["b.mp4"])
    os.symlink(outside, root / "more")
    os.symlink(root, root / "loop")
    assert "more links out of" in refused(root)
    data = VideoFolder(root, **SHAPE, follow_symlinks=True)
    assert data.names == ["a.mp4", "more/b.mp4"]
    (root / "more").unlink()
    os.symlink(outside / "b.mp4", root / "b.mp4")
    assert "b.mp4 links out of" in refused(root)


# ---- clips --------------------------------------------------------------------------------------


def test_clip_is_a_function_of_the_generator(tmp_path, video):
    fill(tmp_path, video, ["a.mp4", "b.mp4"])
    data = VideoFolder(tmp_path, **SHAPE)
    with data.reader:
        one, two, other = (data.clip(0, torch.Generator().manual_seed(s)) for s in (3, 3, 4))
        assert one.shape == (5, 23, 29, 3) and one.dtype == torch.uint8
        assert torch.equal(one, two) and not torch.equal(one, other)
        assert torch.equal(data.clip(0), data.clip(1))
        brightness = data.clip(0).float().mean((1, 2, 3))
        assert brightness.diff() == pytest.approx([6.0] * 4, abs=1.5)  # 25 fps: each frame once
        starts = {
            round(data.clip(0, torch.Generator().manual_seed(s))[0, 0, 0, 0].item())
            for s in range(9)
        }
        assert len(starts) > 3
        copy = pickle.loads(pickle.dumps(data))
        assert torch.equal(copy.clip(0), data.clip(0))
        copy.reader.close()


def test_a_bad_clip_does_not_stop_the_run(tmp_path, video):
    fill(tmp_path, video, [f"{k}.mp4" for k in range(5)])
    (tmp_path / "1.mp4").write_bytes(b"<html>")
    (tmp_path / "3.mp4").write_bytes(b"")
    os.mkfifo(tmp_path / "5.mp4")
    (tmp_path / "5.txt").write_text("a pipe")
    data = VideoFolder(tmp_path, **SHAPE, max_bad_fraction=0.5)
    clips = FolderSource(data).read(range(6))
    assert clips.names == ["0.mp4", "2.mp4", "4.mp4"] and clips.frames.shape == (3, 5, 23, 29, 3)
    assert clips.captions == [[f"caption of {k}.mp4"] for k in (0, 2, 4)]
    assert clips.left_out == {"1.mp4": "not-video", "3.mp4": "empty", "5.mp4": "not-a-file"}
    assert data.quarantine == clips.left_out
    none = FolderSource(data).read(range(1, 2))
    assert none.frames.shape == (0, 5, 23, 29, 3) and none.captions == []


def test_v24_a_file_that_is_deleted_after_the_start_is_missing(tmp_path, video):
    fill(tmp_path, video, [f"{k}.mp4" for k in range(4)])
    data = VideoFolder(tmp_path, **SHAPE, max_bad_fraction=0.5)
    (tmp_path / "2.mp4").unlink()
    seen = {
        text for step in range(6) for text in data.batch(5, range(2 * step, 2 * step + 2)).captions
    }
    assert seen == {f"caption of {k}.mp4" for k in (0, 1, 3)}
    assert data.quarantine == {"2.mp4": "missing"}


def test_c02_empty_captions_are_allowed_and_named(tmp_path, video, caplog):
    fill(tmp_path, video, ["a.mp4", "b.mp4", "c.mp4"])
    (tmp_path / "a.txt").write_text("")
    (tmp_path / "b.txt").write_text(" \n\t ")
    assert list(captions_of(VideoFolder(tmp_path, **SHAPE)).values()) == [
        "",
        "",
        "caption of c.mp4",
    ]
    assert "2 captions are empty: 'a.mp4', 'b.mp4'" in caplog.text


def test_windows_of_a_video_do_not_overlap(tmp_path, video):
    """19 frames at 25 a second hold three clips of 5 frames, or two spread over it."""
    fill(tmp_path, video, ["a.mp4"])
    data = VideoFolder(tmp_path, **SHAPE)
    for most, starts in ((1, [0]), (None, [0, 0.2, 0.4]), (2, [0, 0.2]), (7, [0, 0.2, 0.4])):
        source = FolderSource(data, most)
        assert [start for _, start in source.clips] == pytest.approx(starts)
        assert list(source.counts) == [len(starts)]
    clips = FolderSource(data, None).read(range(3))
    light = clips.frames.float().mean((2, 3, 4)).flatten()
    assert clips.names == ["a.mp4", "a.mp4 at 0.200 s", "a.mp4 at 0.400 s"]
    assert light.diff() == pytest.approx([6.0] * 14, abs=1.5)  # one after the other, no frame twice


def batch_frames(data: VideoFolder, num_workers: int, start: int = 0) -> list[torch.Tensor]:
    options = dict(seed=3, start=start, stop=12, batch_size=2, gradient_accumulation_steps=1)
    found = batches(data, **options, rank=0, world=1, num_workers=num_workers)
    return [frames for parts in found for p in parts if (frames := p.batch.frames) is not None]


@pytest.mark.parametrize("num_workers", [1, 2, 4])
def test_any_number_of_loader_threads_reads_the_same_clips(tmp_path, video, num_workers):
    """Threads that shared one pipe to a reader mixed their answers up, or waited for ever."""
    fill(tmp_path, video, [f"{k}.mp4" for k in range(6)])
    expected = batch_frames(VideoFolder(tmp_path, **SHAPE), 0)
    data = VideoFolder(tmp_path, **SHAPE)
    found = batch_frames(data, num_workers)
    assert len(found) == 12 and torch.equal(torch.stack(found), torch.stack(expected))
    assert not data.quarantine


def test_a_resumed_run_sees_the_same_clips_whatever_was_bad(tmp_path, video):
    fill(tmp_path, video, [f"{k}.mp4" for k in range(5)])
    (tmp_path / "1.mp4").write_text("no video")
    whole = batch_frames(VideoFolder(tmp_path, **SHAPE, max_bad_fraction=0.5), 0)
    resumed = batch_frames(VideoFolder(tmp_path, **SHAPE, max_bad_fraction=0.5), 0, start=7)
    assert torch.equal(torch.stack(whole[7:]), torch.stack(resumed))


def test_a_header_that_says_too_much_costs_a_draw_and_not_the_file(tmp_path, video, monkeypatch):
    """Cases: V09."""
    fill(tmp_path, video, ["a.mp4"])
    data = VideoFolder(tmp_path, **SHAPE)
    true = data.reader.probe(tmp_path / "a.mp4").last_seconds
    lie = VideoInfo(23, 29, 8 * true)
    monkeypatch.setattr(ReaderProcess, "probe", lambda self, path: lie)
    clips = [data.clip(0, torch.Generator().manual_seed(s)) for s in range(12)]
    assert not data.quarantine and len({int(c[0, 0, 0, 0]) for c in clips}) > 3
    again = VideoFolder(tmp_path, **SHAPE)
    assert torch.equal(again.clip(0, torch.Generator().manual_seed(7)), clips[7])


def test_a_clip_fits_a_video_that_is_shown_as_long(tmp_path):
    """9 frames at 8 a second are 1 s from first to last, and so is the video of 25 frames.

    Cases: V08.
    """
    write_video(tmp_path / "a.mp4", 25).with_suffix(".txt").write_text("a")
    data = VideoFolder(tmp_path, num_frames=9, size=(23, 29), fps=8.0, buckets=[[13, 23, 29]])
    assert data.shape(0) == (9, 23, 29)
    for rng in (None, torch.Generator().manual_seed(0)):
        assert len(data.clip(0, rng)) == 9
    assert not data.quarantine


def test_pixels_that_are_not_square_choose_the_shape(tmp_path):
    with av.open(str(tmp_path / "a.mp4"), "w") as out:
        stream = out.add_stream("libx264", rate=25)
        stream.height, stream.width, stream.pix_fmt = 32, 32, "yuv420p"
        stream.codec_context.sample_aspect_ratio = Fraction(2, 1)
        for _ in range(9):
            image = np.full((32, 32, 3), 90, np.uint8)
            out.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        out.mux(stream.encode(None))
    (tmp_path / "a.txt").write_text("a")
    data = VideoFolder(tmp_path, num_frames=5, size=(16, 16), fps=25.0, buckets=[[5, 16, 32]])
    assert data.shape(0) == (5, 16, 32)


def test_too_many_bad_clips_stop_with_a_summary(tmp_path, video):
    fill(tmp_path, video, [f"{k}.mp4" for k in range(6)])
    for k in (1, 2):
        (tmp_path / f"{k}.mp4").write_text("text")
    (tmp_path / "3.mp4").unlink()
    fill(tmp_path, video, ["3.mp4"])
    data = VideoFolder(tmp_path, **SHAPE, max_bad_fraction=0.4)
    (tmp_path / "3.mp4").unlink()  # after it was listed
    with pytest.raises(VidcmError, match="3 of 6 clips .* bad: not-video 2, missing 1") as caught:
        FolderSource(data).read(range(6))
    assert "(--max-bad-fraction), which is 0.4" in str(caught.value) and "\n" not in str(
        caught.value
    )
    data.reader.close()


def test_real_footage_by_word(shared_data, tmp_path):
    for word in ("bird", "eat", "walk"):
        os.symlink(shared_data / f"clips/intel_asl_gestures__{word}.mkv", tmp_path / f"{word}.mkv")
        (tmp_path / f"{word}.txt").write_text(f"the sign for {word}")
    data = VideoFolder(tmp_path, num_frames=13, size=(47, 31), fps=9, follow_symlinks=True)
    frames = torch.stack([data.clip(i, torch.Generator().manual_seed(i)) for i in (2, 0)])
    assert frames.shape == (2, 13, 47, 31, 3) and not data.quarantine
    assert [data.captions(i) for i in (2, 0)] == [["the sign for walk"], ["the sign for bird"]]
    assert frames.float().std() > 20 and (frames[:, 1:] != frames[:, :-1]).any()
    data.reader.close()


# ---- transforms ---------------------------------------------------------------------------------


def pattern(h: int, w: int) -> torch.Tensor:
    """Seven frames `(t h w c)`: a ramp down, a ramp to the right, the frame number."""
    down = torch.linspace(0, 255, h)[None, :, None].expand(7, h, w)
    right = torch.linspace(0, 255, w)[None, None, :].expand(7, h, w)
    number = (torch.arange(7.0) * 30)[:, None, None].expand(7, h, w)
    return torch.stack([down, right, number], dim=-1).round().byte()


def fitted(frames: torch.Tensor, size=(23, 29), place=None) -> torch.Tensor:
    return torch.from_numpy(resize_crop(frames.numpy(), size, place))


@pytest.mark.parametrize("source", [(131, 61), (61, 131), (23, 29), (11, 13), (29, 23), (24, 2)])
def test_resize_crop_covers_and_centres(source):
    out = fitted(pattern(*source)).float()
    assert out.shape == (7, 23, 29, 3)
    assert torch.equal(out[..., 2].amin((1, 2)), torch.arange(7.0) * 30)  # frames stay apart
    middle = out.mean((0, 1, 2))
    assert middle[:2] == pytest.approx([127.5, 127.5], abs=8)
    scale = max(23 / source[0], 29 / source[1])  # one scale: the aspect ratio is kept
    for axis, cut in ((0, 23), (1, 29)):
        span = (out[0, -1, 0, 0] - out[0, 0, 0, 0], out[0, 0, -1, 1] - out[0, 0, 0, 1])[axis]
        assert span == pytest.approx(255 * cut / (source[axis] * scale), abs=40)


def test_right_size_is_left_alone_and_downscaling_averages():
    """Cases: V16."""
    frames = torch.randint(256, (3, 23, 29, 3), dtype=torch.uint8)
    assert torch.equal(fitted(frames), frames)
    checker = ((torch.arange(64)[:, None] + torch.arange(64)) % 2 * 255).byte()
    small = fitted(checker[None, :, :, None].repeat(1, 1, 1, 3), (7, 7)).float()
    assert abs(small - 127.5).max() < 30  # without antialiasing it would be black and white


def test_random_crop_repeats_and_reaches_everywhere():
    frames = pattern(23, 60)
    lefts = set()
    for seed in range(80):
        down, across = np.random.default_rng(seed).random(2)
        one = fitted(frames, place=(down, across))
        assert (one[..., :2] == one[:1, ..., :2]).all()  # one place for the whole clip
        lefts.add(int((frames[0, 0, :, 1] == one[0, 0, 0, 1]).nonzero()[0]))
    assert min(lefts) == 0 and max(lefts) == 31 and len(lefts) > 20


def test_a_crop_of_a_scaled_clip_is_the_scaled_clip_cropped():
    frames = torch.randint(256, (2, 60, 37, 3), dtype=torch.uint8)
    whole, places = fitted(frames, (47, 29)), [0.0, 0.5, 0.99]
    for down in places:
        part = fitted(frames, (23, 29), place=(down, 0.3))
        top = int(down * (47 - 23 + 1))
        assert (part.int() - whole[:, top : top + 23].int()).abs().max() <= 1


def test_frames_are_resized_where_they_are_decoded(tmp_path):
    """Frames of any size become clips of a small one within the memory of the small one."""
    write_video(tmp_path / "a.mp4", count=5, size=(480, 640))
    large = ReaderProcess(max_pixels=5 * 23 * 29)
    with large as reader, pytest.raises(BadClip, match="too-large"):
        reader.read(tmp_path / "a.mp4", frame_times(5, 25.0))
    with large as reader:
        found = reader.read(tmp_path / "a.mp4", frame_times(5, 25.0), (23, 29))
    whole = read_frames(tmp_path / "a.mp4", frame_times(5, 25.0)).frames
    assert np.array_equal(found.frames, resize_crop(whole, (23, 29)))


def test_fps_is_of_the_clip_not_of_the_video(tmp_path, video):
    fill(tmp_path, video, ["a.mp4"])
    data = VideoFolder(tmp_path, num_frames=5, size=(46, 62), fps=6.25)
    steps = data.clip(0).float().mean((1, 2, 3)).diff()
    assert steps == pytest.approx([24.0] * 4, abs=3)
    found = data.reader.read(str(tmp_path / "a.mp4"), frame_times(5, 6.25))
    assert found.seconds == pytest.approx([0, 0.16, 0.32, 0.48, 0.64])
    data.reader.close()
