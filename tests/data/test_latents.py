"""Latent caches: the codec is checked, epochs are permutations, positions are samples."""

import json
import shutil
import subprocess
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import av
import numpy as np
import pytest
import tiny
import torch

from vidcm.cli import encode
from vidcm.codecs.causal_vae import CausalVAE
from vidcm.data.folder import VideoFolder
from vidcm.data.latents import LatentShards, stored_captions
from vidcm.errors import UsageError, VidcmError
from vidcm.media.pixels import to_video
from vidcm.store import load_model, read_card

COUNT = 23


def parts():
    for start in range(0, COUNT, 5):
        rows = torch.arange(start, min(start + 5, COUNT)).float()
        latents = rows.view(-1, 1, 1, 1, 1).expand(-1, 3, 2, 1, 2)
        yield latents, [[f"{int(i)}a", f"{int(i)}b"] for i in rows]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tiny.latent_cache(tmp_path / "cache", parts(), "f" * 64, {"data": "x"})


def rows(batch) -> list[int]:
    assert batch.latents is not None
    return batch.latents[:, 0, 0, 0, 0].int().tolist()


def test_what_was_written_comes_back(folder):
    data = LatentShards(folder)
    assert len(data) == COUNT and data.index["clips"] == COUNT and data.index["data"] == "x"
    assert len(data.index["shards"]) == 5
    batch = data.batch(0, range(9))
    assert batch.latents.shape == (9, 3, 2, 1, 2) and batch.latents.dtype == torch.float32
    assert [int(c[:-1]) for c in batch.captions] == rows(batch)


def test_epochs_are_permutations_and_differ(folder):
    data = LatentShards(folder)
    epochs = [rows(data.batch(4, range(e * COUNT, (e + 1) * COUNT))) for e in range(3)]
    assert all(sorted(e) == list(range(COUNT)) for e in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    assert rows(LatentShards(folder).batch(5, range(COUNT))) != epochs[0]


def test_a_position_is_the_same_sample_in_any_order_or_thread(folder):
    data = LatentShards(folder)
    whole = data.batch(4, range(60))
    fresh = LatentShards(folder)
    for position in (59, 0, 31):
        one = fresh.batch(4, [position])
        assert one.captions == [whole.captions[position]] and one.latents.equal(
            whole.latents[[position]]
        )
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda p: fresh.batch(4, [p]).captions[0], range(60)))
    assert found == whole.captions


def test_all_captions_are_used(folder):
    said = Counter(c[-1] for c in LatentShards(folder).batch(0, range(20 * COUNT)).captions)
    assert said["a"] == pytest.approx(said["b"], rel=0.3)


def test_another_codec_is_refused(folder):
    """Cases: C13."""
    data = LatentShards(folder)
    data.check_codec("f" * 64)
    with pytest.raises(
        UsageError, match="made by codec ffffffffffff, not eeeeeeeeeeee; encode again"
    ):
        data.check_codec("e" * 64)


def test_damage_is_named(folder, tmp_path):
    """Cases: S01, S05."""
    with pytest.raises(UsageError, match="holds no latents .index.json is missing"):
        LatentShards(tmp_path)
    shard = folder / "shard-000001.safetensors"
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-9])
    with pytest.raises(VidcmError, match="shard-000001.safetensors is missing or damaged; encode"):
        LatentShards(folder)
    shard.write_bytes(b"x" * len(whole))
    with pytest.raises(VidcmError, match="shard-000001.safetensors cannot be read .*encode again"):
        LatentShards(folder).batch(0, range(COUNT))
    shard.unlink()
    with pytest.raises(VidcmError, match="shard-000001.safetensors is missing"):
        LatentShards(folder)
    for text in ("{", "{}", "[]", '{"shards": [{"name": "x"}]}'):
        (folder / "index.json").write_text(text)
        with pytest.raises(VidcmError, match="index.json is damaged; encode again"):
            LatentShards(folder)


def test_captions_of_any_letters_come_back(tmp_path):
    texts = [["", "ein Ork läuft"], ["獣人が歩く 🧌"], ["a\nb", "c", ""]]
    data = LatentShards(
        tiny.latent_cache(tmp_path / "x", [(torch.zeros(3, 1, 1, 1, 1), texts)], "c")
    )
    assert [data.captions(0, row) for row in range(3)] == texts


def test_memory_does_not_grow_with_the_cache(tmp_path):
    """Shards are mapped: opening 120 MB and reading a few clips of it needs a few MB."""
    parts = ((torch.zeros(16, 60, 8, 8, 16) + i, [["x"]] * 16) for i in range(64))
    folder = tiny.latent_cache(tmp_path / "cache", parts, "c")
    assert sum(f.stat().st_size for f in folder.iterdir()) > 100e6
    code = (
        "import resource, sys, torch\n"
        "from vidcm.data.latents import LatentShards\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "data = LatentShards(sys.argv[1])\n"
        "assert len(data.batch(0, range(64)).captions) == 64\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder)], capture_output=True, text=True, check=True
    )
    assert int(done.stdout) < 60_000  # kB


# --- the command ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def codec(tmp_path_factory) -> Path:
    return tiny.save(tmp_path_factory.mktemp("codec") / "final", tiny.CODEC)


@pytest.fixture(scope="module")
def videos(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("videos")
    for k in range(3):
        with av.open(str(folder / f"{k}.mp4"), "w") as out:
            stream = out.add_stream("libx264", rate=8)
            stream.height, stream.width, stream.pix_fmt = 32, 48, "yuv420p"
            for i in range(9):
                image = np.full((32, 48, 3), 40 * k + 9 * i, np.uint8)
                out.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
            out.mux(stream.encode(None))
        (folder / f"{k}.txt").write_text(f"clip {k}")
    return folder


def test_encode_makes_a_cache_that_names_its_codec(codec, videos, tmp_path, capsys):
    arguments = [
        "--codec",
        codec,
        "--data",
        "folder",
        "--root",
        videos,
        "--output",
        tmp_path / "cache",
    ]
    options = ["--frames", "5", "--size", "16x24", "--batch", "2", "--device", "cpu"]
    command = [*map(str, arguments), *options]
    assert encode.main(command) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'cache'}: 3 clips\n"
    data = LatentShards(tmp_path / "cache")
    data.check_codec(read_card(codec)["sha256"])
    batch = data.batch(0, range(3))
    assert sorted(batch.captions) == ["clip 0", "clip 1", "clip 2"]
    assert batch.latents.shape == (3, 5, 2, 2, 3)
    # What was cached is what the codec makes of the frames.
    folder = VideoFolder(videos, num_frames=5, size=(16, 24), fps=8.0)
    frames = torch.stack([folder.clip(i) for i in range(3)])
    latents = load_model(codec, CausalVAE).encode(to_video(frames))
    order = [int(c[-1]) for c in batch.captions]
    torch.testing.assert_close(batch.latents, latents[order], atol=2e-2, rtol=2e-3)
    assert encode.main(command) == 2
    assert "exists; give another --output, or --overwrite" in capsys.readouterr().err
    assert encode.main([*command, "--overwrite"]) == 0
    # --overwrite is for caches: the clips themselves would be gone.
    swapped = [str(videos) if word == str(tmp_path / "cache") else word for word in command]
    assert encode.main([*swapped, "--overwrite"]) == 2
    assert "is no latent cache, and --overwrite would replace all of it" in capsys.readouterr().err
    assert len(list(videos.glob("*.mp4"))) == 3


def test_encode_takes_all_captions_of_a_video(codec, videos, tmp_path, capsys):
    root = shutil.copytree(videos, tmp_path / "clips")
    rows = [{"file_name": f"{k}.mp4", "text": [f"clip {k}", f"number {k}"]} for k in range(3)]
    (root / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    command = ["--codec", codec, "--data", "folder", "--root", root, "--output", tmp_path / "cache"]
    options = ["--frames", "5", "--size", "16x24", "--device", "cpu"]
    assert encode.main([*map(str, command), *options]) == 0
    assert [*stored_captions(tmp_path / "cache")] == [t for row in rows for t in row["text"]]


def test_encode_leaves_out_what_it_is_told_to(codec, videos, tmp_path, capsys):
    """Videos without a caption or too short stop the command, or are left out and counted."""
    root = shutil.copytree(videos, tmp_path / "clips")
    (root / "0.txt").unlink()
    (root / "bad.mp4").write_bytes(b"text")
    (root / "bad.txt").write_text("not a video")
    command = ["--codec", str(codec), "--data", "folder", "--root", str(root), "--device", "cpu"]
    command += ["--frames", "5", "--size", "16x24", "--output"]
    assert encode.main([*command, str(tmp_path / "a")]) == 2
    assert "set missing_captions (--missing-captions) to 'empty'" in capsys.readouterr().err
    assert encode.main([*command, str(tmp_path / "b"), "--missing-captions", "skip"]) == 1
    assert "raise max_bad_fraction (--max-bad-fraction), which is 0.01" in capsys.readouterr().err
    for policy, count in (("skip", 2), ("empty", 3)):
        options = [
            str(tmp_path / policy),
            "--missing-captions",
            policy,
            "--max-bad-fraction",
            "0.4",
        ]
        assert encode.main([*command, *options]) == 0
        assert capsys.readouterr().out.endswith(f": {count} clips; left out: 1 not-video\n")
        data = LatentShards(tmp_path / policy)
        empty = [""] in [data.captions(0, row) for row in range(count)]
        assert empty == (policy == "empty")
        assert data.index["left_out"] == {"not-video": 1}


@pytest.mark.parametrize(
    "options, message",
    [
        (["--data", "folder"], "--data folder needs --root"),
        (
            ["--data", "lpc", "--art", "/none"],
            "the LPC art is not at /none, where data.art or --art says",
        ),
        (
            ["--data", "folder", "--root", "x", "--size", "64"],
            "argument --size: got '64', expected",
        ),
        (["--data", "folder", "--root", "x", "--size", "²x24"], "argument --size: got '²x24'"),
        (["--data", "folder", "--missing-captions", "no"], "argument --missing-captions: "),
        (["--data", "folder", "--max-bad-fraction", "2"], "argument --max-bad-fraction: got '2'"),
        (
            ["--data", "folder", "--root", "x", "--size", "20x24"],
            "height 20 is not a multiple of 8",
        ),
        (["--data", "folder", "--root", "x", "--frames", "8"], "8 frames do not fit"),
        (["--data", "folder", "--root", "x", "--count", "5"], "--count is for --data lpc"),
        (["--data", "lpc", "--root", "x"], "--root is for --data folder"),
        (["--data", "lpc", "--art", "x", "--size", "8x8"], "--size is for --data folder"),
        (["--data", "folder", "--root", "x", "--size", "80000x80000"], "GiB of memory"),
    ],
)
def test_encode_refuses_before_it_starts(codec, tmp_path, capsys, monkeypatch, options, message):
    monkeypatch.delenv("VIDCM_LPC_ART", raising=False)
    try:
        code = encode.main(["--codec", str(codec), "--output", str(tmp_path / "out"), *options])
    except SystemExit as left:  # argparse's own refusals
        code = left.code
    assert code == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and message in error and error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_a_scan_reports_what_encode_would_leave_out(codec, videos, tmp_path, capsys):
    root = shutil.copytree(videos, tmp_path / "clips")
    (root / "bad.mp4").write_bytes(b"text")
    (root / "bad.txt").write_text("not a video")
    command = ["--data", "folder", "--root", str(root), "--frames", "5", "--size", "16x24"]
    assert encode.main([*command, "--scan", "--max-bad-fraction", "0.5"]) == 0
    out = capsys.readouterr().out
    report = "not-video: bad.mp4\n3 clips of 5x16x24 (4)\nleft out: 1 not-video\n"
    assert out.startswith(report) and "aspects: 4:3 3\n" in out
    assert encode.main([*command, "--scan", "--json"]) == 1
    captured = capsys.readouterr()
    report = json.loads(captured.out)
    assert report["clips"] == 3 and report["left_out"] == {"bad.mp4": "not-video"}
    assert "1 of 4 clips cannot be used, more than --max-bad-fraction 0.01" in captured.err
    assert [p.name for p in tmp_path.iterdir()] == ["clips"]
    for options, message in (
        (["--json"], "add --scan"),
        (["--scan", "--codec", str(codec)], "--codec and --output out"),
        ([], "--codec, --output missing"),
    ):
        assert encode.main([*command, *options]) == 2
        assert message in capsys.readouterr().err


HUGE = """
import json, resource, sys, time
from vidcm.data.latents import LatentShards
began = time.perf_counter()
data = LatentShards(sys.argv[1], batch_size=64)
opened = time.perf_counter() - began
assert len(data) == 100_000_000
took, rows = [], []
for k in range(2000):
    position = k * 104_729 * 65_537
    began = time.perf_counter()
    shape, row = data.order.at(5, position)
    entry, row = data.place(shape, row)
    took.append(time.perf_counter() - began)
    assert 0 <= row < entry["clips"]
memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
print(json.dumps({"opened": opened, "at": sorted(took)[1000], "memory": memory}))
"""


@pytest.mark.slow
@pytest.mark.parametrize("shapes", [1, 5])
def test_a_hundred_million_clips(tmp_path, shapes):
    """An index of as many synthetic entries, with empty files, opens in 5 s and 1 GB; 1 ms a position."""
    clips, count = 10_000, 10_000
    entries = []
    for k in range(count):
        name = f"shard-{k:06d}.safetensors"
        with (tmp_path / name).open("wb") as file:
            file.truncate(4096)
        shape = [192, 3, 8, 8 + k * shapes // count]
        entries.append(
            {"name": name, "clips": clips, "shape": shape, "bytes": 4096, "sha256": "0" * 64}
        )
    index = {"codec": "c", "clips": clips * count, "shards": entries}
    (tmp_path / "index.json").write_text(json.dumps(index))
    done = subprocess.run(
        [sys.executable, "-c", HUGE, str(tmp_path)], capture_output=True, text=True, check=True
    )
    found = json.loads(done.stdout)
    assert found["opened"] < 5 and found["memory"] < 1e9 and found["at"] < 1e-3, found
