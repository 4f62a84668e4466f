"""Videos in tars, as WebDataset writes them, are those of a folder, read in their place."""

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from vidcm.data.folder import VideoFolder
from vidcm.errors import UsageError
from vidcm.media.media_file import BadClip, media_file, tar_index
from vidcm.media.read import probe, read_frames
from vidcm.media.write import write_clip

OPTIONS = {"num_frames": 5, "size": (16, 24), "fps": 8.0}


def film(path: Path, seed: int) -> bytes:
    frames = np.random.default_rng(seed).integers(0, 256, (26, 16, 24, 3), dtype=np.uint8)
    write_clip(frames, path, fps=8)
    return path.read_bytes()


@pytest.fixture(scope="module")
def films(tmp_path_factory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("films")
    names = ["0.mp4", "1.webm", "2.mp4"]
    return {name: film(folder / name, k) for k, name in enumerate(names)}


def write_tar(path: Path, contents: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, blob in contents.items():
            info = tarfile.TarInfo(name)
            info.size = len(blob)
            tar.addfile(info, io.BytesIO(blob))
    return path


def captions(data: VideoFolder) -> dict[str, list[str]]:
    return {name: data.captions(i) for i, name in enumerate(data.names)}


def test_a_tar_equals_the_folder_of_its_files(tmp_path, films):
    """Frames, length, random clips of training: the bits are the same."""
    (tmp_path / "plain").mkdir()
    (tmp_path / "packed").mkdir()
    contents = {}
    for name, blob in films.items():
        contents |= {name: blob, Path(name).stem + ".txt": f"film {name}".encode()}
    for name, blob in contents.items():
        (tmp_path / "plain" / name).write_bytes(blob)
    tar = write_tar(tmp_path / "packed" / "x,y;.tar", contents)
    plain = VideoFolder(tmp_path / "plain", **OPTIONS)
    for root, prefix in ((tmp_path / "packed", "x,y;.tar/"), (tar, "")):
        packed = VideoFolder(root, **OPTIONS)
        assert captions(packed) == {prefix + n: c for n, c in captions(plain).items()}
        for i in range(len(plain)):
            assert torch.equal(packed.clip(i, start=2.1), plain.clip(i, start=2.1))
            assert (
                packed.starts(i, None) == plain.starts(i, None) and len(plain.starts(i, None)) > 2
            )
        found, expected = (data.batch(3, range(4)) for data in (packed, plain))
        assert torch.equal(found.frames, expected.frames)
    assert sorted(p.name for p in tmp_path.rglob("*") if p.is_file()) == sorted(
        [*contents, tar.name]
    )


def test_real_members_are_read_as_their_files(tmp_path, shared_data):
    """Containers with their index at the end, in clusters, without one; rotated, cut and no video."""
    names = [
        "ax_mkv__sample.mkv",
        "ax_mp4__sample_fragmented.mp4",
        "ax_mp4__sample_rotate_and_reflect.mp4",
    ]
    names += ["ax_avi__sample-with-large-length.avi", "ax_mp4__sample_audio_only.mp4"]
    edge = shared_data / "media_edge"
    names += sorted(p.name for p in edge.iterdir() if p.suffix in (".gif", ".ts", ".264", ".webm"))[
        :8
    ]
    tar = write_tar(tmp_path / "a.tar", {name: (edge / name).read_bytes() for name in names})

    def outcome(path: Path) -> object:
        try:
            info = probe(path)
            times = np.linspace(0, info.last_seconds - info.hold_seconds, 3)
            return info, read_frames(path, times).frames.tobytes()
        except BadClip as bad:
            return bad.reason, bad.detail

    for name in names:
        assert outcome(tar / name) == outcome(edge / name), name


def test_tars_that_webdataset_wrote(tmp_path, films):
    webdataset = pytest.importorskip("webdataset")
    with webdataset.ShardWriter(str(tmp_path / "clips-%03d.tar"), maxcount=2, verbose=0) as sink:
        for k, (name, blob) in enumerate(films.items()):
            caption = {"txt": f"film {k}"} if k != 1 else {"json": {"caption": "film 1", "id": 7}}
            sink.write({"__key__": f"part/{k:05d}", Path(name).suffix[1:]: blob} | caption)
        sink.write({"__key__": "part/00003", "txt": "no video", "left.mp4": films["0.mp4"]})
    data = VideoFolder(tmp_path, **OPTIONS)
    assert captions(data) == {
        "clips-000.tar/part/00000.mp4": ["film 0"],
        "clips-000.tar/part/00001.webm": ["film 1"],
        "clips-001.tar/part/00002.mp4": ["film 2"],
        "clips-001.tar/part/00003.left.mp4": ["no video"],
    }
    assert media_file(tmp_path / "clips-001.tar/part/00002.mp4").read() == films["2.mp4"]


def test_pictures_and_metadata_of_tars(tmp_path, films):
    png = io.BytesIO()
    Image.new("RGB", (48, 32), (9, 90, 200)).save(png, "PNG")
    write_tar(tmp_path / "a.tar", {"v.mp4": films["0.mp4"], "p.png": png.getvalue()})
    rows = [{"file_name": f"a.tar/{name}", "text": name} for name in ("v.mp4", "p.png")]
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    data = VideoFolder(tmp_path, **OPTIONS, buckets=[(1, 16, 24)])
    assert captions(data) == {"a.tar/p.png": ["p.png"], "a.tar/v.mp4": ["v.mp4"]}
    assert [shape for shape, _ in data.buckets] == [(1, 16, 24), (5, 16, 24)]
    assert data.clip(0)[0, 0, 0].tolist() == [9, 90, 200]


def test_s02_a_cut_tar_gives_what_comes_before(tmp_path, films, caplog):
    contents = {"0.mp4": films["0.mp4"], "0.txt": b"a", "1.mp4": films["2.mp4"], "1.txt": b"b"}
    tar = write_tar(tmp_path / "a.tar", contents)
    start, size = tar_index(tar).ranges["1.mp4"]
    tar.write_bytes(tar.read_bytes()[: start + size // 2])
    assert captions(VideoFolder(tmp_path, **OPTIONS)) == {"a.tar/0.mp4": ["a"]}
    assert "a.tar: it is cut" in caplog.text


def test_s03_unsafe_members_are_left_out(tmp_path, films, caplog):
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name in ("../x.mp4", "/etc/y.mp4", "a/../../z.mp4", "good.mp4"):
            info = tarfile.TarInfo(name)
            info.size = len(films["0.mp4"])
            tar.addfile(info, io.BytesIO(films["0.mp4"]))
        for name, kind in (("l.mp4", tarfile.SYMTYPE), ("d.mp4", tarfile.CHRTYPE)):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "/etc/passwd"
            tar.addfile(info)
    data = VideoFolder(tmp_path, **OPTIONS, missing_captions="empty")
    assert data.names == ["a.tar/good.mp4"]
    assert "5 members are links or devices, or lead out of it" in caplog.text


@pytest.mark.parametrize("name", ["a.tar.gz", "a.tgz", "a.tar.zst"])
def test_compressed_tars_are_refused(tmp_path, name):
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises(
        UsageError, match="is compressed and cannot be read in place; write a plain"
    ):
        VideoFolder(tmp_path, **OPTIONS)


def test_what_is_no_tar_is_refused(tmp_path):
    (tmp_path / "a.tar").write_bytes(b"no tar" * 500)
    with pytest.raises(UsageError, match="a.tar cannot be read: no uncompressed tar"):
        VideoFolder(tmp_path, **OPTIONS)


def test_a_member_that_is_not_there_is_missing(tmp_path, films):
    tar = write_tar(tmp_path / "a.tar", {"0.mp4": films["0.mp4"], "e.mp4": b""})
    for name, reason in (("1.mp4", "missing"), ("e.mp4", "empty")):
        with pytest.raises(BadClip) as caught:
            probe(tar / name)
        assert caught.value.reason == reason
