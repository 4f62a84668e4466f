"""Clips of several shapes: every step has one, every clip its turn, and a run resumes exactly."""

import json
import shutil
import time
import tracemalloc
from collections import Counter
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from torch import Tensor

from vidcm.cli import encode
from vidcm.config import TrainConfig
from vidcm.data.folder import VideoFolder
from vidcm.data.latents import LatentShards
from vidcm.data.loader import batches
from vidcm.data.order import Order, shuffled
from vidcm.errors import UsageError
from vidcm.media.write import write_clip
from vidcm.registry import build
from vidcm.store import read_card
from vidcm.train import loop
from vidcm.train.checkpoint import folder_of
from vidcm.train.denoiser_task import denoiser_task
from vidcm.train.engine import LocalEngine
from vidcm.train.roles import assemble

CPU = torch.device("cpu")
SHAPES = {(5, 2, 2, 3): 11, (5, 3, 1, 2): 6}  # latents (c t h w): how many


# --- order ----------------------------------------------------------------------------------------


def test_steps_have_one_shape_and_an_epoch_shows_every_clip_at_most_once():
    order = Order([11, 6, 2], batch_size=4)
    epoch = order.steps
    assert epoch == 2 + 1 + 1
    for e in range(5):
        found = [order.at(7, p) for p in range(e * epoch * 4, (e + 1) * epoch * 4)]
        for step in range(epoch):
            assert len({shape for shape, _ in found[step * 4 : step * 4 + 4]}) == 1
        seen = Counter(found)
        assert [sum(n for (k, _), n in seen.items() if k == s) for s in range(3)] == [8, 4, 4]
        assert all(n == 1 for (k, _), n in seen.items() if k < 2)
        assert all(n == 2 for (k, _), n in seen.items() if k == 2)  # fewer than a step needs
    everything = {order.at(7, p) for p in range(epoch * 4 * 20)}
    assert everything == set(product([0], range(11))) | set(product([1], range(6))) | {
        (2, 0), (2, 1)
    }  # fmt: skip


def test_epochs_seeds_and_shapes_are_shuffled_apart():
    order, epoch = Order([8, 8], batch_size=4), 16

    def clips(seed: int, e: int, shape: int) -> list[int]:
        found = [order.at(seed, p) for p in range(e * epoch, (e + 1) * epoch)]
        return [i for k, i in found if k == shape]

    drawn = [clips(*where) for where in [(0, 0, 0), (0, 0, 1), (0, 1, 0), (1, 0, 0)]]
    assert all(sorted(one) == list(range(8)) for one in drawn)
    assert len({tuple(one) for one in drawn}) == 4


def test_one_shape_is_ordered_as_if_there_were_no_others():
    order = Order([7], batch_size=4)
    expected = [np.random.default_rng([3, e]).permutation(7).tolist() for e in range(3)]
    assert [order.at(3, p)[1] for p in range(21)] == sum(expected, [])


@pytest.mark.parametrize("count", [2**16 + 1, 2**17 - 3, 100_003])
def test_large_epochs_are_permutations_too(count):
    found = np.array([shuffled(count, place, 5, 1) for place in range(count)])
    assert (np.sort(found) == np.arange(count)).all()
    other = np.array([shuffled(count, place, 5, 2) for place in range(0, count, 7)])
    assert (other != found[::7]).mean() > 0.99


def test_large_epochs_are_mixed_well():
    """Places and items are independent, and so are items of neighbouring places: chi-squared."""
    count, bins = 300_007, 32
    places = np.random.default_rng(0).integers(0, count - 1, 40_000)
    items = np.array([[shuffled(count, int(p) + k, 9, 4) for k in (0, 1)] for p in places])
    for a, b in (
        (places, items[:, 0]),
        (items[:, 0], items[:, 1]),
        (items[:, 0] % bins * count // bins, items[:, 1]),
    ):
        table = np.histogram2d(a, b, bins, [[0, count], [0, count]])[0]
        expected = table.sum(1, keepdims=True) * table.sum(0) / table.sum()
        chi = ((table - expected) ** 2 / np.maximum(expected, 1e-9)).sum()
        freedom = (bins - 1) ** 2
        assert abs(chi - freedom) < 6 * (2 * freedom) ** 0.5


def test_the_order_of_a_hundred_million_clips_takes_no_memory_and_no_time():
    tracemalloc.start()
    order = Order([60_000_000, 40_000_000], batch_size=64)
    found = {order.at(1, 64 * step + 5) for step in range(0, 1_500_000, 1500)}
    assert tracemalloc.get_traced_memory()[1] < 1e6
    tracemalloc.stop()
    start = time.process_time()
    again = {order.at(1, 64 * step + 5) for step in range(0, 1_500_000, 1500)}
    assert time.process_time() - start < 1  # 1000 positions
    assert again == found and len(found) == 1000 and {shape for shape, _ in found} == {0, 1}


# --- latents --------------------------------------------------------------------------------------


def cache(folder: Path, codec: str = "f" * 64) -> Path:
    def parts():
        number = 0
        for shape, count in SHAPES.items():
            for start in range(0, count, 4):
                rows = min(4, count - start)
                x = torch.randn(rows, *shape)
                x[:, 0, 0, 0, 0] = torch.arange(number, number + rows)
                yield x, [[f"clip {number + i}"] for i in range(rows)]
                number += rows

    return tiny.latent_cache(folder, parts(), codec)


def number(x: Tensor) -> list[int]:
    return x[:, 0, 0, 0, 0].int().tolist()


def test_shards_of_several_shapes_keep_their_captions(tmp_path):
    data = LatentShards(cache(tmp_path / "x"), batch_size=4)
    assert len(data) == 17 and len(data.index["shards"]) == 3 + 2
    shapes = Counter()
    for step in range(40):
        batch = data.batch(0, range(4 * step, 4 * step + 4))
        assert batch.latents is not None
        assert batch.captions == [f"clip {n}" for n in number(batch.latents)]
        shapes[tuple(batch.latents.shape[1:])] += 1
    (two, one) = (shapes[shape] for shape in SHAPES)
    assert two + one == 40 and abs(two - 2 * one) <= 2  # steps that 11 and 6 clips fill
    with pytest.raises(UsageError, match="clips of 2 shapes cannot be one batch"):
        data.batch(0, range(40))


def test_ranks_and_micro_batches_of_a_step_share_a_shape(tmp_path):
    data = LatentShards(cache(tmp_path / "x"), batch_size=8)
    common: dict[str, Any] = dict(
        seed=3, start=2, stop=9, batch_size=8, gradient_accumulation_steps=2, num_workers=2
    )
    ranks = [list(batches(data, rank=r, world=2, **common)) for r in range(2)]
    shapes = set()
    for parts in zip(*ranks, strict=True):
        step = [part for rank in parts for part in rank]
        (shape,) = {tuple(p.batch.latents.shape[1:]) for p in step}
        shapes.add(shape)
        assert sorted(i for p in step for i in p.positions) == list(
            range(step[0].positions[0], step[0].positions[0] + 8)
        )
    assert shapes == set(SHAPES)


# --- videos ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tall, wide and square ones at 8 fps, long and short, and one that cannot be read."""
    folder = tmp_path_factory.mktemp("videos")
    rng = np.random.default_rng(0)
    for name, (t, h, w) in {
        "wide": (9, 16, 32), "wide_short": (5, 18, 34), "square": (13, 24, 24), "tall": (9, 40, 16)
    }.items():  # fmt: skip
        write_clip(rng.integers(0, 256, (t, h, w, 3), dtype=np.uint8), folder / f"{name}.mp4")
        (folder / f"{name}.txt").write_text(f"a {name} clip")
    (folder / "bad.mp4").write_bytes(b"no video")
    (folder / "bad.txt").write_text("a bad clip")
    return folder


def folder(videos: Path, **options: Any) -> VideoFolder:
    shape: dict[str, Any] = dict(num_frames=5, size=(16, 16), fps=8.0, max_bad_fraction=0.5)
    return VideoFolder(videos, buckets=[[9, 16, 32], [5, 16, 32]], **(shape | options))


def test_videos_go_where_they_fit(videos):
    data = folder(videos)
    with data.reader:
        found = {shape: [data.names[i] for i in clips] for shape, clips in data.buckets}
        assert found == {
            (5, 16, 16): ["bad.mp4", "square.mp4", "tall.mp4"],
            (5, 16, 32): ["wide_short.mp4"],
            (9, 16, 32): ["wide.mp4"],
        }
        assert list(data.quarantine) == ["bad.mp4"]
        for i, name in enumerate(data.names):
            if name != "bad.mp4":
                assert tuple(data.clip(i).shape) == (*data.shape(i), 3)


def test_folders_yield_batches_of_one_shape(videos):
    data = folder(videos, batch_size=2)
    with data.reader:
        seen = Counter()
        for step in range(9):
            batch = data.batch(0, range(2 * step, 2 * step + 2))
            assert batch.frames is not None and "a bad clip" not in batch.captions
            seen[tuple(batch.frames.shape[1:4])] += 1
        assert seen == {(5, 16, 16): 3, (5, 16, 32): 3, (9, 16, 32): 3}


@pytest.mark.parametrize("bucket", [[5, 16], [5, 16, 0], [5, 16, 16]])
def test_buckets_that_are_none(videos, bucket):
    with pytest.raises(UsageError, match="is no further shape; write .num_frames, height, width"):
        VideoFolder(videos, num_frames=5, size=(16, 16), buckets=[bucket])


def test_a_cache_of_buckets(videos, tmp_path, capsys):
    root = tmp_path / "videos"
    shutil.copytree(videos, root, ignore=shutil.ignore_patterns("bad.*"))
    codec = tiny.save(tmp_path / "codec", tiny.CODEC)
    # On a machine that is very busy a clip takes longer than the default deadline.
    common = ["--codec", codec, "--data", "folder", "--root", root, "--deadline", 600]
    common += ["--frames", 5, "--size"]
    arguments = [*common, "16x16", "--bucket", "9x16x32", "--output", tmp_path / "cache"]
    assert encode.main([*map(str, arguments)]) == 0, capsys.readouterr().err
    data = LatentShards(tmp_path / "cache")
    assert set(data.shapes) == {(5, 2, 2, 2), (5, 3, 2, 4)} and len(data) == 4
    for text, message in [("8x16x32", "8 frames do not"), ("9x16x31", "width 31 is")]:
        arguments = [*common, "16x16", "--bucket", text, "--output", tmp_path / "other"]
        assert encode.main([*map(str, arguments)]) == 2
        assert message in capsys.readouterr().err
    with pytest.raises(SystemExit):
        encode.main([*map(str, common), "16x16", "--bucket", "9x16", "--output", "other"])
    assert "got '9x16', expected FRAMESxHEIGHTxWIDTH, as 9x64x128" in capsys.readouterr().err


# --- training -------------------------------------------------------------------------------------


def test_a_run_on_buckets_resumes_exactly(tmp_path):
    codec = tiny.save(tmp_path / "codec", tiny.CODEC)
    latents = cache(tmp_path / "latents", read_card(codec)["sha256"])

    def run(output: Path) -> tuple[list[float], dict[str, Tensor]]:
        config = TrainConfig(
            model=tiny.denoiser(),
            objective={"name": "flow_matching"},
            data={"name": "latents", "path": str(latents)},
            output=str(output),
            codec=str(codec),
            steps=6,
            batch_size=4,
            save_every=3,
            log_every=1,
            keep_checkpoints=9,
            num_workers=0,
        )
        torch.manual_seed(0)
        data = build("data", config.data, batch_size=config.batch_size)
        used = {len(data.batch(0, range(4 * s, 4 * s + 4)).latents[0, 0]) for s in range(6)}
        assert used == {2, 3}  # frames
        made = denoiser_task(config, build("model", config.model), data, CPU)
        engine = assemble(made.model, made.objective, config, CPU, LocalEngine)
        assert loop.train(config, made, engine, lambda *_: None) == 0
        lines = (output / "metrics.jsonl").read_text("utf-8").splitlines()
        losses = [json.loads(line).get("loss") for line in lines]
        return [x for x in losses if x is not None], engine.weights(ema=True)

    straight, resumed = tmp_path / "straight", tmp_path / "resumed"
    losses, weights = run(straight)
    shutil.copytree(straight, resumed)
    shutil.rmtree(folder_of(resumed, 6))
    again, same = run(resumed)
    assert len(losses) == 6 and again[-3:] == losses[-3:]
    assert weights.keys() == same.keys()
    assert all(weights[k].equal(same[k]) for k in weights)
