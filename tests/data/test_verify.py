"""A finished cache can be checked, and the command that is said mends it."""

import json
import subprocess
from pathlib import Path

import pytest
from numbered import Numbers, files, run

from vidcm.cli import encode


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    run(tmp_path / "some latents", Numbers())
    return tmp_path / "some latents"


def damage(file: Path, kind: str) -> None:
    data = file.read_bytes()
    if kind == "missing":
        file.unlink()
    elif kind == "cut":
        file.write_bytes(data[:-3])
    else:
        file.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))


def verify(cache: Path, capsys) -> tuple[int, str, str]:
    code = encode.main(["--verify", str(cache)])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_a_whole_cache(cache, capsys):
    code, out, _ = verify(cache, capsys)
    assert code == 0 and "14 clips in 7 shards, all as the index says" in out


def mended(cache: Path, err: str) -> dict[str, bytes]:
    """The files after the command of the message, and the encoding again."""
    command = err.split("; ", 1)[1].split("  #")[0]
    subprocess.run(command, shell=True, check=True)
    run(cache, Numbers())
    return files(cache)


def test_bad_shards_are_named_and_mended(cache, capsys):
    """Cases: S07."""
    before = files(cache)
    kinds = {"missing": "is missing", "cut": "bytes, expected", "flipped": "another sha256"}
    for i, kind in enumerate(kinds):
        damage(cache / f"shard-00000{2 * i}.safetensors", kind)
    (cache / "shard-000009.safetensors").write_bytes(b"")
    code, out, err = verify(cache, capsys)
    assert code == 1 and "4 files of" in err
    for i, reason in enumerate(kinds.values()):
        assert f"shard-00000{2 * i}.safetensors" in out and reason in out
    assert "shard-000009.safetensors is not in the index" in out
    assert len(out.splitlines()) == 4
    assert mended(cache, err) == before


def test_the_folder_at_hand(cache, capsys, monkeypatch):
    (cache / "shard-000001.safetensors").unlink()
    monkeypatch.chdir(cache)
    code, _, err = verify(Path("."), capsys)
    assert code == 1 and f"mv '{cache}' '{cache}.partial' && rm -f" in err


def test_an_index_that_lies_or_is_damaged(cache, capsys):
    before, index = files(cache), json.loads((cache / "index.json").read_text())
    (cache / "index.json").write_text(json.dumps(index | {"clips": 15}))
    code, out, err = verify(cache, capsys)
    assert code == 1 and "index.json counts 15 clips, and its shards have 14" in out
    assert mended(cache, err) == before
    index["shards"][0]["shape"][3] = 99
    (cache / "index.json").write_text(json.dumps(index))
    code, out, _ = verify(cache, capsys)
    assert code == 1 and "holds latents of" in out
    (cache / "index.json").write_text("{")
    code, _, err = verify(cache, capsys)
    assert code == 1 and "index.json is damaged; mv" in err
    assert mended(cache, err) == before


def test_what_is_no_cache_and_options_that_do_nothing_are_refused(cache, tmp_path, capsys):
    code, _, err = verify(tmp_path, capsys)
    assert code == 2 and "holds no latents" in err
    assert encode.main(["--verify", str(cache), "--output", str(tmp_path / "x")]) == 2
    assert "leave --output out" in capsys.readouterr().err
    assert encode.main(["--verify", str(cache), "--scan", "--shard-size", "3"]) == 2
    assert "leave --shard-size, --scan out" in capsys.readouterr().err
    assert encode.main(["--codec", "x"]) == 2
    assert "--data missing" in capsys.readouterr().err
