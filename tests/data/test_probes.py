"""What is found out about a video is kept, and shapes are suggested from it."""

import os
import sqlite3
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import yaml

from vidcm.cli import encode
from vidcm.data.folder import VideoFolder
from vidcm.data.probes import Database
from vidcm.data.shape_suggestion import suggest_shapes
from vidcm.media.read import VideoInfo
from vidcm.media.worker import ReaderProcess
from vidcm.media.write import write_clip


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("VIDCM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "media.sqlite"


@pytest.fixture
def probed(monkeypatch) -> list[str]:
    """Names of the files that are probed from now on."""
    names: list[str] = []
    real = ReaderProcess.probe

    def probe(self, path):
        names.append(Path(path).name)
        return real(self, path)

    monkeypatch.setattr(ReaderProcess, "probe", probe)
    return names


def write(path: Path, count: int, size: tuple[int, int] = (16, 24)) -> None:
    path.parent.mkdir(exist_ok=True)
    frames = np.random.default_rng(count).integers(0, 256, (count, *size, 3), dtype=np.uint8)
    write_clip(frames, path, fps=8)
    path.with_suffix(".txt").write_text(path.stem)


@pytest.fixture
def root(tmp_path) -> Path:
    for k, size in enumerate([(16, 24), (24, 16), (16, 24)]):
        write(tmp_path / "v" / f"{k}.mp4", 9 + 8 * k, size)
    return tmp_path / "v"


def folder(root: Path) -> VideoFolder:
    return VideoFolder(root, num_frames=5, size=(16, 24), buckets=[(5, 24, 16)], fps=8.0)


def test_files_are_probed_once_whoever_asks(root, probed, capsys):
    first = folder(root)
    assert sorted(probed) == ["0.mp4", "1.mp4", "2.mp4"]
    probed.clear()
    again = folder(root)
    again.batch(1, range(2))  # random starts need the length
    assert (
        encode.main(
            ["--data", "folder", "--root", str(root), "--frames", "5", "--size", "16x24", "--scan"]
        )
        == 0
    )
    assert probed == []
    assert [again.shape(i) for i in range(3)] == [first.shape(i) for i in range(3)]
    assert [again.probes.info(n) for n in again.names] == [
        first.probes.info(n) for n in first.names
    ]


def test_a_file_that_changed_is_probed_again(root, probed):
    folder(root)
    before = (root / "0.mp4").stat()
    (root / "0.mp4").unlink()
    write(root / "0.mp4", 41)
    os.utime(root / "0.mp4", ns=(before.st_atime_ns, before.st_mtime_ns))  # its size tells
    os.utime(root / "1.mp4", (1, 1))
    probed.clear()
    assert folder(root).probes.info("0.mp4").last_seconds == pytest.approx(41 / 8, abs=0.01)
    assert sorted(probed) == ["0.mp4", "1.mp4"]


def test_failures_are_not_kept(root, probed):
    (root / "1.mp4").write_bytes(b"text")
    for _ in range(2):
        probed.clear()
        data = VideoFolder(
            root, num_frames=5, size=(16, 24), buckets=[(5, 24, 16)], fps=8.0, max_bad_fraction=1
        )
        assert data.quarantine == {"1.mp4": "not-video"} and "1.mp4" in probed


@pytest.mark.parametrize("damage", ["text", "folder"])
def test_a_database_that_cannot_be_used_is_said_and_not_needed(root, cache, caplog, probed, damage):
    cache.parent.mkdir()
    cache.mkdir() if damage == "folder" else cache.write_bytes(b"no database" * 99)
    for _ in range(2):
        assert len(folder(root)) == 3
    assert len(probed) == 6 and len(caplog.records) == 2
    assert "so videos are probed in every run; delete it" in caplog.text


def test_threads_that_meet_the_damage_at_once_say_it_once(cache, caplog, monkeypatch):
    at_once = threading.Barrier(4)

    def refuse(self):
        at_once.wait(30)
        raise sqlite3.OperationalError("unable to open database file")

    monkeypatch.setattr(Database, "_connection", refuse)
    database = Database()
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(database.get, [b"key"] * 4)) == [None] * 4
    assert len(caplog.records) == 1


def test_processes_and_threads_share_the_database(cache):
    def use(k: int) -> int:
        database = Database()
        database.put(bytes([k]), [k, {"a": 0.1}])
        return database.get(bytes([k]))[0]

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(use, range(40))) == list(range(40))
    assert sqlite3.connect(cache).execute("SELECT count(*) FROM facts").fetchone() == (40,)


def info(width: int, height: int, seconds: float) -> VideoInfo:
    return VideoInfo(height, width, seconds)


def test_shapes_follow_the_videos():
    wide = [info(1920, 1080, 3.0 + k / 10) for k in range(60)]
    tall = [info(1080, 1920, 12.0) for _ in range(30)]
    rare = [info(500, 500, 5.0) for _ in range(2)]
    found = suggest_shapes([*wide, *tall, *rare], 8.0, 256 * 256)
    # Of the wide ones, 9 in 10 fill 29 frames and half of them 45; two squares get no shape.
    assert found == {(45, 192, 344): 35, (81, 344, 192): 30, (29, 192, 344): 27}
    for (frames, height, width), count in found.items():
        assert frames % 4 == 1 and frames <= 81 and height % 8 == width % 8 == 0 and count > 0
        assert 0.9 < height * width / 256**2 < 1.1


def test_the_suggestion_can_be_copied_into_a_config(root, capsys):
    """As YAML, and as options: both are what training and encode take."""
    base = ["--data", "folder", "--root", str(root), "--scan"]
    assert encode.main([*base, "--frames", "5", "--size", "16x24", "--fps", "8"]) == 0
    out = capsys.readouterr().out
    options = yaml.safe_load(out[out.index("# shapes for") :])
    assert set(options) == {"num_frames", "size", "buckets", "fps"}
    data = VideoFolder(root, **{**options, "size": tuple(options["size"])})
    assert sum(len(clips) for _, clips in data.buckets) == 3 and all(c for _, c in data.buckets)
    words = out.split("# or of encode: ")[1].split()
    assert encode.main([*base, *words, "--json"]) == 0
    assert '"left_out": {}' in capsys.readouterr().out
