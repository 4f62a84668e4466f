"""Prompts as text: their words, and the checks of them.

Needs no torch, so that commands can refuse a prompt at once.
"""

import re
import unicodedata
from collections.abc import Collection, Sequence

from vidcm.errors import UsageError

MAX_PROMPT = 2000  # characters
_UNSEEN = ("Cc", "Cf")
_WORD = re.compile(r"[^\W_]+|[.,;:!?]")


def words_of(prompt: str) -> list[str]:
    """Lower-case words and stops of a prompt, after Unicode compatibility folding.

    Characters that nobody sees (zero width, direction, control) do not part a word.
    """
    text = unicodedata.normalize("NFKC", prompt).lower()
    if not text.isprintable():
        text = "".join(c for c in text if c.isspace() or unicodedata.category(c) not in _UNSEEN)
    return _WORD.findall(text)


def unknown_words(prompts: Sequence[str], known: Collection[str]) -> list[str]:
    """The words of prompts that are not among `known` ones, each once, in order."""
    words = [word for prompt in prompts for word in words_of(prompt) if word[0].isalnum()]
    return [word for word in dict.fromkeys(words) if word not in known]


def check_prompts(prompts: Sequence[str]) -> None:
    """Refuse prompts that are no text, empty of words or too long.

    Raises:
        UsageError: There is no prompt, or one of them does not fit.
    """
    if not prompts:
        raise UsageError("there is no prompt; give at least one")
    for prompt in prompts:
        if not isinstance(prompt, str):
            raise UsageError(f"a prompt must be text, not {type(prompt).__name__}")
        if not any(c.isalnum() for c in prompt):
            raise UsageError("the prompt is empty of words; say what the clip should show")
        check_length("a prompt", prompt)


def check_length(name: str, prompt: str) -> None:
    """Raise UsageError for a prompt that is too long; name: of which, as "a prompt"."""
    if len(prompt) > MAX_PROMPT:
        raise UsageError(
            f"{name} of {len(prompt)} characters is too long; use at most {MAX_PROMPT}"
        )
