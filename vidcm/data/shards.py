"""A shard of a latent cache: clips of one shape in one file, read without loading it.

The file is safetensors with `latents` `(n c t h w)` in half precision, all captions as UTF-8 bytes
(`text`), where each caption ends in them (`text_ends`), where the captions of each clip end
(`caption_ends`), and what the network is given beside them (`control.*`), if it was encoded too.
Captions may have the tokens of a text tower, `tokens` `(m d)`, those of caption i from
`token_spans[i, 0]` to `token_spans[i, 1]`, shared by equal captions; then some texts behind those
of the clips are prompts that training needs besides.
"""

from collections.abc import Sequence
from itertools import chain
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from vidcm.conditioning.embedded import EmbeddedPrompt
from vidcm.diffusion.control import Control
from vidcm.errors import VidcmError
from vidcm.files import replacing
from vidcm.store import save_tensors

CONTROL = "control."


def write_shard(
    path: Path,
    latents: Tensor,
    captions: Sequence[Sequence[str]],
    control: Control | None = None,
    prompts: Sequence[EmbeddedPrompt] = (),
) -> None:
    """Write a shard atomically.

    Args:
        path: The file.
        latents: `(n c t h w)`.
        captions: One or more of each clip.
        control: Of the clips.
        prompts: Further ones, at least one if captions carry tokens.

    Raises:
        VidcmError: The file system refuses.
    """
    texts = [*chain.from_iterable(captions), *prompts]
    blobs = [text.encode() for text in texts]
    tensors = {
        "latents": latents.half().cpu(),
        "text": torch.tensor(list(b"".join(blobs)), dtype=torch.uint8),
        "text_ends": torch.tensor([len(blob) for blob in blobs]).cumsum(0),
        "caption_ends": torch.tensor([len(group) for group in captions]).cumsum(0),
    }
    given = {} if control is None else control.tensors()
    tensors |= {CONTROL + name: x.half().cpu() for name, x in given.items()}
    if prompts:
        tensors |= _tokens([text for text in texts if isinstance(text, EmbeddedPrompt)])
    with replacing(path) as part:
        save_tensors(tensors, part)


def _tokens(texts: Sequence[EmbeddedPrompt]) -> dict[str, Tensor]:
    """The tensors `tokens` and `token_spans`."""
    distinct = {str(text): text.tokens for text in texts}
    spans, end = {}, 0
    for text, tokens in distinct.items():
        spans[text] = (end, end + len(tokens))
        end += len(tokens)
    every = torch.cat(list(distinct.values()))
    return {"tokens": every, "token_spans": torch.tensor([spans[str(text)] for text in texts])}


class Shard:
    """An open shard, mapped into memory: what is read of it, the system may drop again.

    Args:
        path: The file.

    Raises:
        VidcmError: It cannot be read.
    """

    def __init__(self, path: Path):
        self.path = path
        try:
            with safe_open(str(path), "pt") as file:
                self.latents: Tensor = file.get_tensor("latents")
                self._text: Tensor = file.get_tensor("text")
                self._text_ends: Tensor = file.get_tensor("text_ends")
                self._caption_ends: Tensor = file.get_tensor("caption_ends")
                given = [name for name in file.keys() if name.startswith(CONTROL)]
                tensors = {name.removeprefix(CONTROL): file.get_tensor(name) for name in given}
                self._control = Control(**tensors) if tensors else None
                self._tokens: Tensor | None = None
                if "tokens" in file.keys():  # noqa: SIM118, it is no mapping
                    self._tokens = file.get_tensor("tokens")
                    self._token_spans: Tensor = file.get_tensor("token_spans")
        except Exception as error:  # safetensors raises kinds of its own
            raise VidcmError(f"{path} cannot be read ({error}); encode again") from None
        if len(self._caption_ends) != len(self.latents):
            raise VidcmError(f"{path} has captions of other clips; encode again")

    def control(self, row: int) -> Control | None:
        """What the network is given with a clip, float32, one sample."""
        if self._control is None:
            return None
        return self._control.rows(slice(row, row + 1)).map(Tensor.float)

    def captions(self, row: int) -> list[str]:
        """The captions of a clip, with tokens if there are. Raises VidcmError for a damaged shard.

        Tokens are mapped into memory, not loaded.
        """
        return self._texts(_span(self._caption_ends, row))

    def prompts(self) -> list[EmbeddedPrompt]:
        """The further prompts. Raises as `captions`."""
        texts = self._texts(range(int(self._caption_ends[-1]), len(self._text_ends)))
        return [text for text in texts if isinstance(text, EmbeddedPrompt)]

    def _texts(self, numbers: range) -> list[str]:
        try:
            return [self._caption(i) for i in numbers]
        except (IndexError, ValueError, RuntimeError):
            raise VidcmError(f"{self.path} has damaged captions; encode again") from None

    def _caption(self, i: int) -> str:
        span = _span(self._text_ends, i)
        text = bytes(self._text[span.start : span.stop].tolist()).decode()
        if self._tokens is None:
            return text
        first, last = self._token_spans[i].tolist()
        return EmbeddedPrompt(text, self._tokens[first:last])


def _span(ends: Tensor, i: int) -> range:
    return range(int(ends[i - 1]) if i else 0, int(ends[i]))
