"""What training asks of a backbone that is a stack of blocks."""

from typing import ClassVar

from torch import nn

from vidcm.diffusion.base import Cond
from vidcm.errors import UsageError
from vidcm.models.nag import AttentionGuidance
from vidcm.models.sequence_parallel import SequenceGroup


class TransformerBackbone(nn.Module):
    """A backbone whose tokens pass through `blocks`, one after the other.

    Attributes:
        blocks: Modules from tokens `(b, n, hidden_size)` to tokens; low-rank updates go into their
            linear layers, and critics see what they return.
        hidden_size: Width of the tokens.
        activation_checkpointing: Compute the blocks again in the backward pass instead of keeping
            the activations inside them.
        student_inputs: Names of the submodules that only students have; they start at zero.
    """

    blocks: nn.ModuleList
    hidden_size: int
    activation_checkpointing: bool = False
    student_inputs: ClassVar[tuple[str, ...]] = ()

    def guided_by_attention(self, negative: Cond, guidance: AttentionGuidance) -> nn.Module:
        """A view of the network whose attention to text moves away from a negative prompt.

        Args:
            negative: The negative prompt, one sample.
            guidance: How.

        Raises:
            UsageError: The network has no attention to text alone.
        """
        raise UsageError(
            f"normalized attention guidance needs attention to text alone, and "
            f"{type(self).__name__} has none; use negative_prompt_method guidance"
        )

    def parallelize(self, group: SequenceGroup) -> None:
        """Compute this rank's part of the tokens in the blocks; see `sequence_parallel`.

        Raises:
            UsageError: The network cannot, or ranks do not divide its heads.
        """
        raise UsageError(
            f"sequence_parallel cannot split the tokens of {type(self).__name__}; use 1"
        )
