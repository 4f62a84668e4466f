"""Videos and latent caches behind a URL: copied once, bounded, checked, and plain words when offline."""

import json
import os
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch

from vidcm.data import remote
from vidcm.data.encoding import encode_cache
from vidcm.data.folder import VideoFolder
from vidcm.data.latents import LatentShards
from vidcm.data.remote import RemoteFolder
from vidcm.data.source import Clips
from vidcm.errors import UsageError, VidcmError
from vidcm.files import file_hash
from vidcm.media.media_file import BadClip
from vidcm.media.write import write_clip

fsspec = pytest.importorskip("fsspec")
OPTIONS = {"num_frames": 5, "size": (16, 24), "fps": 8.0}
GB = 1e9


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch) -> Path:
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("VIDCM_CACHE", str(folder))
    monkeypatch.setattr(remote, "PAUSE_SECONDS", 0.0)
    return folder / "remote"


@pytest.fixture
def memory() -> Iterator[fsspec.AbstractFileSystem]:
    files = fsspec.filesystem("memory")
    yield files
    files.rm("/", recursive=True)


@pytest.fixture
def videos(tmp_path) -> Path:
    root = tmp_path / "site" / "videos"
    root.mkdir(parents=True)
    for k in range(3):
        frames = np.random.default_rng(k).integers(0, 256, (9, 16, 24, 3), dtype=np.uint8)
        write_clip(frames, root / f"{k}.mp4", fps=8)
        (root / f"{k}.txt").write_text(f"film {k}")
    return root


@pytest.fixture
def server(tmp_path) -> Iterator[str]:
    """A web server of tmp_path/site."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *arguments):  # noqa: D102
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=tmp_path / "site")) as http:
        threading.Thread(target=http.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{http.server_address[1]}"
        http.shutdown()


def copies(cache: Path) -> list[str]:
    return sorted(p.name for p in cache.glob("*/*"))


def same_clips(url: str, root: Path) -> None:
    there, here = VideoFolder(url, **OPTIONS), VideoFolder(root, **OPTIONS)
    assert there.names == here.names
    assert [there.captions(i) for i in range(3)] == [here.captions(i) for i in range(3)]
    for i in range(3):
        assert torch.equal(there.clip(i), here.clip(i))
    found, expected = (data.batch(1, range(4)) for data in (there, here))
    assert torch.equal(found.frames, expected.frames)


def test_videos_in_a_bucket(memory, videos, cache):
    memory.put(str(videos), "/bucket/videos", recursive=True)
    same_clips("memory://bucket/videos", videos)
    assert copies(cache) == ["0.mp4", "1.mp4", "2.mp4"]  # captions need no copy


def test_videos_of_a_web_server(server, videos):
    same_clips(f"{server}/videos", videos)


def test_tars_of_a_web_server(server, videos, cache, tmp_path):
    import tarfile

    tars = tmp_path / "site" / "tars"
    tars.mkdir()
    with tarfile.open(tars / "a.tar", "w") as tar:
        for file in sorted(videos.iterdir()):
            tar.add(file, file.name)
    for url in (f"{server}/tars", f"{server}/tars/a.tar"):
        data = VideoFolder(url, **OPTIONS)
        assert data.names == ["a.tar/0.mp4", "a.tar/1.mp4", "a.tar/2.mp4"]
        assert data.captions(1) == ["film 1"]
        assert torch.equal(data.clip(1), VideoFolder(videos, **OPTIONS).clip(1))
    assert set(copies(cache)) == {"a.tar"}


def fill(memory, count: int, size: int) -> RemoteFolder:
    for k in range(count):
        memory.pipe(f"/b/{k}", bytes([k]) * size)
    return RemoteFolder("memory://b", 2.5 * size / GB)


def test_the_cache_is_bounded_and_keeps_what_is_in_use(memory, cache):
    folder = fill(memory, 4, 1000)
    with folder.local("0") as first:
        for k in (1, 2, 3):
            with folder.local(str(k)) as path:
                assert path.read_bytes() == bytes([k]) * 1000
            assert first.read_bytes() == bytes(1000)
            assert sum(p.stat().st_size for p in cache.glob("*/*")) <= 2500
    assert copies(cache) == ["0", "3"]


def test_what_was_used_longest_ago_goes_first(memory, cache):
    folder = fill(memory, 3, 1000)
    for moment, name in enumerate(["0", "1", "0", "2"]):
        with folder.local(name) as path:
            pass
        os.utime(path.parent, (moment, moment))
    assert copies(cache) == ["0", "2"]


def test_a_file_larger_than_the_cache_is_refused(memory):
    memory.pipe("/b/x", bytes(3000))
    with (
        pytest.raises(UsageError, match=r"memory://b/x has 3e-06 GB, more than the cache may hold"),
        RemoteFolder("memory://b", 2e-6).local("x"),
    ):
        pass


def test_a_copy_is_made_once_and_anew_when_the_file_changes(memory, cache, monkeypatch):
    folder = fill(memory, 1, 1000)
    made = []
    real = memory.get_file
    monkeypatch.setattr(
        type(memory), "get_file", lambda self, a, b, **k: made.append(a) or real(a, b, **k)
    )
    for _ in range(3):
        with folder.local("0"):
            pass
    assert len(made) == 1
    memory.pipe("/b/0", b"other")
    with RemoteFolder("memory://b", 1).local("0") as path:
        assert path.read_bytes() == b"other"
    assert len(made) == 2


def test_many_threads_make_one_copy(memory, monkeypatch):
    folder = fill(memory, 1, 1000)
    made = []
    real = memory.get_file
    monkeypatch.setattr(
        type(memory), "get_file", lambda self, a, b, **k: made.append(a) or real(a, b, **k)
    )

    def use():
        with folder.local("0") as path:
            assert path.read_bytes() == bytes(1000)

    threads = [threading.Thread(target=use) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 1


def test_failures_that_pass_are_tried_again(memory, monkeypatch):
    folder = fill(memory, 1, 10)
    real, failures = memory.get_file, [OSError("reset"), TimeoutError("slow")]

    def fails(self, *arguments, **options):
        if failures:
            raise failures.pop()
        return real(*arguments, **options)

    monkeypatch.setattr(type(memory), "get_file", fails)
    with folder.local("0") as path:
        assert path.read_bytes() == bytes(10)
    failures += [OSError("reset")] * 3
    memory.pipe("/b/0", b"new")
    with (
        pytest.raises(VidcmError, match=r"memory://b/0 cannot be reached in 3 attempts \(reset\)"),
        RemoteFolder("memory://b", 1).local("0"),
    ):
        pass


def test_an_address_that_nobody_answers(videos):
    with pytest.raises(VidcmError, match=r"http://127.0.0.1:9/x cannot be reached .* online\?"):
        VideoFolder("http://127.0.0.1:9/x", **OPTIONS)


def test_unknown_protocols_are_refused():
    with pytest.raises(UsageError, match="nosuch://x is no address that fsspec reads"):
        VideoFolder("nosuch://x", **OPTIONS)


def test_a_video_that_is_gone_is_left_out(memory, videos):
    memory.put(str(videos), "/b/v", recursive=True)
    data = VideoFolder("memory://b/v", **OPTIONS, max_bad_fraction=1)
    memory.rm("/b/v/1.mp4")
    with pytest.raises(BadClip, match="memory://b/v/1.mp4: missing: no such file"):
        data.clip(1)
    assert data.quarantine == {"1.mp4": "missing"}


# ---- latent caches ------------------------------------------------------------------------------


class Numbers:
    facts = {"data": "numbers"}
    counts = (13, 4)
    duplicate_bits = None

    def read(self, numbers: range) -> Clips:
        width = 2 if numbers.start < 13 else 3
        frames = torch.tensor(list(numbers), dtype=torch.uint8).view(-1, 1, 1, 1, 1)
        names = [str(i) for i in numbers]
        return Clips(frames.expand(-1, 1, 2, width, 3), [[name] for name in names], names, {})


@pytest.fixture
def latents(tmp_path) -> Path:
    folder = tmp_path / "site" / "latents"
    encode_cache(
        Numbers(),
        lambda frames: frames.permute(0, 4, 1, 2, 3).float(),
        folder,
        codec="c",
        batch_size=4,
        shard_size=4,
    )
    return folder


def same_batches(url: str, folder: Path) -> None:
    there, here = LatentShards(url, 2), LatentShards(folder, 2)
    for step in range(8):
        found, expected = (data.batch(5, range(2 * step, 2 * step + 2)) for data in (there, here))
        assert torch.equal(found.latents, expected.latents) and found.captions == expected.captions


def test_a_remote_cache_trains_as_a_local_one(memory, server, latents, cache):
    memory.put(str(latents), "/b/latents", recursive=True)
    same_batches("memory://b/latents", latents)
    same_batches(f"{server}/latents", latents)
    assert "index.json" not in copies(cache)


def test_remote_shards_stay_within_the_bound(memory, latents, cache, tmp_path):
    memory.put(str(latents), "/b/latents", recursive=True)
    size = max(f.stat().st_size for f in latents.glob("*.safetensors"))
    data, here = LatentShards("memory://b/latents", cache_gb=2.5 * size / GB), LatentShards(latents)
    for position in range(40):
        assert torch.equal(data.batch(0, [position]).latents, here.batch(0, [position]).latents)
        assert sum(p.stat().st_size for p in cache.glob("*/*")) <= 2.5 * size


def test_a_damaged_remote_shard_is_one_line(memory, latents, cache):
    memory.put(str(latents), "/b/latents", recursive=True)
    name = json.loads((latents / "index.json").read_text())["shards"][1]["name"]
    blob = bytearray((latents / name).read_bytes())
    blob[-1] ^= 1
    memory.pipe(f"/b/latents/{name}", bytes(blob))
    data = LatentShards("memory://b/latents")
    with pytest.raises(
        VidcmError, match=f"memory://b/latents/{name} is damaged .its sha256"
    ) as caught:
        data.batch(0, range(13))
    assert "\n" not in str(caught.value) and name not in copies(cache)


def test_a_missing_remote_shard_is_one_line(memory, latents):
    memory.put(str(latents), "/b/latents", recursive=True)
    name = json.loads((latents / "index.json").read_text())["shards"][1]["name"]
    memory.rm(f"/b/latents/{name}")
    with pytest.raises(VidcmError, match=f"memory://b/latents/{name}: missing"):
        LatentShards("memory://b/latents").batch(0, range(13))
    with pytest.raises(UsageError, match="memory://b/nothing holds no latents"):
        LatentShards("memory://b/nothing")


def test_the_index_has_the_hash_of_each_shard(latents):
    for shard in LatentShards(latents).index["shards"]:
        assert shard["sha256"] == file_hash(latents / shard["name"])
