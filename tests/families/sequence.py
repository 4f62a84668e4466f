"""`sequence.py BASE OUT`, on two ranks: a tiny public network with its tokens split over both.

Writes what rank 0 found: a prediction, its exact derivative, and gradients averaged over ranks.
"""

import sys
from pathlib import Path

import torch
import torch.distributed as dist

from vidcm.diffusion.denoiser import Denoiser
from vidcm.diffusion.derivative import Exact
from vidcm.models.sequence_parallel import SequenceGroup
from vidcm.store import load_model
from vidcm.train.sequence import parallelize

PROMPTS = ["a red ball bounces left .", "a robot"]


def found(model: Denoiser, *, per_frame: bool, checkpointing: bool) -> dict[str, torch.Tensor]:
    """Of a model as it is."""
    generator = torch.Generator().manual_seed(3)
    x, dx = (torch.randn(2, model.channels, 3, 4, 4, generator=generator) for _ in range(2))
    t = torch.tensor([0.3, 0.9])
    if per_frame:
        t = torch.tensor([[0.0, 0.3, 0.4], [0.9, 0.0, 0.7]])
    cond = model.encode(PROMPTS)

    def function(x, t):
        return model.velocity(x, t, cond)

    value, slope = Exact()(function, (x, t), (dx, torch.ones_like(t)))
    model.backbone.activation_checkpointing = checkpointing
    model.requires_grad_(True).zero_grad()
    loss = (function(x, t) - dx).square().mean()
    loss.backward()
    gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    return {"value": value, "slope": slope, "loss": loss.detach(), **gradients}


if __name__ == "__main__":
    base, out = map(Path, sys.argv[1:])
    dist.init_process_group("gloo")
    results = []
    for per_frame, checkpointing in ((False, False), (True, True)):
        model = load_model(base, Denoiser)
        parallelize(model, SequenceGroup(dist.group.WORLD))
        result = found(model, per_frame=per_frame, checkpointing=checkpointing)
        for name in sorted(result.keys() - {"value", "slope", "loss"}):
            dist.all_reduce(result[name])
            result[name] /= dist.get_world_size()
        results.append(result)
    if dist.get_rank() == 0:
        torch.save(results, out)
    dist.destroy_process_group()
