"""How much of a network that is trained lies on each rank, by ZeRO stage.

Of one process and stage 0 exact; of the others by the buffers of DeepSpeed 0.19, as measured on two
ranks.
"""

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from vidcm.config import TrainConfig
from vidcm.data.loader import positions
from vidcm.train.deepspeed_setup import BUCKET

LIVE = 1_000_000_000  # DeepSpeed's `stage3_max_live_parameters`


class Layout:
    """One process, or the ranks of a ZeRO stage.

    Attributes:
        stage: The stage that runs: DeepSpeed in bf16 has none below 1.
        bf16: Whether networks compute in bf16.
        micro: Clips that a rank computes at once.

    Args:
        config: Its zero, precision, batch_size and gradient_accumulation_steps.
        world: Number of ranks.
        foreach: Whether the optimizer works on all tensors at once, as on GPUs.

    Raises:
        UsageError: The batch does not divide into micro-batches.
    """

    def __init__(self, config: TrainConfig, world: int, *, foreach: bool = True):
        self.world, self.bf16 = world, config.precision == "bf16"
        self.deepspeed = world > 1 or config.zero > 0
        self.stage = max(config.zero, int(self.bf16)) if self.deepspeed else 0
        self.size = 2 if self.bf16 and self.deepspeed else 4  # bytes of a weight
        self.copies = 1 if foreach else 2  # of what it updates, that an update makes
        parts = world // config.sequence_parallel * config.gradient_accumulation_steps
        self.micro = len(positions(0, config.batch_size, parts, 0))

    def cast(self, network: nn.Module) -> None:
        """Give weights without data the precision that they have in a step."""
        if self.size == 2:
            for parameter in network.parameters():
                parameter.data = parameter.data.to(torch.bfloat16)

    def of(self, module: nn.Module, *, averaged: bool = True) -> "Share":
        """A rank's share of a network; averaged: whether there is an average of its weights."""
        return Share(self, module, averaged)


class Share:
    """A rank's share of one network, in bytes.

    Attributes:
        lasting: By name, what stays from step to step.
        gradients: What backward passes need for gradients at the most.
        left: Gradients that stay until the network's next step.
        whole: Gradients that the backward pass itself leaves.
        update: The most of gradients and copies while the optimizer works.
    """

    def __init__(self, layout: Layout, module: nn.Module, averaged: bool):
        trained = [p for p in module.parameters() if p.requires_grad]
        stage, size, ours = layout.stage, layout.size, _count(trained)
        share = 4 * (math.ceil(ours / layout.world) if stage else ours)
        weights = size * _count(module.parameters())
        if stage == 3:
            # A shard, and those in use: all of them, up to a limit that few networks reach.
            weights = math.ceil(weights / layout.world) + min(weights, size * LIVE)
        buffers = sum(b.numel() * b.element_size() for b in module.buffers())
        self.lasting = {
            "weights": weights + buffers,
            "fp32 weights": share if stage else 0,
            "optimizer": 2 * share,
            "average": share if averaged else 0,
        }
        bucket = size * min(ours, BUCKET) if layout.deepspeed else 0
        sums = 4 * ours if stage == 1 and layout.bf16 else 0
        self.whole = size * ours if stage < 2 else 0
        if stage == 0:
            largest = max(p.numel() for p in trained)
            copies = 4 * ours if layout.copies == 1 else 8 * largest
            self.gradients = self.left = 4 * ours
            self.update = 4 * ours + max(copies, bucket)
        elif stage == 3:
            self.gradients = self.left = bucket + 2 * share
            self.update = self.gradients + (1 + layout.copies) * share
        else:
            staged = self.whole + 4 * min(ours, BUCKET) if stage == 1 else bucket
            self.gradients, self.left = staged + sums, sums
            self.update = sums + (layout.copies + 3 - stage) * share


def _count(parameters: Iterable[Tensor]) -> int:
    return sum(p.numel() for p in parameters)
