"""The text tower: any string is a prompt, and what one prompt means does not depend on its batch."""

import pytest
import tiny
import torch

from vidcm.conditioning.prompts import words_of
from vidcm.conditioning.text import HashedWords, ngrams


@pytest.fixture
def tower() -> HashedWords:
    torch.manual_seed(0)
    return tiny.shaken(
        HashedWords(hidden_size=32, num_layers=2, num_heads=2, buckets=509, max_words=13)
    ).eval()


def tokens(tower: HashedWords, *prompts: str) -> list[torch.Tensor]:
    """The tokens of every prompt, padding cut off."""
    x, mask = tower(prompts)
    assert x.shape == (*mask.shape, 32) and mask.dtype == torch.bool and x.isfinite().all()
    return [row[m] for row, m in zip(x, mask, strict=True)]


@pytest.mark.parametrize(
    "prompt, words",
    [
        ("A woman, walking left.", ["a", "woman", ",", "walking", "left", "."]),
        ("light-skinned  man\n\tfalls!", ["light", "skinned", "man", "falls", "!"]),
        ("ＰＵＲＰＬＥ ﬁre", ["purple", "fire"]),  # compatibility forms
        ("Straße ÉTÉ", ["straße", "été"]),
        ("ein_wort 3x", ["ein", "wort", "3x"]),
        ("女の人が歩く", ["女の人が歩く"]),
        ("🙂 ___ ", []),
        (
            "\ufeffa wo\u200bman\x00 \u202efalls\u202c, o\u00adrc\tx\x1c",
            ["a", "woman", "falls", ",", "orc", "x"],
        ),
        ("", []),
    ],
)
def test_words(prompt, words):
    """In training as in use: there is no other reader of prompts. Cases: C06."""
    assert words_of(prompt) == words


def test_ngrams_are_shared_by_words_that_look_alike():
    def likeness(a: str, b: str) -> float:
        x, y = (set(ngrams(w, 100_003)) for w in (a, b))
        return len(x & y) / len(x | y)

    assert likeness("walk", "walks") > 0.3 > likeness("walk", "purple") == 0
    assert likeness("straße", "straße") == 1
    assert all(1 <= i < 31 for i in ngrams("x" * 500, 31)) and len(ngrams("x" * 500, 31)) <= 24
    assert len(ngrams("a", 31)) >= 1


def test_a_prompt_is_the_same_in_any_batch(tower):
    prompts = ["an orc", "", "a lady with very long wavy golden hair walks left", "!"]
    together = tokens(tower, *prompts)
    for prompt, found in zip(prompts, together, strict=True):
        torch.testing.assert_close(tokens(tower, prompt)[0], found, rtol=1e-4, atol=1e-5)
    flipped = tokens(tower, *prompts[::-1])[::-1]
    for a, b in zip(together, flipped, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_empty_prompts_are_one_learnt_token(tower):
    empty, blank, emoji = tokens(tower, "", " \n", "🙂")
    assert empty.shape == (1, 32) and blank.allclose(empty) and emoji.allclose(empty)
    assert not empty.allclose(tokens(tower, "a")[0], atol=1e-3)
    tower(["", ""])[0].sum().backward()
    assert tower.empty.grad is not None and tower.empty.grad.abs().max() > 0


def test_order_and_words_matter_case_and_spaces_do_not(tower):
    a, b, c, d = tokens(
        tower,
        "red dress blue hair",
        "blue dress red hair",
        "RED  dress Blue HAIR",
        "red dress blue",
    )
    assert not a.allclose(b, atol=1e-3) and a.allclose(c) and len(d) == 3


def test_words_never_seen_are_fine_and_differ(tower):
    a, b = tokens(tower, "zyxwvut", "qponmlk")
    assert len(a) == len(b) == 1 and not a.allclose(b, atol=1e-3)


def test_long_prompts_are_cut_and_say_so(tower):
    """Cases: C03."""
    words = [f"word{i}" for i in range(29)]
    whole, cut = tokens(tower, " ".join(words), " ".join(words[:13]))
    assert len(whole) == 13
    torch.testing.assert_close(whole, cut)
    assert tower.dropped(" ".join(words)) == words[13:] and tower.dropped("short") == []


def test_every_parameter_learns(tower):
    x, mask = tower(["an orc walks", "", "a lady"])
    (x * mask.unsqueeze(-1)).square().sum().backward()
    for name, p in tower.named_parameters():
        assert p.grad is not None and p.grad.isfinite().all() and p.grad.abs().max() > 0, name
