"""How fast data arrive: decoding, loader threads and shards, beside the bare thing, in turns."""

import io
import os
import random
import tarfile
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from av.video.stream import VideoStream

from vidcm.data.encoding import encode_cache
from vidcm.data.folder import VideoFolder
from vidcm.data.latents import LatentShards
from vidcm.data.loader import batches
from vidcm.data.source import Clips
from vidcm.errors import UsageError
from vidcm.evaluation.environment import machine
from vidcm.evaluation.markdown import grid, measured_on
from vidcm.media.media_file import BadClip
from vidcm.media.read import read_frames
from vidcm.media.timing import frame_times, nearest
from vidcm.media.transforms import resize_crop

KIND = "data"
FRAMES, FPS, SIZE = 17, 8.0, (64, 64)
LATENT = (192, 3, 8, 8)  # of a clip of the reference task
SHARD = 256  # clips of a shard
Read = Callable[[Path], object]


class LatentClips:
    """Random latents as a source of a cache."""

    def __init__(self, count: int) -> None:
        self.facts: Mapping[str, Any] = {"data": "random"}
        self.counts: Sequence[int] = [count]
        self.duplicate_bits: int | None = None

    def read(self, numbers: range) -> Clips:
        """As in `Source`."""
        rng = torch.Generator().manual_seed(numbers.start)
        frames = torch.randn((len(numbers), *LATENT), generator=rng)
        names = [str(i) for i in numbers]
        return Clips(frames, [[f"clip {name}"] for name in names], names, {})


def measure_data(root: str, workers: Sequence[int], repeats: int, clips: int) -> dict[str, Any]:
    """All rows.

    Args:
        root: folder of videos.
        workers: numbers of loader threads.
        repeats: turns through all readers of a kind.
        clips: number of cached latents.

    Raises:
        UsageError: no video of the folder is long enough.
    """
    protocol = {"frames": FRAMES, "fps": FPS, "size": SIZE, "repeats": repeats, "clips": clips}
    rows = {
        "decode": _decoding(Path(root), repeats),
        "loader": _loading(root, workers, repeats),
        "shards": _shards(repeats, clips),
    }
    facts = machine(torch.device("cpu")) | {"load": os.getloadavg()[0]}
    protocol |= {"latent": LATENT, "av": av.__version__}
    return {"kind": KIND, "protocol": protocol, "model": {}, "environments": [facts], "rows": rows}


def _decoding(root: Path, repeats: int) -> dict[str, Any]:
    """Processor seconds of the first clip of each video, in one process and thread."""
    times = frame_times(FRAMES, FPS)
    paths = []
    for path in sorted(root.iterdir()):
        try:
            read_frames(path, times, size=SIZE)
        except BadClip:
            continue
        paths.append(path)
    if not paths:
        raise UsageError(f"{root} has no video of {times[-1]:g} s or more; give another --root")

    def bare(path: Path) -> object:
        with av.open(path) as video:
            best = video.streams.best("video")
            assert isinstance(best, VideoStream)
            frames, first = [], None
            for frame in video.decode(best):
                first = frame.time if first is None else first
                frames.append(frame.to_ndarray(format="rgb24"))
                if frame.time is None or first is None or frame.time - first > times[-1]:
                    break
            return frames

    readers: dict[str, Read] = {
        "bare PyAV": bare,
        "vidcm": lambda path: read_frames(path, times, size=SIZE),
    }
    try:
        import decord  # pyright: ignore[reportMissingImports]
    except ImportError:
        pass
    else:

        def by_decord(path: Path) -> object:
            video = decord.VideoReader(str(path), num_threads=1)
            spans = video.get_frame_timestamp(np.arange(len(video))).astype(np.float64)
            index = nearest(spans[:, 0] - spans[0, 0], times, times[-1])
            return resize_crop(video.get_batch(index).asnumpy(), SIZE)

        readers["decord"] = by_decord
    spent = {name: {path: 0.0 for path in paths} for name in readers}
    failed: dict[str, set[Path]] = {name: set() for name in readers}
    order = random.Random(0)
    for _ in range(repeats):
        for path in order.sample(paths, len(paths)):
            for name in order.sample(list(readers), len(readers)):
                began = time.process_time()
                try:
                    readers[name](path)
                except Exception:  # decord raises whatever its C++ side throws
                    failed[name].add(path)
                spent[name][path] += time.process_time() - began
    common = [path for path in paths if not any(path in bad for bad in failed.values())]
    found: dict[str, Any] = {}
    for name in readers:
        total = sum(spent[name][path] for path in common)
        found[name] = {
            "clips_per_second": len(common) * repeats / total,
            "of_bare": sum(spent["bare PyAV"][path] for path in common) / total,
            "videos": len(common),
            "failed": len(failed[name]),
        }
    if "decord" in found:
        found["decord"]["other_pictures"] = sum(_differ(readers, path) for path in common)
    return found


def _differ(readers: dict[str, Read], path: Path) -> bool:
    """Whether decord gives other pictures than our reader: more than a grey level on average."""
    ours: Any = readers["vidcm"](path)
    theirs: Any = readers["decord"](path)
    return float(np.abs(ours.frames.astype(np.int16) - theirs).mean((1, 2, 3)).max()) > 1


def _loading(root: str, workers: Sequence[int], repeats: int) -> dict[str, Any]:
    """Clips a second of training batches, by the number of loader threads."""
    data = VideoFolder(
        root, num_frames=FRAMES, size=SIZE, fps=FPS, missing_captions="empty", max_bad_fraction=1.0
    )
    options: Any = {"batch_size": 4, "gradient_accumulation_steps": 1, "rank": 0, "world": 1}
    steps = {count: 0.0 for count in workers}
    for turn in range(repeats):
        for count in workers:
            steady = batches(
                data, seed=turn, start=0, stop=6 + 2 * count, num_workers=count, **options
            )
            for _ in range(2 * count):  # readers start
                next(steady)
            began = time.perf_counter()
            clips = sum(len(part.positions) for parts in steady for part in parts)
            steps[count] += clips / (time.perf_counter() - began) / repeats
    return {str(count): {"clips_per_second": speed} for count, speed in steps.items()}


def _shards(repeats: int, clips: int) -> dict[str, Any]:
    """Bytes of latents a second from files that the system has just read."""
    size = 2 * int(np.prod(LATENT))
    with tempfile.TemporaryDirectory() as folder:
        cache = Path(folder, "cache")
        options: Any = {"codec": "none", "batch_size": SHARD, "shard_size": SHARD}
        encode_cache(LatentClips(clips), lambda x: x, cache, **options)
        data = LatentShards(cache, 16)
        files = sorted(cache.glob("*.safetensors"))

        def plain() -> int:
            return sum(len(file.read_bytes()) for file in files)

        def ours() -> int:
            for step in range(clips // 16):
                data.batch(0, range(16 * step, 16 * step + 16))
            return clips // 16 * 16 * size

        readers: dict[str, Callable[[], int]] = {"the same files, whole": plain, "vidcm": ours}
        try:
            from webdataset.compat import WebDataset
        except ImportError:
            pass
        else:
            tar = Path(folder, "latents.tar")
            _write_tar(tar, data)

            def theirs() -> int:
                rows: Any = WebDataset(str(tar), shardshuffle=False).shuffle(1000).decode()
                return sum(row["npy"].nbytes for row in rows)

            readers["webdataset"] = theirs
        speeds = {name: [] for name in readers}
        for turn in range(repeats + 1):
            for name, read in readers.items():
                began = time.perf_counter()
                count = read()
                if turn:  # the first warms up
                    speeds[name].append(count / (time.perf_counter() - began))
    return {name: {"megabytes_per_second": float(np.median(s)) / 1e6} for name, s in speeds.items()}


def _write_tar(path: Path, data: LatentShards) -> None:
    with tarfile.open(path, "w") as tar:
        for row in range(len(data)):
            blob = io.BytesIO()
            np.save(blob, data.latents(0, row).half().numpy())
            for suffix, content in (("npy", blob.getvalue()), ("txt", b"clip")):
                info = tarfile.TarInfo(f"{row:08d}.{suffix}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))


def data_table(results: dict[str, Any]) -> str:
    """All rows in markdown."""
    rows, protocol, facts = results["rows"], results["protocol"], results["environments"][0]
    decode = [
        [
            name,
            f"{row['clips_per_second']:.1f}",
            f"{row['of_bare']:.2f}",
            str(row.get("other_pictures", "-")),
            str(row["failed"]),
        ]
        for name, row in rows["decode"].items()
    ]
    head = ["decoding", "clips a processor second", "of bare PyAV", "videos with other pictures"]
    loader = [[n, f"{row['clips_per_second']:.1f}"] for n, row in rows["loader"].items()]
    shards = [[n, f"{row['megabytes_per_second']:.0f}"] for n, row in rows["shards"].items()]
    videos = rows["decode"]["vidcm"]["videos"]
    text = (
        f"Clips of {protocol['frames']} frames at {protocol['fps']:g} a second, "
        f"{'x'.join(map(str, protocol['size']))}; {videos} videos that all read, "
        f"{protocol['repeats']} turns in random order. Bare PyAV decodes and converts every frame "
        "of the clip, and resizes none. Latents are in half precision, in the page cache. "
        f"Measured with {measured_on(facts)}, load {facts['load']:.1f} on {facts['cores']} cores: "
        "ratios hold, times do not."
    )
    return (
        "\n\n".join(
            [
                grid([*head, "failed"], decode),
                grid(["loader threads", "clips a second"], loader),
                grid(["shuffled latents", "MB a second"], shards),
                text,
            ]
        )
        + "\n"
    )
