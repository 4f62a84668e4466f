"""Long clips over several ranks: each has a part of the tokens (DeepSpeed Ulysses).

Jacobs et al. 2023, arXiv 2309.14509. Between the first and the last block a rank computes its own
tokens; around self-attention an all-to-all turns parts of all tokens into all tokens of some heads.
Everything else is computed whole on every rank, so a loss is the same on all of them.

Gradients are those of ordinary data parallelism, a mean over all ranks, for every ZeRO stage: what
the blocks and all before them get comes from a rank's own tokens alone, so it is multiplied by the
number of ranks where their tokens are put together again. Derivatives forward take the same road,
since every step of it is linear.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.autograd.forward_ad as forward_ad
import torch.distributed as dist
from torch import Tensor, nn

from vidcm.errors import UsageError
from vidcm.models.attention import attend


class SequenceGroup:
    """Ranks that have one clip together.

    Args:
        group: Their process group.
    """

    def __init__(self, group: Any):
        self.group, self.size = group, dist.get_world_size(group)
        self.rank, self.enabled = dist.get_rank(group), True

    def __deepcopy__(self, memo: dict) -> "SequenceGroup":
        return self  # of copies of a network too

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Compute whole clips on this rank in the block, as others do not take part."""
        self.enabled = False
        try:
            yield
        finally:
            self.enabled = True

    def part(self, x: Tensor, dim: int) -> Tensor:
        """This rank's tokens. Raises UsageError where ranks do not divide them."""
        count = x.shape[dim]
        if count % self.size:
            raise UsageError(
                f"{count} tokens do not divide into sequence_parallel={self.size}; change the "
                "clips' size, or use a number that divides"
            )
        return x.narrow(dim, self.rank * (count // self.size), count // self.size)

    def whole(self, x: Tensor) -> Tensor:
        """All tokens `(b, n, d)` from this rank's part."""
        return _along(lambda part: _Gather.apply(part, self), x)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
        """`vidcm.models.attention.attend` among the tokens of all ranks, from and to parts.

        Args:
            q: Queries `(b, heads, n / ranks, d)`.
            k: Keys.
            v: Values.
            mask: Must be None.
        """
        if not self.enabled:
            return attend(q, k, v, mask)
        assert mask is None, "clips have no masks"
        heads, tokens = 1, 2
        q, k, v = (self._exchange(x, heads, tokens) for x in (q, k, v))
        return self._exchange(attend(q, k, v), tokens, heads)

    def _exchange(self, x: Tensor, split: int, join: int) -> Tensor:
        return _along(lambda y: _Exchange.apply(y, self, split, join), x)


def _along(linear: Callable[[Tensor], Any], x: Tensor) -> Tensor:
    """A linear function of a tensor, and of its tangent if it has one."""
    value, tangent = forward_ad.unpack_dual(x)
    out = linear(value)
    return out if tangent is None else forward_ad.make_dual(out, linear(tangent))


def _all_to_all(x: Tensor, group: SequenceGroup, split: int, join: int) -> Tensor:
    sent = torch.stack(x.chunk(group.size, split)).contiguous()
    received = torch.empty_like(sent)
    dist.all_to_all_single(received, sent, group=group.group)
    return torch.cat(received.unbind(), join)


class _Exchange(torch.autograd.Function):
    """Every rank gives each other one a slice along `split`, and joins theirs along `join`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: SequenceGroup, split: int, join: int) -> Tensor:
        ctx.group, ctx.split, ctx.join = group, split, join
        return _all_to_all(x, group, split, join)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return _all_to_all(grad, ctx.group, ctx.join, ctx.split), None, None, None


class _Gather(torch.autograd.Function):
    """Parts of all ranks along dimension 1; the gradient is this rank's part, times the ranks."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: SequenceGroup) -> Tensor:
        ctx.group, x = group, x.contiguous()
        parts = [torch.empty_like(x) for _ in range(group.size)]
        dist.all_gather(parts, x, group=group.group)
        return torch.cat(parts, 1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return ctx.group.part(grad, 1) * ctx.group.size, None


Inputs = Callable[[SequenceGroup, tuple], tuple]  # of a block, for this rank's tokens


def parallelize_blocks(blocks: nn.ModuleList, group: SequenceGroup, inputs: Inputs) -> None:
    """Let blocks compute this rank's tokens alone.

    Args:
        blocks: The first gets all tokens, the last gives all.
        group: The ranks.
        inputs: What a block reads beside tokens, for this rank's tokens.
    """

    def first(module: nn.Module, args: tuple) -> tuple | None:
        return (group.part(args[0], 1), *args[1:]) if group.enabled else None

    def every(module: nn.Module, args: tuple) -> tuple | None:
        return (args[0], *inputs(group, args[1:])) if group.enabled else None

    def last(module: nn.Module, args: tuple, out: Tensor) -> Tensor | None:
        return group.whole(out) if group.enabled else None

    blocks[0].register_forward_pre_hook(first)
    for block in blocks:
        block.register_forward_pre_hook(every)
    blocks[-1].register_forward_hook(last)


def check_heads(heads: int, group: SequenceGroup) -> None:
    """Raise UsageError where ranks do not divide the heads."""
    if heads % group.size:
        raise UsageError(
            f"sequence_parallel={group.size} does not divide the {heads} heads of the network; use "
            "a number that does"
        )
