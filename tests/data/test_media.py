"""What a folder holds: containers of any name, pictures beside videos, and what is left out."""

import json
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import tiny
import torch
from PIL import Image

from vidcm.cli import encode
from vidcm.config import TrainConfig
from vidcm.data.folder import VideoFolder
from vidcm.data.latents import LatentShards
from vidcm.data.media_root import LocalRoot
from vidcm.data.videos import list_media
from vidcm.errors import UsageError
from vidcm.media.read import BadClip, probe
from vidcm.media.write import write_clip
from vidcm.registry import build
from vidcm.train import loop
from vidcm.train.denoiser_task import denoiser_task
from vidcm.train.engine import LocalEngine
from vidcm.train.roles import assemble

CPU = torch.device("cpu")


def film(path: Path, format: str | None = None, codec: str = "mpeg4") -> Path:
    with av.open(str(path), "w", format=format) as out:
        stream = out.add_stream(codec, rate=25)
        stream.height, stream.width, stream.pix_fmt = 32, 48, "yuv420p"
        for k in range(9):
            image = np.full((32, 48, 3), 25 * k, np.uint8)
            out.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        out.mux(stream.encode(None))
    return path


def picture(path: Path, level: int = 100, size: tuple[int, int] = (24, 36), **options: Any) -> Path:
    Image.fromarray(np.full((*size, 3), level, np.uint8)).save(path, **options)
    path.with_suffix(".txt").write_text(f"picture {path.stem}")
    return path


def animation(path: Path) -> None:
    images = [Image.fromarray(np.full((8, 8, 3), 80 * k, np.uint8)) for k in range(3)]
    images[0].save(path, save_all=True, append_images=images[1:], duration=100)


# ---- what is seen -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "format", "codec"),
    [
        ("a.mts", "mpegts", "libx264"),
        ("a.vob", "vob", "mpeg2video"),
        ("a.M2V", "mpeg2video", "mpeg2video"),
        ("a.f4v", "f4v", "libx264"),
        ("a.asf", "asf", "wmv2"),
        ("a.ogg", "ogg", "libvpx"),
        ("a.3g2", "3g2", "mpeg4"),
        ("a.qt", "mov", "mpeg4"),
        ("a.apng", "apng", "apng"),
    ],
)
def test_containers_are_seen_and_read(tmp_path, name, format, codec):
    if codec == "apng":
        write_clip(np.zeros((9, 32, 48, 3), np.uint8), tmp_path / "a.gif", fps=25)
        images = [Image.fromarray(np.full((32, 48, 3), 25 * k, np.uint8)) for k in range(9)]
        images[0].save(
            tmp_path / name, format="png", save_all=True, append_images=images[1:], duration=40
        )
        (tmp_path / "a.gif").unlink()
    else:
        film(tmp_path / name, format, codec)
    assert list_media(LocalRoot(tmp_path, False)).videos == [name]
    info = probe(tmp_path / name)
    assert (info.height, info.width) == (32, 48) and 0.2 < info.last_seconds < 0.4


def test_media_that_are_not_read_are_said(tmp_path, caplog):
    film(tmp_path / "a.mp4")
    (tmp_path / "d").mkdir()
    for name in ("b.dv", "d/c.DV", "e.y4m", "f.mjpeg", "g.heic", "song.mp3", ".h.dv", "i.json"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "sound.ogg").write_bytes(b"OggS" + bytes(24) + b"\1vorbis")
    animation(tmp_path / "j.webp")
    media = list_media(LocalRoot(tmp_path, False))
    assert media.videos == ["a.mp4"] and media.pictures == []
    (record,) = caplog.records
    said = (
        "left out 2 .dv, 1 .heic, 1 .mjpeg, 1 .y4m, 1 animated .webp, which are not read; convert"
    )
    assert said in record.getMessage()


def test_a_name_in_metadata_that_is_not_taken_says_why(tmp_path):
    film(tmp_path / "a.mp4")
    (tmp_path / "d").mkdir()
    for name in ("d/b.dv", ".c.mp4", "e.json"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "sound.ogg").write_bytes(b"OggS" + bytes(24) + b"\1vorbis")
    animation(tmp_path / "f.webp")
    names = ["a.mp4", "d\\b.dv", ".c.mp4", "e.json", "f.webp", "sound.ogg", "gone.mp4"]
    rows = [json.dumps({"file_name": name, "text": "x"}) for name in names]
    (tmp_path / "metadata.jsonl").write_text("\n".join(rows))
    with pytest.raises(UsageError) as caught:
        VideoFolder(tmp_path, num_frames=5, size=(16, 24), fps=25)
    message = str(caught.value)
    assert f"names 1 videos that are not in {tmp_path}: 'gone.mp4', and 5 files in" in message
    for part in (
        ".c.mp4 (hidden)",
        "(.dv is not read)",
        "e.json (.json is no name of a video)",
        "f.webp (animated .webp is not read)",
        "sound.ogg (.ogg without video)",
    ):
        assert part in message


# ---- pictures -----------------------------------------------------------------------------------


@pytest.fixture
def mixed(tmp_path) -> Path:
    """Five videos, a short one among them, and pictures of two aspect ratios."""
    rng = np.random.default_rng(0)
    for k, (t, h, w) in enumerate([(9, 32, 48), (9, 32, 48), (9, 24, 64), (3, 32, 48)]):
        clip = rng.integers(0, 256, (t, h, w, 3), dtype=np.uint8)
        write_clip(clip, tmp_path / f"v{k}.mp4")
        (tmp_path / f"v{k}.txt").write_text(f"video {k}")
    picture(tmp_path / "a.jpg", 40)
    picture(tmp_path / "b.webp", 90, lossless=True)
    picture(tmp_path / "c.png", 140, (12, 40))
    exif = Image.Exif()
    exif[274] = 6  # lies on its side: upright it is as wide as c.png
    picture(tmp_path / "d.jpg", 190, (40, 12), exif=exif)
    return tmp_path


BUCKETS: dict[str, Any] = {
    "num_frames": 9,
    "size": (16, 24),
    "fps": 8.0,
    "buckets": [[1, 16, 24], [1, 16, 48]],
}


def test_pictures_are_left_out_and_it_is_said_how_to_take_them(mixed, caplog):
    options: dict[str, Any] = {"num_frames": 9, "size": (16, 24), "fps": 8.0}
    data = VideoFolder(mixed, **options)
    assert data.names == ["v0.mp4", "v1.mp4", "v2.mp4", "v3.mp4"]
    (record,) = caplog.records
    said = (
        "left out 4 pictures ('a.jpg', 'b.webp', 'c.png', 'd.jpg'); clips of one frame take them: "
    )
    assert said + "a bucket [1, height, width] (--bucket 1xHxW), or num_frames 1" in record.message
    rows = [{"file_name": n, "text": "x"} for n in [*data.names, "a.jpg", "b.webp", "c.png"]]
    (mixed / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert len(VideoFolder(mixed, **options)) == 4
    for path in mixed.glob("v*"):
        path.unlink()
    (mixed / "metadata.jsonl").unlink()
    with pytest.raises(
        UsageError, match="holds no video .*; of its 4 pictures, clips of one frame"
    ):
        VideoFolder(mixed, **options)


def test_pictures_and_videos_go_into_their_shapes(mixed, caplog):
    data = VideoFolder(mixed, **BUCKETS)
    with data.reader:
        found = {shape: [data.names[i] for i in clips] for shape, clips in data.buckets}
        assert found == {
            (1, 16, 24): ["a.jpg", "b.webp", "v3.mp4"],
            (1, 16, 48): ["c.png", "d.jpg"],
            (9, 16, 24): ["v0.mp4", "v1.mp4", "v2.mp4"],  # wide, but a clip rather than a picture
        }
        level = {data.names[i]: float(data.clip(i).float().mean()) for i in (0, 1, 2, 3)}
        assert level == pytest.approx(
            {"a.jpg": 40, "b.webp": 90, "c.png": 140, "d.jpg": 190}, abs=2
        )
        for i in range(len(data)):
            assert tuple(data.clip(i).shape) == (*data.shape(i), 3)
        assert data.captions(0) == ["picture a"] and not caplog.records


def test_pictures_alone(mixed):
    for path in mixed.glob("v*"):
        path.unlink()
    data = VideoFolder(mixed, num_frames=1, size=(16, 24), fps=8.0)
    batch = data.batch(0, range(4))
    assert batch.frames is not None and batch.frames.shape == (4, 1, 16, 24, 3)
    assert sorted(batch.captions) == [f"picture {k}" for k in "abcd"]


def test_a_picture_is_cropped_by_the_generator(tmp_path):
    ramp = np.arange(200, dtype=np.uint8)[None, :, None].repeat(20, 0).repeat(3, -1)
    Image.fromarray(ramp).save(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text("x")
    data = VideoFolder(tmp_path, num_frames=1, size=(20, 20), fps=8.0)
    starts = [int(data.clip(0, torch.Generator().manual_seed(s))[0, 0, 0, 0]) for s in range(9)]
    again = [int(data.clip(0, torch.Generator().manual_seed(s))[0, 0, 0, 0]) for s in range(9)]
    assert starts == again and len(set(starts)) > 5 and int(data.clip(0)[0, 0, 0, 0]) == 90


def test_a_picture_that_cannot_be_read_is_quarantined(mixed):
    noise = np.random.default_rng(0).integers(0, 256, (24, 36, 3), dtype=np.uint8)
    Image.fromarray(noise).save(mixed / "a.jpg")
    (mixed / "a.jpg").write_bytes((mixed / "a.jpg").read_bytes()[:-200])
    (mixed / "c.png").write_text("no picture")
    data = VideoFolder(mixed, **BUCKETS, max_bad_fraction=0.5)
    with data.reader:
        assert data.quarantine == {"c.png": "unreadable"}  # by its header, for its shape
        with pytest.raises(BadClip, match="a.jpg: unreadable: not read as a picture"):
            data.clip(0)
        assert data.quarantine == {"a.jpg": "unreadable", "c.png": "unreadable"}


@pytest.mark.parametrize("cached", [False, True])
def test_pictures_and_videos_train_together(mixed, tmp_path_factory, cached, capsys):
    work = tmp_path_factory.mktemp("work")
    codec = tiny.save(work / "codec", tiny.CODEC)
    spec: dict[str, Any] = {"name": "folder", "root": str(mixed), **BUCKETS}
    spec["buckets"] = [[1, 16, 24]]
    if cached:
        words = ["--codec", codec, "--data", "folder", "--root", mixed, "--frames", 9]
        words += ["--size", "16x24", "--bucket", "1x16x24", "--output", work / "cache"]
        assert encode.main([*map(str, words)]) == 0, capsys.readouterr().err
        cache = LatentShards(work / "cache")
        counts = dict(zip(cache.shapes, cache.order.counts, strict=True))
        assert counts == {(5, 1, 2, 3): 5, (5, 3, 2, 3): 3}
        spec = {"name": "latents", "path": str(work / "cache")}
    config = TrainConfig(
        model=tiny.denoiser(),
        objective={"name": "flow_matching", "given_frames": {"first": 0.5}},
        data=spec,
        output=str(work / "run"),
        codec=str(codec),
        steps=4,
        batch_size=2,
        save_every=4,
        log_every=1,
        num_workers=0,
    )
    data = build("data", config.data, batch_size=config.batch_size)
    batches = [data.batch(0, [2 * s, 2 * s + 1]) for s in range(4)]
    lengths = {
        (b.frames if b.latents is None else b.latents.swapaxes(1, 2)).shape[1] for b in batches
    }
    assert lengths == ({1, 3} if cached else {1, 9})
    made = denoiser_task(config, build("model", config.model), data, CPU)
    engine = assemble(made.model, made.objective, config, CPU, LocalEngine)
    assert loop.train(config, made, engine, lambda *_: None) == 0
    lines = (work / "run" / "metrics.jsonl").read_text("utf-8").splitlines()
    losses = [json.loads(line).get("loss") for line in lines]
    assert np.isfinite([x for x in losses if x is not None]).all()
