"""What training asks of a backbone that is a stack of blocks."""

from typing import ClassVar

from torch import nn


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
