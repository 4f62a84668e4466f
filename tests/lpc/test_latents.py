"""Cached latents with captions composed anew: the clip of a row is the clip its captions describe."""

import numpy as np
import pytest
import tiny
import torch

from vidcm.data.latents import LatentShards
from vidcm.errors import UsageError
from vidcm.lpc.captions import complete_caption
from vidcm.lpc.combinations import Combinations
from vidcm.lpc.latents import LPCLatents
from vidcm.lpc.prompt_reader import PromptReader

COUNT, SEED = 23, 5


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A cache whose latents are the labels of the clips, drawn as `vidcm encode` draws."""
    every, path = Combinations(), tmp_path_factory.mktemp("cache") / "latents"
    found = [every.sample(np.random.default_rng([SEED, i])) for i in range(COUNT)]
    values = [[list(every.words[a]).index(c[a]) for a in every.attributes] for c in found]
    latents = torch.tensor(values).float().view(COUNT, -1, 1, 1, 1)
    about = {"data": "lpc", "seed": SEED, "attributes": every.attributes, "split": "train"}
    parts = [(part, [["old"]] * len(part)) for part in latents.split(7)]
    return tiny.latent_cache(path, parts, "c", about)


def test_captions_are_of_the_clip_and_fresh(folder):
    data, reader = LPCLatents(folder, partial=0.0), PromptReader()
    every, seen = data.combinations, {}
    for start in range(0, 6 * COUNT, COUNT):
        batch = data.batch(3, range(start, start + COUNT))
        assert batch.latents is not None
        for values, caption in zip(batch.latents.flatten(1).tolist(), batch.captions, strict=True):
            named = reader.read(caption)
            assert len(named) >= 8
            for attribute, value in zip(every.attributes, values, strict=True):
                if attribute != "direction":
                    assert named[attribute] == list(every.words[attribute])[int(value)]
            seen.setdefault(tuple(values), set()).add(caption)
    assert len(seen) == COUNT and min(map(len, seen.values())) > 2
    assert data.batch(3, [4]).captions == data.batch(3, [2, 4]).captions[1:]
    assert data.batch(4, range(COUNT)).captions != data.batch(3, range(COUNT)).captions


def test_shares_of_kinds_of_captions(folder):
    whole = LPCLatents(folder, complete=1.0)
    expected = {
        complete_caption(whole.combination(row), whole.combinations.words) for row in range(COUNT)
    }
    assert set(whole.batch(0, range(COUNT)).captions) == expected
    some = LPCLatents(folder, complete=0.5).batch(0, range(400)).captions
    assert 150 < sum(caption in expected for caption in some) < 250
    parts = [
        LPCLatents(folder, partial=p, complete=0.0).batch(0, range(200)).captions
        for p in (0.0, 1.0)
    ]
    assert sum(map(len, parts[1])) < 0.8 * sum(map(len, parts[0]))


def test_order_and_latents_are_those_of_the_cache(folder):
    ours, plain = (cls(folder).batch(1, range(40)).latents for cls in (LPCLatents, LatentShards))
    assert ours is not None and plain is not None and ours.equal(plain)


def test_refusals(folder, tmp_path):
    with pytest.raises(UsageError, match="shares are 0 to 1"):
        LPCLatents(folder, complete=1.5)
    clips = [(torch.zeros(2, 5, 1, 1, 1), [["x"]] * 2)]
    tiny.latent_cache(tmp_path / "a", clips, "c", {"data": "folder"})
    with pytest.raises(UsageError, match="holds no LPC clips .*; use the data latents"):
        LPCLatents(tmp_path / "a")
