"""The LPC task on sheets drawn here, against a reference that blends one pixel at a time."""

import hashlib
import re
import tarfile
import threading
import zlib
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy

import numpy as np
import pytest
import torch

from vidcm.errors import UsageError, VidcmError
from vidcm.lpc import combinations as module
from vidcm.lpc.combinations import held_out, vocabulary
from vidcm.lpc.dataset import LPC
from vidcm.lpc.wardrobe import CELL, ROWS, SHEET, Sheets
from vidcm.media.write import write_png

KEEP = {
    "skin": ["light", "orc"],
    "hair": ["plain", "mohawk"],
    "hair_color": ["black", "pink"],
    "torso": ["brown_shirt", "red_dress"],
    "legs": ["red_pants"],
    "feet": ["barefoot", "gold_boots"],
    "cape": ["none", "red"],
    "weapon": ["none", "spear"],
}


def small_vocabulary() -> dict:
    words = deepcopy(vocabulary())
    for name, values in KEEP.items():
        words["attributes"][name] = {v: words["attributes"][name][v] for v in values}
    return words


def sheet(name: str) -> np.ndarray:
    """A moving half-transparent rectangle; place, colour and opacity are the name's."""
    kind = name.split("/")[0]
    red, green, blue, bits = zlib.crc32(name.encode()).to_bytes(4, "big")
    image = np.zeros((ROWS, CELL, 13, CELL, 4), np.uint8)
    top = {"hair": 8, "torso": 24, "legs": 36, "feet": 48}.get(kind, 14)
    alpha = 255 if kind == "body" else 90 + bits % 120
    for row in range(ROWS):
        if kind == "weapons" and row < 4:
            continue  # a sheet that draws nothing in the first action
        for frame in range(13):
            left = 20 + (row * 3 + frame * 2) % 17
            image[row, top : top + 12, frame, left : left + 14] = (red, green, blue, alpha)
    return image.reshape(*SHEET, 4)


@pytest.fixture(scope="module")
def words() -> dict:
    return small_vocabulary()


@pytest.fixture(scope="module")
def make(tmp_path_factory, words):
    """Builds data sets of the small vocabulary over an art folder with the real one's layout."""
    folder = tmp_path_factory.mktemp("art")

    def build(**options) -> LPC:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(module, "vocabulary", lambda: words)
            return LPC(options.pop("art", folder), **options)

    for name in sorted(set(build(attributes=[*words["core"], "cape", "weapon"])._all_paths())):
        write_png(sheet(name), folder / name)
    return build


@pytest.fixture(scope="module")
def data(make) -> LPC:
    return make(num_frames=5)


def drawn(data: LPC, count: int, split: str = "train") -> list[dict[str, str]]:
    return [data.sample(np.random.default_rng([3, i]), split) for i in range(count)]


# --- combinations ---------------------------------------------------------------------------------


def test_the_held_out_rule_is_the_published_one():
    combination = {"sex": "male", "hair": "plain", "action": "walk"}
    text = "action=walk|hair=plain|sex=male"
    digest = hashlib.sha256(text.encode()).hexdigest()
    assert held_out(combination) == (int(digest[:8], 16) % 10 == 0)
    assert held_out(dict(reversed(combination.items()))) == held_out(combination)


def test_splits_do_not_meet_and_one_in_ten_is_held_out(data):
    train, test = ({tuple(c.items()) for c in drawn(data, 150, s)} for s in ("train", "heldout"))
    assert not train & test
    assert all(held_out(dict(c)) for c in test) and not any(held_out(dict(c)) for c in train)
    rng = np.random.default_rng(0)
    share = np.mean([held_out({"a": str(rng.integers(1e9))}) for _ in range(4000)])
    assert share == pytest.approx(0.1, abs=0.02)


def test_every_value_is_drawn_and_none_that_does_not_exist(data):
    seen = drawn(data, 200)
    for name in data.attributes:
        assert {c[name] for c in seen} == set(data.words[name]), name
    assert not any(c["sex"] == "male" and c["torso"] == "red_dress" for c in seen)
    assert {c["direction"] for c in seen if c["action"] == "hurt"} == {"front"}


def test_alternatives_are_valid_and_change_what_they_must(data):
    for combination in drawn(data, 40):
        for name in data.attributes:
            others = data.alternatives(combination, name)
            assert combination in others and len({o[name] for o in others}) == len(others)
            for other in others:
                changed = {k for k in other if other[k] != combination[k]}
                # A woman's dress is not a man's, a fall faces the viewer: those follow.
                repaired = {"sex": {"torso"}, "action": {"direction"}}.get(name, set())
                assert changed <= {name} | repaired
                assert all(other[a] in data.values(a, other) for a in data.attributes)


# --- pixels ---------------------------------------------------------------------------------------


def reference(data: LPC, c: dict[str, str]) -> np.ndarray:
    """One clip, from the files and the formula: out = colour alpha + out (1 - alpha), rounded."""
    words = data.words
    order = [a for a in data.layers if a in c and a != "cape_behind"]
    files = []
    for name in order:
        entry = words[name][c[name]]
        path = entry.get("file") or entry.get(c["sex"], "")
        color = words["hair_color"][c["hair_color"]]["color"]
        if path:
            files.append(path.replace("{sex}", c["sex"]).replace("{color}", color))
    if "behind" in words.get("cape", {}).get(c.get("cape", ""), {}):
        files.insert(0, words["cape"][c["cape"]]["behind"])
    action = words["action"][c["action"]]
    row = action["row"] + (
        0 if c["action"] == "hurt" else words["direction"][c["direction"]]["offset"]
    )
    clip = []
    for k in range(data.num_frames):
        frame = int(np.floor(k * (action["frames"] - 1) / (data.num_frames - 1) + 0.5))
        canvas = np.empty((CELL, CELL, 3), np.int64)
        canvas[:] = words["background"][c["background"]]["rgb"]
        for file in files:
            cells = sheet(file).reshape(ROWS, CELL, 13, CELL, 4)
            cell = cells[row, :, frame].astype(np.int64)
            alpha = cell[..., 3:]
            over = (cell[..., :3] * alpha + 127) // 255
            canvas = over + (canvas * (255 - alpha) + 127) // 255
        clip.append(canvas)
    return np.stack(clip).astype(np.uint8)


def test_composition_is_the_reference(make):
    data = make(num_frames=5, attributes=[*vocabulary()["core"], "cape", "weapon"])
    combinations = drawn(data, 10)
    assert {"red", "none"} == {c["cape"] for c in combinations}
    clips = data.render(combinations)
    assert clips.shape == (10, 5, 64, 64, 3) and clips.dtype == torch.uint8
    for clip, combination in zip(clips.numpy(), combinations, strict=True):
        np.testing.assert_array_equal(clip, reference(data, combination))


def test_frames_run_from_the_action_s_first_to_its_last(make):
    """The same action in 2 and 4 frames begins and ends alike."""
    short, long = make(num_frames=2), make(num_frames=4)
    combinations = drawn(short, 5)
    a, b = short.render(combinations), long.render(combinations)
    assert a[:, 0].equal(b[:, 0]) and a[:, -1].equal(b[:, -1])
    assert make(num_frames=1).render(combinations)[:, 0].equal(a[:, 0])


def test_every_attribute_is_seen(data):
    """Rendering an alternative changes pixels, except where a layer hides it."""
    found = set()
    for combination in drawn(data, 6):
        for name in data.attributes:
            clips = data.render(data.alternatives(combination, name))
            if len(clips) > 1 and not (clips[0] == clips[1]).all():
                found.add(name)
    assert found == set(data.attributes) - {"legs"}  # the small vocabulary has one value of it


# --- batches --------------------------------------------------------------------------------------


def test_a_position_is_the_same_sample_in_any_batch(data, make):
    batch, other = data.batch(5, [7, 0, 3]), make(num_frames=5).batch(5, [3, 7])
    assert other.captions == [batch.captions[2], batch.captions[0]]
    assert other.frames.equal(batch.frames[[2, 0]]) and other.labels.equal(batch.labels[[2, 0]])
    assert data.batch(6, [7]).captions != data.batch(5, [7]).captions


def test_labels_are_places_in_the_vocabulary(data):
    combinations = drawn(data, 9)
    labels = data.labels(combinations)
    assert labels.shape == (9, len(data.attributes)) and labels.dtype == torch.int64
    for row, combination in zip(labels.tolist(), combinations, strict=True):
        for place, name in zip(row, data.attributes, strict=True):
            assert list(data.words[name])[place] == combination[name]


# --- captions -------------------------------------------------------------------------------------


def said(data: LPC, name: str, combination: dict[str, str], caption: str) -> bool:
    """Whether a caption holds one of the ways to say an attribute's value."""
    entry = data.words[name][combination[name]]
    ways = [
        *entry.get("phrases", []),
        *entry.get("noun", []),
        *entry.get("toward", []),
        *entry.get("facing", []),
    ]
    return any(
        all(w.strip() in caption.lower() for w in re.split(r"\{\w+\}", way.lower())) for way in ways
    )


def test_full_captions_name_every_attribute(data):
    for i, combination in enumerate(drawn(data, 60)):
        caption = data.caption(combination, np.random.default_rng(i), full=True)
        assert "{" not in caption and "  " not in caption and caption == caption.strip()
        for name in set(data.attributes) - {"sex", "direction"}:
            assert said(data, name, combination, caption), (name, combination, caption)


def test_captions_vary_and_some_leave_things_out(data):
    combination = drawn(data, 1)[0]
    captions = {data.caption(combination, np.random.default_rng(i)) for i in range(60)}
    assert len(captions) > 55
    assert len({c.split()[0].lower() for c in captions}) > 3
    sometimes = [said(data, "background", combination, c) for c in captions]
    assert 0.6 < np.mean(sometimes) < 1


def test_what_is_not_drawn_is_not_said(make):
    data = make(num_frames=2, attributes=[*vocabulary()["core"], "weapon"])
    combination = drawn(data, 1)[0] | {"weapon": "spear", "direction": "left"}

    def speaks(action: str) -> bool:
        chosen = combination | {"action": action}
        captions = [data.caption(chosen, np.random.default_rng(i), full=True) for i in range(9)]
        return any("spear" in c for c in captions)

    assert speaks("walk") and not speaks("spellcast")  # its sheet is empty there


# --- files ----------------------------------------------------------------------------------------


def test_a_tar_is_a_folder(make, tmp_path):
    with tarfile.open(tmp_path / "art.tar", "w") as archive:
        archive.add(make().sheets.art, arcname=".")
    packed = make(art=tmp_path / "art.tar", num_frames=2)
    unpacked = make(num_frames=2)
    assert packed.batch(0, range(3)).frames.equal(unpacked.batch(0, range(3)).frames)


@pytest.mark.parametrize("packed", [False, True])
def test_threads_that_start_together_load_the_sheets_once(make, tmp_path, monkeypatch, packed):
    art = make().sheets.art
    if packed:
        with tarfile.open(tmp_path / "art.tar", "w") as archive:
            archive.add(art, arcname=".")
        art = tmp_path / "art.tar"
    loads, load = [], Sheets.load
    monkeypatch.setattr(Sheets, "load", lambda self, names: [loads.append(1), load(self, names)][1])
    data, start = make(art=art, num_frames=2), threading.Barrier(5)

    def batch(seed: int) -> torch.Tensor:
        start.wait(30)
        frames = data.batch(seed, range(3)).frames
        assert frames is not None
        return frames

    with ThreadPoolExecutor(5) as pool:
        together = list(pool.map(batch, range(5)))
    alone = [make(num_frames=2).batch(seed, range(3)).frames for seed in range(5)]
    assert all(map(torch.equal, together, alone)) and len(loads) == 1 + 5


def test_art_that_is_missing_incomplete_or_broken(make, tmp_path, monkeypatch):
    with pytest.raises(
        UsageError, match="none, where data.art or --art says; set data.art or VIDCM"
    ):
        make(art=tmp_path / "none")
    monkeypatch.setenv("VIDCM_LPC_ART", "/nowhere")
    with pytest.raises(UsageError, match="is not at /nowhere, where VIDCM_LPC_ART says"):
        LPC()
    monkeypatch.delenv("VIDCM_LPC_ART")
    with pytest.raises(UsageError, match="the LPC art is needed; set data.art or VIDCM_LPC_ART"):
        LPC()
    (tmp_path / "not.tar").write_text("x" * 2000)
    with pytest.raises(UsageError, match="neither a folder nor a readable tar"):
        make(art=tmp_path / "not.tar").batch(0, [0])
    (tmp_path / "empty").mkdir()
    with pytest.raises(VidcmError, match=r"lacks the sheet \S+\.png; get it complete"):
        make(art=tmp_path / "empty").batch(0, [0])
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n")
    with pytest.raises(VidcmError, match="cannot read the sheet a.png"):
        next(Sheets(tmp_path).load(["a.png"]))
    write_png(np.zeros((64, 32, 4), np.uint8), tmp_path / "b.png")
    with pytest.raises(VidcmError, match="b.png is 32x64, not 832x1344"):
        next(Sheets(tmp_path).load(["b.png"]))


@pytest.mark.parametrize(
    "options, message",
    [
        ({"split": "test"}, "unknown split 'test'; one of: train, heldout"),
        ({"attributes": ["sex", "hat"]}, "unknown LPC attribute 'hat'; one of: sex, skin"),
        ({"attributes": ["sex", "action"]}, "attributes skin, hair, .* cannot be left out"),
    ],
)
def test_options_that_make_no_sense(make, options, message):
    with pytest.raises(UsageError, match=message):
        make(**options)


# --- the vocabulary and the real art --------------------------------------------------------------


def test_the_vocabulary_is_whole():
    words = vocabulary()
    assert set(words["core"]) <= set(words["attributes"])
    assert set(words["layers"]) - {"cape_behind"} <= set(words["attributes"])
    for name, values in words["attributes"].items():
        for value, entry in values.items():
            drawn_or_said = entry.get("phrases") or entry.get("toward") or value == "none"
            assert drawn_or_said, (name, value)
    spans = [
        range(a["row"], a["row"] + (1 if "direction" in a else 4))
        for a in words["attributes"]["action"].values()
    ]
    assert sorted(row for span in spans for row in span) == list(range(ROWS))


def test_the_real_art_holds_every_sheet(lpc_art):
    everything = LPC(lpc_art, attributes=list(vocabulary()["attributes"]))
    wanted = set(everything._all_paths())
    if lpc_art.is_dir():
        missing = [p for p in wanted if not (lpc_art / p).is_file()]
    else:
        with tarfile.open(lpc_art) as archive:
            missing = sorted(wanted - {name.removeprefix("./") for name in archive.getnames()})
    assert len(wanted) > 200 and not missing


def test_real_characters_are_drawn(lpc_art, monkeypatch):
    """Figures stand apart from the background, move, and differ between values."""
    monkeypatch.setattr(module, "vocabulary", small_vocabulary)
    data = LPC(lpc_art)
    combinations = drawn(data, 12)
    clips = data.render(combinations).float()
    ground = torch.tensor([data.words["background"][c["background"]]["rgb"] for c in combinations])
    figure = (clips != ground.view(-1, 1, 1, 1, 3)).any(-1)
    assert 0.05 < figure.float().mean() < 0.6 and figure.flatten(2).any(2).all()
    assert clips.diff(dim=1).abs().mean((1, 2, 3, 4)).min() > 0.3
