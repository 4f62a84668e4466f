"""Damaged and invented files: whatever is in them, they are read or refused in words of ours.

Bounded and repeatable; `VIDCM_FUZZ=5000 pytest -n 0 tests/test_fuzz.py` draws that many new files a
test.
"""

import copy
import hashlib
import json
import os
import resource
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
import yaml

pytest.importorskip("hypothesis", reason="needs hypothesis: pip install -e '.[test]'")
from hypothesis import HealthCheck, given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

from vidcm.config import TrainConfig, load  # noqa: E402
from vidcm.data.captions import match_captions  # noqa: E402
from vidcm.data.latents import LatentShards  # noqa: E402
from vidcm.data.media_root import LocalRoot  # noqa: E402
from vidcm.errors import VidcmError  # noqa: E402
from vidcm.media.read import BadClip, Frames  # noqa: E402
from vidcm.media.worker import ReaderProcess  # noqa: E402
from vidcm.media.write import write_clip  # noqa: E402
from vidcm.store import load_model  # noqa: E402
from vidcm.train import checkpoint  # noqa: E402

COUNT = int(os.environ.get("VIDCM_FUZZ", "60"))
fuzz = settings(
    max_examples=COUNT,
    derandomize="VIDCM_FUZZ" not in os.environ,
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
WORDS = st.text(max_size=12) | st.sampled_from(["../x", "/etc/passwd", "nan", "1e999", "\x00"])
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | WORDS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=3),
    max_leaves=6,
)


@pytest.fixture(autouse=True)
def subnormal_numbers() -> Iterator[None]:
    """Commands that ran in this process flush them to zero; hypothesis draws them."""
    torch.set_flush_denormal(False)
    yield
    torch.set_flush_denormal(True)


@st.composite
def damaged(draw: st.DrawFn, whole: bytes) -> bytes:
    """Bytes with some of them changed, left out, repeated or cut off."""
    data = bytearray(whole)
    for _ in range(draw(st.integers(1, 4))):
        if not data:
            break
        # Half of all damage is where headers are.
        end = len(data) - 1 if draw(st.booleans()) else min(len(data) - 1, 200)
        at, size = draw(st.integers(0, end)), draw(st.integers(1, 64))
        kind = draw(st.sampled_from(["change", "flip", "drop", "repeat", "cut"]))
        if kind == "change":
            data[at : at + size] = draw(st.binary(min_size=1, max_size=size))
        elif kind == "flip":
            data[at] ^= 1 << draw(st.integers(0, 7))
        elif kind == "drop":
            del data[at : at + size]
        elif kind == "repeat":
            data[at:at] = data[at : at + size]
        else:
            del data[at:]
    return bytes(data)


def places(tree: Any, above: tuple = ()) -> Iterator[tuple]:
    yield above
    inner = tree if isinstance(tree, dict) else dict(enumerate(tree if type(tree) is list else []))
    for key, value in inner.items():
        yield from places(value, (*above, key))


@st.composite
def changed(draw: st.DrawFn, tree: Any) -> Any:
    """Plain data with a value or two replaced by another, or left out."""
    tree = copy.deepcopy(tree)
    for _ in range(draw(st.integers(1, 2))):
        *way, last = draw(st.sampled_from([p for p in places(tree) if p] or [("",)]))
        parent = tree
        for key in way:
            parent = parent[key]
        if last == "":
            break
        if draw(st.booleans()):
            parent[last] = draw(VALUES)
        else:
            del parent[last]
    return tree


@pytest.fixture(scope="module", autouse=True)
def little_memory() -> Iterator[None]:
    """A file that says it is huge may cost this process 2 GB and not the machine."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + 2**31, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


# --- media ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def reader() -> Iterator[ReaderProcess]:
    with ReaderProcess(deadline=10.0, max_pixels=2**22) as reader:
        yield reader


@pytest.mark.parametrize("kind", ["mp4", "webm", "gif", "png"])
def test_v05_v06_media_are_read_or_refused(tmp_path_factory, reader, kind: str) -> None:
    folder = tmp_path_factory.mktemp(kind)
    frames = np.random.default_rng(0).integers(0, 255, (9, 4, 6, 3), np.uint8)
    frames = frames.repeat(8, 1).repeat(8, 2)[: 1 if kind == "png" else 9]
    write_clip(frames, folder / f"whole.{kind}", fps=8)
    whole = (folder / f"whole.{kind}").read_bytes()
    seen = set[str]()

    @fuzz
    @given(damaged(whole))
    def check(data: bytes) -> None:
        path = folder / f"damaged.{kind}"
        path.write_bytes(data)
        for act in (reader.probe, lambda p: reader.read(p, np.array([0.0, 0.5]))):
            try:
                found = act(path)
            except BadClip as error:
                assert error.reason and "\n" not in str(error)
                seen.add(error.reason)
            else:
                if isinstance(found, Frames):
                    assert found.frames.dtype == np.uint8 and found.frames.ndim == 4
                seen.add("read")

    check()
    assert len(seen) > 1
    if kind in ("mp4", "webm"):  # a picture has a checksum
        assert "read" in seen, "some survive"
    assert not seen & {"decoder-crash", "timeout"}


# --- configs --------------------------------------------------------------------------------------

CONFIG = {
    "model": {"name": "causal_vae", "channels": 7},
    "objective": {"name": "autoencoding"},
    "data": {"name": "folder", "root": "x"},
    "output": "runs/x",
    "steps": 10,
    "optimizer": {"lr": 1e-3, "betas": [0.9, 0.95]},
    "lora": {"rank": 3},
    "init": "y",
    "preview_prompts": ["a", "b"],
}


def loads_or_refuses(path: Path) -> None:
    try:
        assert isinstance(load(path), TrainConfig)
    except VidcmError as error:
        assert str(error)


@fuzz
@given(damaged(yaml.safe_dump(CONFIG).encode()) | st.binary(max_size=80))
def test_k03_yaml_of_any_bytes(tmp_path_factory, data: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzz-bytes.yaml"
    path.write_bytes(data)
    loads_or_refuses(path)


@fuzz
@given(changed(CONFIG) | VALUES)
def test_k02_yaml_of_any_values(tmp_path_factory, tree: Any) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzz-values.yaml"
    path.write_text(json.dumps(tree))
    loads_or_refuses(path)


# --- caches, models and checkpoints -----------------------------------------------------------------


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("cache") / "latents"
    clips = [(torch.randn(3, 5, 2, 2, 3), [["a man walks", "a man"]] * 3)]
    tiny.latent_cache(folder, clips, "c")
    return folder


def read_cache(folder: Path) -> None:
    try:
        data = LatentShards(str(folder), batch_size=1)
        data.check_codec("c")
        assert data.batch(0, [0]).latents is not None
    except VidcmError as error:
        assert "\n" not in str(error)


@pytest.mark.parametrize("how", ["bytes", "values"])
def test_s05_an_index_of_anything(cache: Path, how: str) -> None:
    path = cache / "index.json"
    whole = path.read_text()

    @fuzz
    @given(damaged(whole.encode()) if how == "bytes" else changed(json.loads(whole)) | VALUES)
    def check(found: Any) -> None:
        path.write_bytes(found if how == "bytes" else json.dumps(found).encode())
        read_cache(cache)

    try:
        check()
    finally:
        path.write_text(whole)
    read_cache(cache)


def with_header(data: bytes, header: Any) -> bytes:
    """A safetensors file with another header."""
    (size,) = struct.unpack("<Q", data[:8])
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data[8 + size :]


def header_of(data: bytes) -> dict:
    (size,) = struct.unpack("<Q", data[:8])
    return json.loads(data[8 : 8 + size])


@pytest.mark.parametrize("how", ["bytes", "values"])
def test_p01_p14_weights_with_the_right_hash_and_anything_inside(tmp_path: Path, how: str) -> None:
    tiny.save(tmp_path / "model", tiny.denoiser())
    path, card = tmp_path / "model" / "model.safetensors", tmp_path / "model" / "model.json"
    whole, facts = path.read_bytes(), json.loads(card.read_text())

    @fuzz
    @given(damaged(whole) if how == "bytes" else changed(header_of(whole)))
    def check(found: Any) -> None:
        data = found if how == "bytes" else with_header(whole, found)
        path.write_bytes(data)
        card.write_text(json.dumps(facts | {"sha256": hashlib.sha256(data).hexdigest()}))
        try:
            load_model(tmp_path / "model")
        except VidcmError as error:
            assert "\n" not in str(error)

    check()


def test_p14_a_card_of_anything(tmp_path: Path) -> None:
    tiny.save(tmp_path / "model", tiny.denoiser())
    card = tmp_path / "model" / "model.json"
    facts = json.loads(card.read_text())

    @fuzz
    @given(changed(facts) | VALUES)
    def check(tree: Any) -> None:
        card.write_text(json.dumps(tree))
        try:
            load_model(tmp_path / "model")
        except VidcmError as error:
            assert "\n" not in str(error)

    check()


@pytest.mark.parametrize("how", ["bytes", "values"])
def test_s01_a_shard_of_anything(cache: Path, how: str) -> None:
    (path,) = cache.glob("*.safetensors")
    whole = path.read_bytes()

    @fuzz
    @given(damaged(whole) if how == "bytes" else changed(header_of(whole)))
    def check(found: Any) -> None:
        path.unlink()  # the last one may still be mapped
        path.write_bytes(found if how == "bytes" else with_header(whole, found))
        read_cache(cache)

    try:
        check()
    finally:
        path.unlink()
        path.write_bytes(whole)
    read_cache(cache)


def test_p08_a_manifest_of_anything_does_not_hide_the_checkpoint_before(tmp_path: Path) -> None:
    for step in (1, 2):
        folder = checkpoint.save(tmp_path, step, {"model": {}}, {}, keep=2)
    manifest = folder / "manifest.json"
    facts = json.loads(manifest.read_text())

    @fuzz
    @given(changed(facts) | VALUES)
    def check(tree: Any) -> None:
        manifest.write_text(json.dumps(tree))
        found = checkpoint.newest(tmp_path)
        assert found is not None
        state, facts = checkpoint.read(found)
        assert state == {"model": {}} and isinstance(facts["config"], dict)
        assert found.name == f"step-0000000{facts['step']}"

    check()


LINES = [{"file_name": "a.mp4", "text": "one"}, {"file_name": "b.mp4", "text": ["two", "three"]}]


@fuzz
@given(changed(LINES) | damaged("\n".join(map(json.dumps, LINES)).encode()))
def test_c09_c12_captions_of_anything(tmp_path_factory, found: Any) -> None:
    folder = tmp_path_factory.getbasetemp() / "fuzz-captions"
    folder.mkdir(exist_ok=True)
    lines = found if isinstance(found, bytes) else "\n".join(map(json.dumps, found)).encode()
    (folder / "metadata.jsonl").write_bytes(lines)
    try:
        root = LocalRoot(folder, follow_symlinks=False)
        captions = match_captions(root, ["a.mp4", "b.mp4"], [], [], "empty")
        assert all(isinstance(text, str) for texts in captions.values() for text in texts)
    except VidcmError as error:
        assert "metadata.jsonl" in str(error)
