"""The referee passes our reader, and would notice a wrong frame, a refusal and a crash."""

import json
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest

from vidcm.cli import benchmark
from vidcm.evaluation import media_referee
from vidcm.evaluation.media_referee import judge_media
from vidcm.media.media_file import BadClip
from vidcm.media.read import Frames
from vidcm.media.worker import ReaderProcess
from vidcm.media.write import write_clip

pytestmark = pytest.mark.skipif(not shutil.which("ffmpeg"), reason="ffmpeg is not installed")


@pytest.fixture(scope="module")
def clips(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("clips")
    rng = np.random.default_rng(0)
    pictures = rng.integers(0, 256, (25, 4, 5, 1), dtype=np.uint8).repeat(3, -1)
    write_clip(pictures.repeat(16, 1).repeat(16, 2), folder / "a.mp4", fps=8)
    (folder / "b.mp4").write_bytes(b"no video")
    return folder


def verdicts(clips: Path) -> dict[str, str]:
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder, "media.json")
        rows = judge_media(sorted(clips.iterdir()), 30.0, output, lambda name: None)["rows"]
    return {name: row["verdict"] for name, row in rows.items()}


def test_right_frames_and_what_both_refuse(clips):
    assert verdicts(clips) == {"a.mp4": "right", "b.mp4": "both refuse"}


def test_planted_mistakes_are_noticed(clips, monkeypatch):
    real = ReaderProcess.read

    def one_late(self, path, times, size=None, place=None):
        late = real(self, path, np.asarray(times) + 0.125, size, place)
        return Frames(late.frames, late.seconds - 0.125)

    def refuses(self, path, times, size=None, place=None):
        raise BadClip(str(path), "decode-error", "planted")

    def crashes(self, path, times, size=None, place=None):
        self._restarted()
        raise BadClip(str(path), "decoder-crash", "planted")

    for planted, verdict in ((one_late, "wrong"), (refuses, "refused"), (crashes, "hang")):
        monkeypatch.setattr(ReaderProcess, "read", planted)
        monkeypatch.setattr(media_referee, "SECONDS", 2.0)
        assert verdicts(clips)["a.mp4"] == verdict


def test_command(clips, tmp_path, capsys, monkeypatch):
    document = tmp_path / "x.md"
    document.write_text("<!-- media:begin -->\n<!-- media:end -->\n")
    output = tmp_path / "x.json"
    words = ["media", str(clips), "--output", str(output), "--into", str(document)]
    assert benchmark.main(words) == 0
    assert json.loads(output.read_text())["rows"]["a.mp4"]["memory"] < 500e6
    assert "| right | 1 |" in document.read_text()
    before = output.read_bytes()
    monkeypatch.setattr(media_referee, "_judged", lambda path, reader: pytest.fail("not again"))
    assert benchmark.main(words) == 0 and output.read_bytes() == before
    monkeypatch.setenv("PATH", "/nowhere")
    assert benchmark.main(words) == 2
    assert "the referee is the program ffmpeg, not installed" in capsys.readouterr().err


def test_speed_of_data(clips, tmp_path, capsys):
    output = tmp_path / "data.json"
    words = ["data", "--root", str(clips), "--repeats", "1", "--clips", "32", "--workers", "1"]
    assert benchmark.main([*words, "--output", str(output)]) == 0
    rows = json.loads(output.read_text())["rows"]
    assert rows["decode"]["bare PyAV"]["of_bare"] == 1 and rows["decode"]["vidcm"]["failed"] == 0
    assert rows["loader"]["1"]["clips_per_second"] > 0
    assert rows["shards"]["vidcm"]["megabytes_per_second"] > 0
    assert "| vidcm |" in capsys.readouterr().out
