"""A loss encodes its prompts once with each network, and the teacher's empty prompt once in a run."""

from collections import Counter
from typing import Any

import pytest
import tiny
import torch

from vidcm.data.batch import Batch
from vidcm.registry import build
from vidcm.rng import SampleRng

PLACES = range(4)
TUNING = {"name": "consistency_tuning"}
# The name, its options, and how often the loss encodes by student, teacher and further network.
LOSSES: dict[str, tuple[dict[str, Any], tuple[int, int, int]]] = {
    "consistency_tuning": ({}, (1, 1, 0)),
    "latent_consistency": ({"solver": "heun"}, (1, 1, 0)),
    "phased_consistency": ({}, (1, 1, 0)),
    "flow_map": ({"improved": True}, (1, 1, 0)),
    "continuous_consistency": ({}, (1, 1, 0)),
    "distribution_matching": ({}, (1, 1, 1)),
    "adversarial": ({"blocks": [0]}, (1, 1, 0)),
    "rcm": ({"consistency": TUNING, "matching": {}}, (2, 2, 1)),  # two terms, two draws of prompts
}


def network(seed: int, **options) -> torch.nn.Module:
    return tiny.shaken(build("model", tiny.denoiser(**options)), seed=seed)


@pytest.mark.parametrize("name", LOSSES)
def test_prompts_are_encoded_once_by_each_network(name):
    options, expected = LOSSES[name]
    student = network(1, guidance_embed=True, two_times=True)
    teacher, fake = network(2).requires_grad_(False), network(3, guidance_embed=True)
    calls, empty = Counter(), Counter()
    for who, model in (("student", student), ("teacher", teacher), ("fake", fake)):

        def count(module, args, who=who):
            (empty if list(args[0]) == [""] else calls)[who] += 1

        model.conditioner.register_forward_pre_hook(count)
    context = {"teacher": teacher, "make_fake": lambda: fake}
    objective = build("objective", {"name": name, "prompt_dropout": 0.0, **options}
                      if name != "rcm" else {"name": name, **options}, **context)  # fmt: skip
    for step in (1, 2):
        latents = SampleRng(8, PLACES).normal(5, 2, 3, 4)
        batch = Batch(["an orc", "a man falls", "a lady", "an elf"], latents=latents)
        objective(student, batch, 0.5, SampleRng(step, PLACES)).total.backward()
        assert tuple(calls[who] for who in ("student", "teacher", "fake")) == tuple(
            step * n for n in expected
        )
    guided = {"adversarial": 0, "rcm": 2}.get(name, 1)  # teachers without guidance need none
    assert empty["teacher"] == guided, "once in a run"
    tower = student.conditioner.parameters()
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in tower), "it is trained"
