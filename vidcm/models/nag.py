"""Normalized attention guidance: negative prompts inside the attention to text.

Chen et al. 2025, arXiv 2505.21179. It needs no prediction at guidance 1, so it serves students that
have one guidance scale built in, and it costs an attention to text more in each block instead of
evaluations of the network. Networks are not changed: a view of them shares all weights and attends
otherwise.
"""

import copy
from dataclasses import dataclass
from typing import Any, Self, TypeVar

import torch
from torch import Tensor, nn

from vidcm.arguments import real_number
from vidcm.errors import UsageError
from vidcm.models.attention import Attention
from vidcm.settings import MAX_GUIDANCE, NEGATIVE_PROMPT_METHODS

M = TypeVar("M", bound=nn.Module)


@dataclass(frozen=True)
class AttentionGuidance:
    """How attention moves away from a negative prompt, with the paper's numbers as defaults.

    Attributes:
        scale: Strength s, 0 or above; at 0 attention is as without.
        tau: Most that the L1 norm of a token may grow, 1 or above.
        alpha: Share of the result that is guided, in [0, 1].
    """

    scale: float = 5.0
    tau: float = 2.5
    alpha: float = 0.25

    @classmethod
    def choose(
        cls, scales: tuple[float, float] | None, method: str | None, scale: float | None
    ) -> Self | None:
        """Attention guidance if a call names it, or if a student has one guidance scale built in.

        Args:
            scales: Lowest and highest guidance scale of a student; None of a teacher.
            method: "nag", "guidance" or None.
            scale: Strength of "nag"; None for the default.

        Returns:
            None for guidance of predictions.

        Raises:
            UsageError: An unknown method, a teacher, or a strength that has no effect.
        """
        if method is None:
            built_in = scales is not None and scales[0] == scales[1]
            method = "nag" if scale is not None or built_in else "guidance"
        if not isinstance(method, str) or method not in NEGATIVE_PROMPT_METHODS:
            known = ", ".join(NEGATIVE_PROMPT_METHODS)
            raise UsageError(f"negative_prompt_method is {method!r}; use {known}")
        if method == "guidance":
            if scale is not None:
                raise UsageError(
                    "nag_scale is the strength of negative_prompt_method nag; drop one"
                )
            return None
        if scales is None:
            raise UsageError("negative_prompt_method nag is for students; teachers have guidance")
        return cls() if scale is None else cls(real_number("nag_scale", scale, 0, MAX_GUIDANCE))

    def __call__(self, positive: Tensor, negative: Tensor) -> Tensor:
        """What attention gives to the positive text, moved away from the negative one.

        g = p + s (p - n), scaled so that |g| is at most tau |p|; then alpha g + (1 - alpha) p.

        Args:
            positive: Tokens `(b, n, d)` before the output layer.
            negative: The like, of the negative text.
        """
        guided = positive + self.scale * (positive - negative)
        size, most = (x.abs().sum(-1, keepdim=True) for x in (guided, positive))
        limit = self.tau * most / size.clamp(min=torch.finfo(size.dtype).tiny)
        return positive + self.alpha * (guided * limit.clamp(max=1) - positive)


class GuidedAttention(nn.Module):
    """Our attention to text, guided against another text.

    Args:
        attention: Attention to text; its weights are shared.
        norm: What texts go through before.
        negative: Tokens of the negative text, `(1, n, d)`.
        mask: Their mask `(1, n)`.
        guidance: How.
    """

    def __init__(
        self,
        attention: Attention,
        norm: nn.Module,
        negative: Tensor,
        mask: Tensor,
        guidance: AttentionGuidance,
    ):
        super().__init__()
        self.attention, self.norm, self.guidance = attention, norm, guidance
        self.negative, self.mask = negative, mask

    def forward(self, x: Tensor, context: Tensor, mask: Tensor | None = None) -> Tensor:
        rows = len(x)
        positive = self.attention.mix(x, context, mask)
        text = self.norm(self.negative).expand(rows, -1, -1)
        negative = self.attention.mix(x, text, self.mask.expand(rows, -1))
        return self.attention.out(self.guidance(positive, negative))


def view(module: M, **children: Any) -> M:
    """A module that shares everything with `module` but these children; that one stays as it is."""
    other = copy.copy(module)
    other._modules = {**module._modules, **children}
    other._compiled_call_impl = None  # of the other one
    return other
