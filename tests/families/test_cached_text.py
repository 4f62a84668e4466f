"""Text tokens beside latents: the numbers of a text tower in memory, without the tower."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from public_runs import CAPTION, run
from tiny import CODEC
from tiny import save as save_codec

from vidcm.cli import encode, train
from vidcm.conditioning.embedded import EmbeddedPrompt, with_padding, without_padding
from vidcm.data.caption_tokens import CaptionTokens
from vidcm.data.latents import LatentShards
from vidcm.data.shards import Shard
from vidcm.errors import VidcmError
from vidcm.families.base import find_family
from vidcm.families.text import PipelineText, text_tower

OTHER = "the monkey dances"


def encoded(public, clips: Path, output: Path, family: str = "wan", *more: str) -> Path:
    """A latent cache with text tokens."""
    root = str(public(family))
    size = ["--frames", "9", "--size", "32x32", "--fps", "8", "--output", str(output)]
    folders = ["--codec", f"{root}/vae", "--text", f"{root}/text_encoder", "--root", str(clips)]
    assert encode.main(["--data", "folder", *size, *folders, *more]) == 0
    return output


@pytest.fixture(scope="module")
def captioned(clips, tmp_path_factory) -> Path:
    """Clips, two of which have two captions, and one of them none of its own."""
    folder = tmp_path_factory.mktemp("captioned")
    for clip in clips.glob("*.mp4"):
        shutil.copy(clip, folder)
    texts = {"0.mp4": [CAPTION, OTHER], "1.mp4": [CAPTION], "2.mp4": [OTHER, "a ball"], "3.mp4": ""}
    lines = [json.dumps({"file_name": name, "text": text}) for name, text in texts.items()]
    (folder / "metadata.jsonl").write_text("\n".join(lines))
    return folder


@pytest.fixture(scope="module")
def cache(public, captioned, tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("cache") / "latents"
    options = ["--missing-captions", "empty", "--prompt", OTHER, "--shard-size", "3"]
    return encoded(public, captioned, output, "wan", *options)


def losses(folder: Path) -> list[float]:
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [line["loss"] for line in lines if "loss" in line]


@pytest.mark.parametrize("family", ["wan", "ltx", "cogvideox"])
def test_losses_are_those_of_the_tower_in_memory(tmp_path, public, captioned, family, monkeypatch):
    options = ["--missing-captions", "empty", "--shard-size", "3"]
    latents = encoded(public, captioned, tmp_path / "latents", family, *options)
    found = []
    for cached in (False, True):
        part = tmp_path / str(cached)
        part.mkdir()
        with monkeypatch.context() as patch:
            if cached:
                patch.setattr(PipelineText, "_load", lambda *_: pytest.fail("loads the tower"))
            code, folder = run(
                part, public, lambda _: latents, family,
                objective={
                    "name": "consistency_tuning",
                    "guidance_range": [4, 4],
                    "prompt_dropout": 0.5,
                },
                data={"name": "latents", "path": str(latents), "cached_text": cached},
                preview_prompts=[], steps=3, log_every=1, batch_size=3,
            )  # fmt: skip
        assert code == 0
        found.append(losses(folder))
    assert len(found[0]) == 3 and found[0] == pytest.approx(found[1], rel=1e-6)


def test_each_text_is_kept_once_and_the_empty_one_always(cache, public):
    data = LatentShards(cache)
    tower = text_tower(str(public("wan")))
    assert data.text == {
        "tower": tower.fingerprint(),
        "length": 512,
        "width": 32,
        "dtype": "float32",
        "prompts": ["", OTHER],
    }
    seen = set()
    for entry in data.index["shards"]:
        shard = Shard(cache / entry["name"])
        rows = [shard.captions(row) for row in range(entry["clips"])]
        texts = [text for group in [*rows, shard.prompts()] for text in group]
        assert {"", OTHER} <= set(texts)
        kept = {}
        for text in texts:
            assert isinstance(text, EmbeddedPrompt)
            kept.setdefault(str(text), text.tokens.data_ptr())
            assert text.tokens.data_ptr() == kept[text]  # shared, not repeated
            tokens, _ = with_padding([text.tokens], 512)
            assert torch.allclose(tokens, tower([text])[0], atol=1e-6)
        assert sum(len(t.tokens) for t in {str(t): t for t in texts}.values()) == len(shard._tokens)
        seen |= set(kept)
    assert seen == {"", OTHER, CAPTION, "a ball"}


def test_towers_and_prompts_that_are_not_cached_are_refused(tmp_path, public, cache, capsys):
    other = shutil.copytree(public("wan"), tmp_path / "other")
    config = json.loads((other / "tokenizer" / "tokenizer_config.json").read_text())
    (other / "tokenizer" / "tokenizer_config.json").write_text(json.dumps(config | {"a": 1}))
    code, folder = run(tmp_path, lambda _: other, lambda _: cache, preview_prompts=[OTHER])
    assert code == 2 and not (folder / "final").exists()
    assert "encode again with --text, or set data.cached_text=false" in capsys.readouterr().err
    code, _ = run(tmp_path, public, lambda _: cache, preview_prompts=["a robot"])
    assert code == 2 and "no text tokens of the prompt 'a robot'" in capsys.readouterr().err
    code, _ = run(tmp_path, public, lambda _: cache, preview_prompts=[OTHER])
    assert code == 0


def test_cleaning_is_the_pipelines_and_its_version_counts(public, monkeypatch):
    """HTML entities are read as the teacher's pipeline reads them. Cases: C07."""
    tower = text_tower(str(public("wan")))
    found = CaptionTokens(tower, torch.device("cpu"))([["a &lt;red&gt; ball", "a <red> ball"]])
    assert torch.equal(found[0][0].tokens, found[0][1].tokens)
    before = tower.fingerprint()
    assert before == text_tower(str(public("wan"))).fingerprint()
    monkeypatch.setattr("vidcm.families.text.version", lambda name: "0.0")
    assert tower.fingerprint() != before


def test_another_length_is_refused(public, cache):
    """Cases: C13."""
    data, family = LatentShards(cache), find_family("WanTransformer3DModel")
    assert data.text is not None
    data.text["length"] = 226
    with pytest.raises(VidcmError, match="are 226 a prompt, and wan models read 512"):
        data.cached_tower(PipelineText(public("wan"), family))


def test_a_dry_run_counts_no_tower_of_cached_text(tmp_path, public, cache, capsys):
    for cached in (True, False):
        run(tmp_path, public, lambda _: cache, preview_prompts=[OTHER], steps=1,
            data={"name": "latents", "path": str(cache), "cached_text": cached})  # fmt: skip
        capsys.readouterr()
        assert train.main(["--config", str(tmp_path / "config.yaml"), "--dry-run"]) == 0
        assert ("text towers" in capsys.readouterr().out) is not cached


def test_tokens_stay_with_their_clips_when_duplicates_go(tmp_path, public, captioned):
    pytest.importorskip("imagehash")
    shutil.copytree(captioned, tmp_path / "in")
    shutil.copy(captioned / "0.mp4", tmp_path / "in" / "00.mp4")
    with (tmp_path / "in" / "metadata.jsonl").open("a") as file:
        file.write('\n{"file_name": "00.mp4", "text": "a robot"}')
    options = ["--missing-captions", "empty", "--filter", "near_duplicates"]
    data = LatentShards(encoded(public, tmp_path / "in", tmp_path / "latents", "wan", *options))
    assert data.index["left_out"]["near-duplicate"] >= 1
    tower = text_tower(str(public("wan")))
    for row in range(len(data)):
        for text in data.captions(0, row):
            assert isinstance(text, EmbeddedPrompt)
            tokens, _ = with_padding([text.tokens], 512)
            assert torch.allclose(tokens, tower([text])[0], atol=1e-6)


def test_what_is_no_tower_is_refused(tmp_path, public, capsys):
    codec = save_codec(tmp_path / "codec", CODEC)
    base = ["--data", "folder", "--root", str(tmp_path), "--codec", str(codec)]
    base += ["--output", str(tmp_path / "out"), "--text"]
    assert encode.main([*base, str(codec)]) == 2
    assert "trained with its denoiser" in capsys.readouterr().err
    assert encode.main([*base, str(tmp_path / "none")]) == 2
    assert "no folder text_encoder, tokenizer, transformer; give" in capsys.readouterr().err
    assert encode.main([*base[:-1], "--prompt", "a"]) == 2
    assert "add --text" in capsys.readouterr().err


def test_a_resumed_encode_refuses_other_text(public, captioned, tmp_path, capsys):
    options = ["--missing-captions", "empty", "--shard-size", "2"]
    shared = ["--world", "2", "--rank", "0"]
    output = encoded(public, captioned, tmp_path / "x", "wan", *options, *shared)
    assert not output.exists()
    root, size = public("wan"), ["--frames", "9", "--size", "32x32", "--fps", "8"]
    again = ["--data", "folder", "--root", str(captioned), "--codec", f"{root}/vae", *size]
    assert encode.main([*again, *options, "--output", str(output)]) == 2
    assert "was begun with another text" in capsys.readouterr().err
    encoded(public, captioned, output, "wan", *options)


def test_padding_is_taken_off_and_put_back():
    tokens = torch.randn(3, 7, 5)
    mask = torch.arange(7) < torch.tensor([[7], [2], [5]])
    rows = without_padding(tokens * mask[..., None], mask)
    assert [len(row) for row in rows] == [7, 2, 5]
    back, places = with_padding(rows, 7)
    assert torch.equal(back, tokens * mask[..., None]) and torch.equal(places, mask)
    with pytest.raises(VidcmError, match="padding before its tokens"):
        without_padding(tokens, ~mask)
