"""Filters leave out what they are for, say so, and do so alike however the work is shared."""

import json
import sys
from pathlib import Path

import av
import numpy as np
import pytest
import tiny
import torch
from PIL import Image, ImageDraw, ImageFont

from vidcm.cli import encode
from vidcm.data import duplicates
from vidcm.data.duplicates import near_duplicates
from vidcm.data.encoding import encode_cache
from vidcm.data.filters import Black, Filter, NearDuplicates, ShotCuts, Still, TextOverlays
from vidcm.data.folder import VideoFolder
from vidcm.data.folder_source import FolderSource
from vidcm.data.latents import LatentShards
from vidcm.errors import UsageError
from vidcm.media.shots import find_shots

FPS = 8.0


def files(folder: Path) -> dict[str, bytes]:
    return {f.name: f.read_bytes() for f in folder.iterdir()}


def scene(seed: int, count: int, moves: bool = True) -> np.ndarray:
    """Smooth noise that moves."""
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    picture = np.asarray(Image.fromarray(coarse).resize((64, 48), Image.Resampling.BICUBIC))
    return np.stack([np.roll(picture, 2 * k * moves, axis=1) for k in range(count)])


def write(path: Path, frames: np.ndarray, rate: float = FPS, crf: int = 18) -> Path:
    with av.open(str(path), "w") as out:
        stream = out.add_stream("libx264", rate=int(rate), options={"crf": str(crf)})
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], "yuv420p"
        for frame in frames:
            out.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        out.mux(stream.encode(None))
    path.with_suffix(".txt").write_text(path.stem)
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Three shots of 12, 3 and 10 frames; a still, a black one, and one scene twice."""
    root = tmp_path_factory.mktemp("films")
    film = np.concatenate([scene(1, 12), scene(2, 3), scene(3, 10)])
    write(root / "a_shots.mp4", film)
    write(root / "b_still.mp4", scene(4, 5, moves=False))
    write(root / "c_black.mp4", scene(5, 5) // 12)
    write(root / "d_first.mp4", scene(6, 5))
    write(root / "e_again.mkv", scene(6, 5), crf=26)
    write(root / "f_short.mp4", np.concatenate([scene(7, 3), scene(8, 3)]))
    return root


def source(root: Path, *filters: Filter, windows: int | None = None, **options) -> FolderSource:
    data = VideoFolder(root, num_frames=5, size=(48, 64), fps=FPS, max_bad_fraction=1)
    return FolderSource(data, windows, filters, **options)


def left_out(found: FolderSource) -> dict[str, str]:
    return found.read(range(sum(found.counts))).left_out


def test_shots_begin_and_end_at_their_frames(folder):
    shots = find_shots(folder / "a_shots.mp4", 27.0)
    assert [(round(a * FPS), round(b * FPS)) for a, b in shots] == [(0, 11), (12, 14), (15, 24)]


def test_windows_do_not_cross_a_cut(folder):
    found = source(folder, ShotCuts())
    starts = [round(s * FPS) for i, s in found.clips if found.data.names[i] == "a_shots.mp4"]
    assert starts == [0, 5, 15, 20]
    without = source(folder)
    starts = [round(s * FPS) for i, s in without.clips if without.data.names[i] == "a_shots.mp4"]
    assert starts == [0, 5, 10, 15, 20]  # the third crosses both
    assert left_out(found) == {"f_short.mp4": "short-shots"}
    one = source(folder, ShotCuts(), windows=1)
    assert [round(s * FPS) for i, s in one.clips if i == 0] == [0]


def test_a_video_that_cannot_be_searched_for_cuts_is_left_out(folder, tmp_path):
    whole = (folder / "a_shots.mp4").read_bytes()
    write(tmp_path / "good.mp4", scene(1, 5))
    (tmp_path / "cut.mp4").write_bytes(whole)
    (tmp_path / "cut.txt").write_text("x")
    with av.open(str(tmp_path / "cut.mp4")) as video:
        packets = [p for p in video.demux(video=0) if p.size]
        last = packets[-1]
        assert last.pos is not None
        damaged = bytearray(whole)
        damaged[last.pos + 8 : last.pos + last.size] = bytes(last.size - 8)
    (tmp_path / "cut.mp4").write_bytes(damaged)
    found = source(tmp_path, ShotCuts())
    assert left_out(found) == {"cut.mp4": "decode-error"}
    assert found.data.quarantine == {"cut.mp4": "decode-error"}


def test_still_and_black_clips(folder):
    assert left_out(source(folder, Still(), windows=1)) == {"b_still.mp4": "still"}
    assert left_out(source(folder, Black(), windows=1)) == {"c_black.mp4": "black"}
    assert not Still().rejects(np.zeros((1, 8, 8, 3), np.uint8))  # a picture
    moving = scene(1, 3)
    assert Still(1.0).rejects(moving) and not Still(0.0).rejects(moving[:1].repeat(3, 0))


def titled(frames: np.ndarray, size: float, frame: int | None = None) -> np.ndarray:
    """A word over the lower part of all frames, or of one."""
    found = frames.copy()
    for k in range(len(frames)) if frame is None else [frame]:
        picture = Image.fromarray(frames[k])
        place, font = (4, int(picture.height * 0.6)), ImageFont.load_default(size)
        edge = {"stroke_width": 1, "stroke_fill": (0, 0, 0)}
        ImageDraw.Draw(picture).text(place, "SUBSCRIBE", (255, 255, 255), font, **edge)
        found[k] = np.asarray(picture)
    return found


def test_text_overlays():
    """At sizes of clips: large text is found, wherever in the clip; small text and none is not."""
    pytest.importorskip("rapidocr")
    kind = TextOverlays()
    for seed, size in ((1, (48, 64)), (2, (96, 160))):
        plain = np.stack(
            [np.asarray(Image.fromarray(f).resize(size[::-1])) for f in scene(seed, 5)]
        )
        assert not kind.rejects(plain)
        assert kind.rejects(titled(plain, size[1] / 6))
        assert kind.rejects(titled(plain, size[1] / 6, frame=4))
    assert not TextOverlays(0.6).rejects(titled(plain, size[1] / 6))
    assert kind.rejects(titled(plain[:1], size[1] / 6))  # a picture


def test_without_its_package_the_text_filter_says_what_to_install(folder, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "rapidocr", None)
    command = ["--data", "folder", "--root", str(folder), "--frames", "5", "--size", "16x24"]
    assert encode.main([*command, "--scan", "--filter", "text_overlays"]) == 2
    assert "needs the package rapidocr, not installed; pip install -e '.[ocr]'" in (
        capsys.readouterr().err
    )


def test_a_scan_names_text_overlays(tmp_path, capsys):
    pytest.importorskip("rapidocr")
    write(tmp_path / "plain.mp4", scene(1, 9))
    write(tmp_path / "titled.mp4", titled(scene(1, 9), 11))
    command = ["--data", "folder", "--root", str(tmp_path), "--frames", "5", "--size", "48x64"]
    assert encode.main([*command, "--scan", "--json", "--filter", "text_overlays=0.04"]) == 0
    assert json.loads(capsys.readouterr().out)["left_out"] == {"titled.mp4": "text-overlay"}


def test_near_duplicates_are_those_of_all_pairs():
    """The parts that are compared miss none: equal to the comparison of all with all."""
    rng = np.random.default_rng(0)
    bits = [rng.integers(0, 2, 192) for _ in range(40)]
    for _ in range(80):
        copy = bits[rng.integers(len(bits))].copy()
        copy[rng.choice(192, rng.integers(0, 12), replace=False)] ^= 1
        bits.append(copy)
    prints = [
        "".join(f"{int(''.join(map(str, b[k : k + 4])), 2):x}" for k in range(0, 192, 4))
        for b in bits
    ]
    for distance in (0, 3, 6, 64):
        kept: list[int] = []
        expected = {}
        for i in range(len(bits)):
            near = [j for j in kept if (bits[i] != bits[j]).sum() <= distance]
            if near:
                expected[i] = near[0]
            else:
                kept.append(i)
        assert near_duplicates(prints, distance) == expected


def as_latents(frames: torch.Tensor) -> torch.Tensor:
    return frames.permute(0, 4, 1, 2, 3).float() / 255


def run(root: Path, output: Path, **options) -> dict | None:
    found = source(root, NearDuplicates(), Still(), **options)
    options = {"codec": "c", "batch_size": 2, "shard_size": 2} | options
    return encode_cache(found, as_latents, output, **options)


def test_v26_near_duplicates_leave_the_cache_whoever_made_its_shards(folder, tmp_path):
    found = run(folder, tmp_path / "whole")
    assert found is not None and found["near-duplicate"] == 1 and found["still"] == 1
    data = LatentShards(tmp_path / "whole")
    assert data.index["filters"] == {"near_duplicates": 6, "still": 0.001}
    assert len(data) == found["clips"]
    captions = [
        text for shape in range(1) for row in range(len(data)) for text in data.captions(shape, row)
    ]
    assert captions.count("d_first") == 1 and "e_again" not in captions
    records = [json.loads(f.read_text()) for f in sorted((tmp_path / "whole").glob("shard-*.json"))]
    dropped = {k: v for r in records for k, v in r.get("duplicates", {}).items()}
    assert dropped == {"e_again.mkv": "d_first.mp4"}
    for rank in (1, 0, 2):
        run(folder, tmp_path / "shared", rank=rank, world=3)
    assert files(tmp_path / "shared") == files(tmp_path / "whole")


@pytest.mark.parametrize("stops_at", ["write_shard", "write_text"])
def test_a_run_that_stops_among_near_duplicates_goes_on(folder, tmp_path, monkeypatch, stops_at):
    run(folder, tmp_path / "whole")
    real = getattr(duplicates, stops_at)

    def stops(*arguments):
        if stops_at == "write_text":  # the shard is smaller already, its record is not
            raise KeyboardInterrupt
        real(*arguments)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(duplicates, stops_at, stops)
        with pytest.raises(KeyboardInterrupt):
            run(folder, tmp_path / "cache")
    run(folder, tmp_path / "cache")
    assert files(tmp_path / "cache") == files(tmp_path / "whole")


def test_other_filters_do_not_go_on(folder, tmp_path):
    assert run(folder, tmp_path / "x", rank=0, world=2) is None
    with pytest.raises(UsageError, match="begun with another"):
        encode_cache(
            source(folder), as_latents, tmp_path / "x", codec="c", batch_size=2, shard_size=2
        )


def command(root: Path, *more: str) -> list[str]:
    sizes = ["--frames", "5", "--size", "48x64", "--fps", "8", "--windows", "all"]
    return ["--data", "folder", "--root", str(root), *sizes, *more]


EVERY = ["--filter", "shot_cuts", "--filter", "still=0.001", "--filter", "black"]
EVERY += ["--filter", "near_duplicates"]


def test_scan_and_encode_leave_out_the_same(folder, tmp_path, capsys):
    assert encode.main(command(folder, "--scan", "--json", *EVERY)) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["left_out"] == {
        "b_still.mp4": "still",
        "c_black.mp4": "black",
        "e_again.mkv": "near-duplicate",
        "f_short.mp4": "short-shots",
    }
    codec = tiny.save(tmp_path / "codec", tiny.CODEC)
    output = tmp_path / "cache"
    more = ["--codec", str(codec), "--output", str(output), "--device", "cpu", *EVERY]
    assert encode.main(command(folder, *more)) == 0
    index = LatentShards(output).index
    assert index["clips"] == report["clips"] == 5
    assert index["left_out"] == report["reasons"]


@pytest.mark.parametrize(
    "text, message",
    [
        ("shots", "unknown filter 'shots'; did you mean 'shot_cuts'"),
        ("still=x", "got 'x', expected a number"),
    ],
)
def test_wrong_filters_are_refused(folder, capsys, text, message):
    with pytest.raises(SystemExit):
        encode.main(command(folder, "--scan", "--filter", text))
    assert message in capsys.readouterr().err


def test_a_threshold_out_of_reach_is_refused(folder, capsys):
    assert encode.main(command(folder, "--scan", "--filter", "still=3")) == 2
    assert "the filter still has threshold 3, expected 0 to 1" in capsys.readouterr().err
