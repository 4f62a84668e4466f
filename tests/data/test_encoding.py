"""A latent cache grows shard by shard: whatever stops it, the same command goes on to the same files."""

import importlib.metadata
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from numbered import Numbers, as_latents, files, run

from vidcm.data import encoding, partial_cache
from vidcm.data.latents import LatentShards
from vidcm.data.source import Clips
from vidcm.errors import UsageError, VidcmError


@pytest.fixture
def whole(tmp_path) -> Path:
    found = run(tmp_path / "whole", Numbers())
    assert found == {"clips": 14, "decode-error": 3}
    return tmp_path / "whole"


def test_every_clip_is_there_once_or_accounted_for(whole):
    data = LatentShards(whole)
    assert len(data) == 14 and data.index["left_out"] == {"decode-error": 3}
    seen = []
    for shape, count in enumerate(data.order.counts):
        for row in range(count):
            i = int(data.latents(shape, row).flatten()[0] * 8)
            assert data.captions(shape, row) == [f"a{i}", f"b{i}"]
            seen.append(i)
    assert sorted(seen) == [i for i in range(17) if i % 5 != 3]
    records = [json.loads(f.read_text()) for f in sorted(whole.glob("shard-*.json"))]
    named = [name for r in records for name in [*r["names"], *r["left_out"]]]
    assert sorted(named) == sorted(f"clip {i}" for i in range(17))
    assert {f.suffix for f in whole.iterdir()} == {".json", ".safetensors"}


@pytest.mark.parametrize("stops_at", range(1, 9))
def test_an_interrupted_run_goes_on_to_the_same_files(tmp_path, whole, stops_at):
    calls = []

    def stops(frames: torch.Tensor) -> torch.Tensor:
        calls.append(frames)
        if len(calls) == stops_at:
            raise KeyboardInterrupt
        return as_latents(frames)

    first, then = Numbers(), Numbers()
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cache", first, stops)
    assert not (tmp_path / "cache").exists()
    counted: list[int] = []
    run(tmp_path / "cache", then, progress=counted.append)
    assert files(tmp_path / "cache") == files(whole) and sum(counted) == 17
    done = first.reads[: len(first.reads) // 3 * 3 - 3] if len(first.reads) > 3 else []
    assert not set(done) & set(then.reads)  # whole shards are not read again
    assert sorted(p.name for p in tmp_path.iterdir()) == ["cache", "whole"]


@pytest.mark.parametrize("kept", ["index.json", "shard-000005.json"])
def test_a_run_that_stops_at_its_very_end_goes_on(tmp_path, whole, kept, monkeypatch):
    """Between the last shard and the cache in its place."""
    real = os.replace
    with monkeypatch.context() as patch:

        def refuse(source, target):
            if Path(target).name in ("cache", kept):
                raise KeyboardInterrupt
            real(source, target)

        patch.setattr(os, "replace", refuse)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "cache", Numbers())
    run(tmp_path / "cache", Numbers())
    assert files(tmp_path / "cache") == files(whole)


@pytest.mark.parametrize("world", [2, 3, 9])
def test_any_number_of_processes_writes_the_same_files(tmp_path, whole, world):
    found = [
        run(tmp_path / "cache", Numbers(), rank=r, world=world) for r in reversed(range(world))
    ]
    assert found == [None] * (world - 1) + [{"clips": 14, "decode-error": 3}]
    assert files(tmp_path / "cache") == files(whole)


def test_another_number_of_processes_goes_on(tmp_path, whole):
    assert run(tmp_path / "cache", Numbers(), rank=1, world=3) is None
    assert run(tmp_path / "cache", Numbers()) is not None
    assert files(tmp_path / "cache") == files(whole)


def test_another_decoder_is_refused_with_a_way_to_go_on(tmp_path):
    """Its frames may differ by rounding; a finished cache stays readable."""

    def source(av: str, codec: str) -> Numbers:
        found = Numbers()
        found.facts = {**found.facts, "decoder": {"av": av, "libavcodec": codec}}
        return found

    assert run(tmp_path / "x", source("17.0.0", "61.1"), rank=1, world=2) is None
    with pytest.raises(UsageError) as caught:
        run(tmp_path / "x", source("18.1.0", "61.1"))
    assert "another decoder (av 17.0.0, not 18.1.0); go on with" in str(caught.value)
    assert "pip install av==17.0.0" in str(caught.value)
    assert run(tmp_path / "x", source("17.0.0", "61.1")) is not None
    assert len(LatentShards(tmp_path / "x")) == 14


def test_the_versions_of_the_decoder_are_in_the_index(tmp_path, videos):
    from vidcm.data.folder import VideoFolder
    from vidcm.data.folder_source import FolderSource

    facts = FolderSource(VideoFolder(videos, num_frames=5, size=(16, 24), fps=8.0)).facts
    assert set(facts["decoder"]) == {
        *("av", "libavcodec", "libavfilter", "libavformat", "libavutil", "libswscale")
    }
    assert facts["decoder"]["av"] == importlib.metadata.version("av")


LEFT = """
import os, signal, sys
from pathlib import Path
from vidcm.data import encoding, partial_cache
import numbered as t
count, real = 0, os.replace
def replace(source, target):
    real(source, target)
    global count
    count += 1
    if count == int(sys.argv[2]):
        os.kill(os.getpid(), signal.SIGKILL)
os.replace = replace
t.run(Path(sys.argv[1]), t.Numbers(mark=sys.argv[3]), overwrite=True)
"""


@pytest.mark.parametrize("replaces", [1, 2, 3, 15, 16, 17, 18])
def test_nothing_is_left_of_killed_processes(tmp_path, whole, replaces):
    """Killed right after a rename, by which files, index and cache come into place. Cases: S07."""
    cache = tmp_path / "cache"
    run(cache, Numbers(mark="old"))
    command = [sys.executable, "-c", LEFT, str(cache), str(replaces), "a"]
    done = subprocess.run(command, env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)})
    assert done.returncode == -signal.SIGKILL
    if (tmp_path / "cache.partial").exists():
        run(cache, Numbers(), overwrite=True)
    else:
        partial_cache.tidy(cache)
    assert files(cache) == files(whole)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["cache", "whole"]


def test_an_earlier_cache_is_back_if_the_run_that_replaced_it_is_given_up(tmp_path, whole):
    """Killed between the two renames, and then the command was another."""
    before = files(whole)
    command = [sys.executable, "-c", LEFT, str(whole), "17", "b"]
    subprocess.run(command, env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)})
    assert not whole.exists()
    with pytest.raises(UsageError, match="whole exists"):
        run(whole, Numbers(mark="c"))
    assert files(whole) == before


def test_other_clips_or_settings_are_refused(tmp_path):
    """Cases: C13."""
    assert run(tmp_path / "x", Numbers(), rank=1, world=2) is None
    with pytest.raises(UsageError, match="begun with another mark; go on with the same command"):
        run(tmp_path / "x", Numbers(mark="b"))
    with pytest.raises(UsageError, match="begun with another counts"):
        run(tmp_path / "x", Numbers((13, 5)))
    (tmp_path / "x.partial" / "plan.json").write_text("{")
    with pytest.raises(VidcmError, match="plan.json is damaged"):
        run(tmp_path / "x", Numbers())


@pytest.mark.parametrize("sees_the_cache", [True, False])
def test_a_rank_that_comes_too_late_leaves_the_cache_alone(
    tmp_path, whole, monkeypatch, sees_the_cache
):
    """Also one that looked for the cache just before another rank put it in place."""
    late, looked = Numbers(), []
    real = encoding.is_complete

    def is_complete(*arguments: Any) -> bool:
        looked.append(arguments)
        return (sees_the_cache or len(looked) > 1) and real(*arguments)

    if not sees_the_cache:
        exists = Path.exists
        monkeypatch.setattr(Path, "exists", lambda p, **k: p != whole and exists(p, **k))
    monkeypatch.setattr(encoding, "is_complete", is_complete)
    before = files(whole)
    assert run(whole, late, rank=1, world=2) is None
    assert late.reads == [] and files(whole) == before
    assert [p.name for p in tmp_path.iterdir()] == ["whole"]


def test_two_runs_do_not_do_the_same_work(tmp_path):
    """Cases: S06."""

    def again(frames: torch.Tensor) -> torch.Tensor:
        with pytest.raises(UsageError, match="another process encodes into .* as rank 0"):
            run(tmp_path / "x", Numbers())
        return as_latents(frames)

    assert run(tmp_path / "x", Numbers((3, 1)), again) is not None


def test_an_existing_cache_stays_until_the_new_one_is_whole(tmp_path, whole):
    before = files(whole)

    def stops(frames: torch.Tensor) -> torch.Tensor:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(whole, Numbers(mark="b"), stops, overwrite=True)
    assert files(whole) == before
    with pytest.raises(UsageError, match="whole exists; give another --output, or --overwrite"):
        run(whole, Numbers(mark="b"), world=2)
    run(whole, Numbers(mark="b"), overwrite=True)
    assert LatentShards(whole).index["mark"] == "b"


def test_latents_that_are_no_numbers_leave_no_shard(tmp_path):
    """Cases: V25."""
    with pytest.raises(VidcmError, match="not finite for clips 0 to 2"):
        run(tmp_path / "x", Numbers(), lambda frames: as_latents(frames) * torch.nan)
    assert not list((tmp_path / "x.partial").glob("shard-*"))


def test_no_cache_is_written_without_a_clip(tmp_path):
    class Nothing(Numbers):
        def read(self, numbers: range) -> Clips:
            empty = torch.empty((0, 1, 2, 2, 3), dtype=torch.uint8)
            return Clips(empty, [], [], {f"{i}": "missing" for i in numbers})

    with pytest.raises(VidcmError, match="no clip is left"):
        run(tmp_path / "x", Nothing())
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("wait", [pytest.param(0.0, marks=pytest.mark.slow), 0.3, 0.9])
def test_a_killed_command_goes_on_to_the_same_files(tmp_path, videos, wait):
    """SIGKILL at different moments of a real run; two processes share the rest. Cases: S07."""
    codec = tiny.save(tmp_path / "codec", tiny.CODEC)
    command = [sys.executable, "-m", "vidcm", "encode", "--codec", str(codec), "--device", "cpu"]
    command += ["--data", "folder", "--root", str(videos), "--frames", "5", "--size", "16x24"]
    command += ["--shard-size", "2", "--batch", "1", "--windows", "all", "--output"]
    subprocess.run([*command, str(tmp_path / "whole")], check=True, capture_output=True)
    cache = tmp_path / "cache"
    killed = subprocess.Popen([*command, str(cache)], stderr=subprocess.DEVNULL)
    partial = tmp_path / "cache.partial"
    while not list(partial.glob("shard-*.json")) and killed.poll() is None:
        time.sleep(0.01)
    time.sleep(wait)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    if cache.exists():  # it was too late, and may be the reason for files that are left
        partial_cache.tidy(cache)
    else:
        both = [
            subprocess.Popen(
                [*command, str(cache)], env=os.environ | {"RANK": str(r), "WORLD_SIZE": "2"}
            )
            for r in range(2)
        ]
        assert [p.wait() for p in both] == [0, 0]
    assert files(cache) == files(tmp_path / "whole")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["cache", "codec", "whole"]


@pytest.fixture(scope="module")
def videos(tmp_path_factory) -> Path:
    """Videos of several windows each."""
    import numpy as np

    from vidcm.media.write import write_clip

    folder = tmp_path_factory.mktemp("videos")
    for k in range(6):
        frames = np.random.default_rng(k).integers(0, 256, (26, 16, 24, 3), dtype=np.uint8)
        write_clip(frames, folder / f"{k}.mp4", fps=8)
        (folder / f"{k}.txt").write_text(f"video {k}")
    return folder


def test_shards_of_a_plan():
    plan = encoding._shards([5, 0, 3], 2)
    assert [list(numbers) for _, numbers in plan] == [[0, 1], [2, 3], [4], [5, 6], [7]]
